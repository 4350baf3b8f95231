//! What was checked and how it went: as JSON and as a table.

use serde::ser::{Serialize, SerializeStruct, Serializer};
use std::fmt;
use std::path::Path;
use tritter_runtime::Device;

/// One comparison.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Check {
    /// Golden tensor or section, with the measure in brackets where it is not the largest difference.
    pub name: String,
    /// The error found; infinite (`null` in JSON) where a result is not finite.
    pub max_abs: f64,
    /// The largest error allowed.
    pub bound: f64,
    /// Is the error within the bound?
    pub pass: bool,
}

/// Everything checked in one folder.
#[derive(Clone, Debug)]
pub struct Report {
    /// The folder.
    pub model: String,
    /// The device.
    pub device: String,
    /// All comparisons, in the order in which they were made.
    pub checks: Vec<Check>,
    /// Golden values and tensors that nothing checks.
    pub unknown: Vec<String>,
    /// Explanations of failures for people.
    pub notes: Vec<String>,
    golden: usize,
}

impl Report {
    pub(super) fn new(folder: &Path, device: &Device) -> Report {
        let model = folder.display().to_string();
        let (checks, unknown, notes) = Default::default();
        Report { model, device: device.label(), checks, unknown, notes, golden: 0 }
    }

    /// Comparisons within their bounds.
    pub fn passed(&self) -> usize {
        self.checks.iter().filter(|check| check.pass).count()
    }

    /// Comparisons beyond their bounds.
    pub fn failed(&self) -> usize {
        self.checks.len() - self.passed()
    }

    /// Did all go well? The error is one sentence: a check failed, or the folder
    /// has no golden value to compare with.
    pub fn outcome(&self) -> Result<(), String> {
        match (self.failed(), self.golden) {
            (0, 0) => {
                Err(format!("{}: nothing was checked, for it holds no golden output that is known here", self.model))
            }
            (0, _) => Ok(()),
            (failed, _) => Err(format!("{}: {failed} of {} checks failed", self.model, self.checks.len())),
        }
    }

    /// Adds a comparison with a golden value.
    pub(super) fn golden(&mut self, name: impl Into<String>, error: f64, bound: f64) {
        self.golden += 1;
        self.add(name, error, bound);
    }

    /// Adds a check of the folder itself.
    pub(super) fn add(&mut self, name: impl Into<String>, error: f64, bound: f64) {
        // A NaN does not pass.
        self.checks.push(Check { name: name.into(), max_abs: error, bound, pass: error <= bound });
    }

    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Did checks end before golden values were looked at?
    pub(super) fn stopped(&self) -> bool {
        self.golden == 0 && self.failed() > 0
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Report", 6)?;
        fields.serialize_field("model", &self.model)?;
        fields.serialize_field("device", &self.device)?;
        fields.serialize_field("checks", &self.checks)?;
        fields.serialize_field("passed", &self.passed())?;
        fields.serialize_field("failed", &self.failed())?;
        fields.serialize_field("unknown", &self.unknown)?;
        fields.end()
    }
}

impl fmt::Display for Report {
    /// A table for people, one line a check, then what is unknown and a summary.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0).max(5);
        writeln!(f, "{} on {}", self.model, self.device)?;
        writeln!(f, "{:<width$}  {:>9}  {:>9}", "check", "error", "bound")?;
        for Check { name, max_abs, bound, pass } in &self.checks {
            let verdict = if *pass { "pass" } else { "FAIL" };
            writeln!(f, "{name:<width$}  {:>9}  {:>9}  {verdict}", figure(*max_abs), figure(*bound))?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        for name in &self.unknown {
            writeln!(f, "unknown: {name}")?;
        }
        writeln!(f, "{} passed, {} failed, {} unknown", self.passed(), self.failed(), self.unknown.len())
    }
}

/// Counts as they are, other figures with three digits.
fn figure(value: f64) -> String {
    if value == value.trunc() && value.abs() < 1e6 { format!("{value}") } else { format!("{value:.2e}") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn report() -> Report {
        let device = tritter_runtime::cpu::open();
        let mut report = Report::new(Path::new("folder"), &device);
        report.golden("logits", 5e-6, 1e-4);
        report
    }

    #[test]
    fn json_has_exactly_the_promised_fields() {
        let json = serde_json::to_value(report()).unwrap();
        let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["model", "device", "checks", "passed", "failed", "unknown"]);
        let check = serde_json::json!({"name": "logits", "max_abs": 5e-6, "bound": 1e-4, "pass": true});
        assert_eq!(json["checks"], serde_json::json!([check]));
        assert_eq!((json["passed"].as_u64(), json["failed"].as_u64()), (Some(1), Some(0)));
    }

    #[test]
    fn what_is_not_a_number_fails() {
        let mut report = report();
        assert!(report.outcome().is_ok());
        report.golden("act", f64::NAN, 1.0);
        assert_eq!(report.failed(), 1);
        assert!(report.outcome().unwrap_err().contains("1 of 2 checks failed"));
    }

    #[test]
    fn a_folder_without_golden_values_does_not_pass() {
        let mut report = report();
        report.golden = 0;
        assert!(report.outcome().unwrap_err().contains("nothing was checked"));
    }

    #[test]
    fn the_table_names_every_check() {
        let text = report().to_string();
        assert!(text.contains("logits    5.00e-6    1.00e-4  pass"), "{text}");
        assert!(text.ends_with("1 passed, 0 failed, 0 unknown\n"), "{text}");
    }
}
