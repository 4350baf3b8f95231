//! Every gradient rule against finite differences in f64, and what every row must say of itself.

#![allow(clippy::unwrap_used, clippy::panic)]

use tritter_runtime::check::check_gradient;
use tritter_runtime::op::{Gradient, Row, Size};
use tritter_runtime::{DType, Spec};
use tritter_tests::fresh_seed;

#[test]
fn every_gradient_rule_agrees_with_finite_differences() {
    for row in Row::all().iter().filter(|r| r.gradient == Gradient::Rule) {
        let mut compared = 0;
        for case in (row.cases)(Size::Small).into_iter().filter(|case| (row.differentiable)(&case.specs())) {
            let seed = fresh_seed();
            let finding = check_gradient(&case, seed).unwrap().unwrap();
            let at = format!("{} `{}` with seed {seed}", row.name, case.label);
            assert!(finding.fault.is_none(), "{at}: {}", finding.fault.unwrap());
            compared += finding.compared;
        }
        assert!(compared > 0, "{}: no small case compares anything", row.name);
    }
}

#[test]
fn every_row_is_complete() {
    for row in Row::all() {
        assert!(!row.signature.operands.is_empty(), "{}", row.name);
        for operand in &row.signature.operands {
            assert!(!operand.dims.is_empty() && !operand.dtypes.is_empty(), "{}: {operand:?}", row.name);
        }
        // Where an adapter has fewer bindings than this row asks for, models record its parts.
        let most = if row.name == "ternary_qkv" { 11 } else { 8 };
        assert!(row.signature.operands.len() <= most, "{}: more storage buffers than every device has", row.name);
        assert!(!row.wgsl.is_empty(), "{}: no WGSL variant", row.name);
        for size in [Size::Small, Size::Ragged, Size::Bench] {
            let cases = (row.cases)(size);
            assert!(!cases.is_empty(), "{}: no {size:?} case", row.name);
            for case in cases {
                assert!(case.op.params().len() <= 64, "{}: parameters over 64 bytes", row.name);
                case.op.check_operands(&case.specs()).unwrap();
                if case.specs().iter().any(|s| s.dtype.only_cpu()) {
                    continue;
                }
                let wide = |s: Spec| Spec { dtype: if s.dtype == DType::Bf16 { DType::F32 } else { s.dtype }, ..s };
                let wide: Vec<Spec> = case.specs().into_iter().map(wide).collect();
                assert!(
                    !case.op.wgsl(&case.specs()).is_empty() || !case.op.wgsl(&wide).is_empty(),
                    "{} `{}`: no WGSL variant takes it",
                    row.name,
                    case.label
                );
            }
        }
        if let Gradient::None(why) = row.gradient {
            assert!(why.len() > 8, "{}: say why there is no gradient", row.name);
        }
    }
}
