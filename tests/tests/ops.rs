//! Every row on every device that is present, in every variant that the device allows.

use libtest_mimic::{Arguments, Failed, Trial};
use tritter_runtime::Device;
use tritter_runtime::check::{Placement, check_placed};
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
    let ignored = |why: &str| Some(Trial::test(format!("{name} ({why})"), || Ok(())).with_ignored_flag(true));
    let device = match &candidate.device {
        Ok(device) => device.clone(),
        Err(why) => return ignored(why),
    };
    let (variant, sliced) = (candidate.variant.clone(), candidate.sliced);
    if let Some(missing) = variant.as_ref().and_then(|v| v.missing(row, device.caps())) {
        return ignored(&format!("{} has no {missing}", device.label()));
    }
    Some(Trial::test(name, move || {
        let mut ran = 0;
        let takes =
            |case: &Case| case.fits(device.caps()) && variant.as_ref().is_none_or(|v| v.takes(case, device.caps()));
        for case in [Size::Small, Size::Ragged].into_iter().flat_map(row.cases).filter(takes) {
            agrees(&device, &case, Placement::Aligned)?;
            if sliced {
                agrees(&device, &case, Placement::Sliced)?;
            }
            ran += 1;
        }
        if ran == 0 { Err(Failed::from("no case reaches this variant")) } else { Ok(()) }
    }))
}

fn agrees(device: &Device, case: &Case, placement: Placement) -> Result<(), Failed> {
    let seed = fresh_seed();
    let at = || format!("case `{}` ({placement:?}) with seed {seed}", case.label);
    let finding = check_placed(device, case, seed, placement).map_err(|e| format!("{}: {e}", at()))?;
    match finding.fault {
        Some(fault) => Err(format!("{}, variant {}: {fault}", at(), finding.variant).into()),
        None => Ok(()),
    }
}
