//! Tokenizers against `golden.json`.

use super::bounds;
use super::report::Report;
use anyhow::Result;
use std::path::Path;
use tritter_model::tokenizer_golden::{check_golden, unknown_sections};

/// Compares all sections; the error of one is the number of wrong entries.
pub(super) fn check(folder: &Path, report: &mut Report) -> Result<()> {
    for check in check_golden(folder)? {
        report.golden(format!("tokenizer {}", check.name), check.wrong as f64, bounds::EQUAL);
        if let Some(difference) = check.first_difference {
            report.note(format!("{}: {difference}", check.name));
        }
    }
    let unknown = unknown_sections(folder)?.into_iter();
    report.unknown.extend(unknown.map(|key| format!("golden.json {key}")));
    Ok(())
}
