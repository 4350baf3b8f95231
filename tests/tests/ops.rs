//! Every row on every device that is present, in every variant that the device allows.

use libtest_mimic::{Arguments, Failed, Trial};
use tritter_runtime::check::check_case;
use tritter_runtime::op::{Case, Row, Size};
use tritter_tests::{Candidate, candidates, fresh_seed};

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for candidate in candidates() {
        for row in Row::all() {
            trials.extend(trial(&candidate, row));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn trial(candidate: &Candidate, row: &'static Row) -> Option<Trial> {
    if !candidate.runs(row) {
        return None;
    }
    let name = format!("{}::{}", candidate.label, row.name);
    let device = match &candidate.device {
        Ok(device) => device.clone(),
        Err(why) => return Some(Trial::test(format!("{name} ({why})"), || Ok(())).with_ignored_flag(true)),
    };
    let variant = candidate.variant.clone();
    Some(Trial::test(name, move || {
        let mut ran = 0;
        for case in [Size::Small, Size::Ragged].into_iter().flat_map(row.cases) {
            if variant.as_ref().is_none_or(|v| takes(&case, v)) {
                agrees(&device, &case)?;
                ran += 1;
            }
        }
        if ran == 0 { Err(Failed::from("no case reaches this variant")) } else { Ok(()) }
    }))
}

fn takes(case: &Case, variant: &str) -> bool {
    case.op.wgsl(&case.specs()).iter().any(|choice| choice.variant == variant)
}

fn agrees(device: &tritter_runtime::Device, case: &Case) -> Result<(), Failed> {
    let seed = fresh_seed();
    let at = || format!("case `{}` with seed {seed}", case.label);
    let finding = check_case(device, case, seed).map_err(|e| format!("{}: {e}", at()))?;
    match finding.fault {
        Some(fault) => Err(format!("{}, variant {}: {fault}", at(), finding.variant).into()),
        None => Ok(()),
    }
}
