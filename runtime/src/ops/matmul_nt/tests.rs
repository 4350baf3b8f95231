#![allow(clippy::unwrap_used)]

use super::cpu::WIDENED;
use super::*;
use crate::check::check_case;
use crate::device::Runs;
use crate::op::Op;
use crate::ops::pieces;
use crate::tensor::Tensor;

fn half(m: u32, n: u32, k: u32) -> Case {
    Case::new("f16", MatmulNt::whole(m, n, k)).dtype("x", DType::F16).dtype("w", DType::F16)
}

#[test]
fn pieces_equal_the_whole() {
    for m in [2, 70] {
        let case = Case::new("", MatmulNt { m, n: 150, k: 20, n0: 0, l: 150 });
        assert!(pieces::compare(&case, 64 * 20 * 4, &[]) >= 3 * m as usize / 8);
        assert!(pieces::compare(&half(m, 150, 21), 64 * 22 * 2, &[]) >= 3 * m as usize / 4);
    }
}

#[test]
fn half_weights_are_widened_in_windows() {
    let device = crate::cpu::open();
    for m in [1, 3, 9] {
        let finding = check_case(&device, &half(m, 2 * WIDENED as u32 + 5, 37), 1).unwrap();
        assert!(finding.passed(), "{finding:?}");
    }
}

#[test]
fn half_factors_go_to_kernels_of_their_own_and_give_f32() {
    for m in [1, 16, 70] {
        let case = half(m, 24, 8);
        let variants = case.op.wgsl(&case.specs());
        assert_eq!(variants.iter().map(|v| v.variant).collect::<Vec<_>>(), ["tiled_f16"]);
        let single = Case::new("", case.op);
        assert!(single.op.wgsl(&single.specs()).iter().all(|v| v.variant != "tiled_f16"));
        let runs = crate::cpu::open().runs(&case.op, &case.specs());
        assert!(matches!(runs, Runs::Native(_)), "{runs}");
    }
    let refused = |x, w, y| {
        let op = Op::from(MatmulNt::whole(3, 5, 7));
        let case = Case::new("", op).dtype("x", x).dtype("w", w).dtype("y", y);
        op.check_operands(&case.specs()).unwrap_err().to_string()
    };
    use DType::{Bf16, F16, F32};
    assert!(refused(F16, F32, F32).contains("the factors are f16 and f32"));
    assert!(refused(Bf16, F16, F32).contains("the factors are bf16 and f16"));
    assert!(refused(F16, F16, Bf16).contains("the product of f16 cannot be bf16"));
    assert!(refused(F16, F16, F16).contains("f16"));
}

#[test]
fn no_gradient_flows_through_half_factors() {
    let mut g = Graph::new("half");
    let x = g.bind(&Tensor::input("x", [3, 8], DType::F16));
    let w = g.bind(&Tensor::weight("w", [5, 8], DType::F16));
    let y = matmul_nt(&mut g, x, w).unwrap();
    assert_eq!(g.spec(y).dtype, DType::F32);
    let op = Op::from(MatmulNt::whole(3, 5, 8));
    let (operands, upstream, none) = ([x, w, y], [None, None, Some(y)], [None; 3]);
    let mut gradient = |wanted: [bool; 3]| {
        let nodes = g.nodes().len();
        let mut cx = GradCx::new(&mut g, &operands, &upstream, &wanted, &none);
        let result = op.gradient(&mut cx);
        assert_eq!(g.nodes().len(), nodes, "nothing is recorded");
        result
    };
    gradient([false; 3]).unwrap();
    for wanted in [[true, false, false], [false, true, false]] {
        assert!(gradient(wanted).unwrap_err().to_string().contains("f16"));
    }
}
