//! The report of a self-test, with one row for each comparison or measurement.

use serde::Serialize;
use serde_json::{Value, json};

use super::Section;
use crate::error::Error;
use crate::report::{Align, Grid};

/// The outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The difference is within the tolerance.
    Ok,
    /// The difference is larger than the tolerance, or the computation failed.
    Failed,
    /// The check does not apply, or could not run on this machine. The row gives the reason.
    Skipped,
    /// A measurement, which can neither pass nor fail.
    Measured,
}

/// A difference between two computations, and its tolerance.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Description of the quantity that was compared.
    pub of: String,
    /// The difference, relative to the size of the quantity.
    pub worst: f64,
    /// Maximum allowed difference.
    pub tolerance: f64,
}

impl Difference {
    /// Creates a difference of `worst` in the quantity `of`.
    pub fn new(of: impl Into<String>, worst: f64, tolerance: f64) -> Self {
        Self { of: of.into(), worst, tolerance }
    }

    /// True if the difference is within the tolerance. False for NaN.
    pub fn passes(&self) -> bool {
        self.worst <= self.tolerance
    }

    /// The difference divided by its tolerance; infinite for NaN.
    fn ratio(&self) -> f64 {
        let ratio = self.worst / self.tolerance;
        if ratio.is_nan() { f64::INFINITY } else { ratio }
    }

    /// Returns the difference that is largest relative to its tolerance.
    pub fn worst_of(all: impl IntoIterator<Item = Self>) -> Option<Self> {
        all.into_iter().max_by(|a, b| a.ratio().total_cmp(&b.ratio()))
    }
}

/// One row of the report. A check can have several rows.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Section that the check belongs to.
    pub section: Section,
    /// Name of the tested plugin, architecture or computation.
    pub name: String,
    /// The quantities that were compared, or the measurement.
    pub compared: String,
    /// The largest difference, relative to the size of the compared quantity; `None` if nothing was
    /// compared. In JSON, infinity and NaN become null.
    pub worst: Option<f64>,
    /// Maximum allowed difference.
    pub tolerance: Option<f64>,
    /// The outcome.
    pub outcome: Outcome,
    /// Additional machine-readable values, for example pairs per second.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub values: Value,
    /// Duration of the check in seconds.
    pub seconds: f64,
}

impl Row {
    /// Creates a row without a difference.
    pub fn new(
        section: Section,
        name: impl Into<String>,
        outcome: Outcome,
        compared: impl Into<String>,
    ) -> Self {
        Self {
            section,
            name: name.into(),
            compared: compared.into(),
            worst: None,
            tolerance: None,
            outcome,
            values: Value::Null,
            seconds: 0.0,
        }
    }

    /// Creates the row of a comparison. The outcome is `Ok` if the difference is within the
    /// tolerance, and `Failed` otherwise.
    pub fn of(section: Section, name: impl Into<String>, difference: Difference) -> Self {
        let outcome = if difference.passes() { Outcome::Ok } else { Outcome::Failed };
        let row = Self::new(section, name, outcome, difference.of);
        Self { worst: Some(difference.worst), tolerance: Some(difference.tolerance), ..row }
    }

    /// Creates the row of a check that ended with an error. The row includes the causes and hints
    /// of the error.
    pub fn error(section: Section, name: impl Into<String>, e: &Error) -> Self {
        let hints: String = e.hints().iter().map(|hint| format!("; hint: {hint}")).collect();
        Self::new(section, name, Outcome::Failed, format!("{}{hints}", e.in_a_line()))
    }

    /// The section and the name, as shown in error messages and in the progress display.
    pub fn full_name(&self) -> String {
        format!("{}: {}", self.section.name(), self.name)
    }
}

/// All checks of a self-test.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The tested device, e.g. `cpu` or `cuda:0`.
    pub device: String,
    /// The libtorch release that the program was built with.
    pub libtorch: &'static str,
    /// The release of reprpo.
    pub version: &'static str,
    /// True if all checks ran, false if only the quick ones did.
    pub full: bool,
    /// The checks, in the order in which they ran.
    pub rows: Vec<Row>,
    /// Duration in seconds.
    pub seconds: f64,
}

impl Report {
    /// The failed checks.
    pub fn failed(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.outcome == Outcome::Failed)
    }

    fn count(&self, outcome: Outcome) -> usize {
        self.rows.iter().filter(|row| row.outcome == outcome).count()
    }

    /// The report as a JSON object.
    pub fn json(&self) -> Value {
        let mut value = json!(self);
        value["ok"] = json!(self.failed().next().is_none());
        value
    }

    /// The report as a table for a terminal, followed by a line with the number of rows for each
    /// outcome.
    pub fn plain(&self) -> String {
        let columns = [
            ("check", Align::Left),
            ("s", Align::Right),
            ("worst", Align::Right),
            ("tolerance", Align::Right),
            ("result", Align::Left),
            ("compared", Align::Left),
        ];
        let mut grid = Grid::new(columns);
        let number = |v: Option<f64>| {
            v.map_or_else(
                String::new,
                |v| if v == 0.0 { "0".to_owned() } else { format!("{v:.1e}") },
            )
        };
        for row in &self.rows {
            let result = match row.outcome {
                Outcome::Ok => "ok",
                Outcome::Failed => "FAILED",
                Outcome::Skipped => "skipped",
                Outcome::Measured => "",
            };
            let seconds = format!("{:.1}", row.seconds);
            grid.row([
                row.full_name(),
                seconds,
                number(row.worst),
                number(row.tolerance),
                result.to_owned(),
                row.compared.clone(),
            ]);
        }
        let [ok, failed, skipped] =
            [Outcome::Ok, Outcome::Failed, Outcome::Skipped].map(|outcome| self.count(outcome));
        format!(
            "{}\n{} on {}: {ok} ok, {failed} failed, {skipped} skipped, in {:.0} s\n",
            grid.plain(),
            if failed == 0 { "passed" } else { "FAILED" },
            self.device,
            self.seconds
        )
    }

    /// Turns failed checks into an error that names them.
    ///
    /// # Errors
    /// Fails if any check failed.
    pub fn verdict(&self) -> Result<(), Error> {
        const NAMED: usize = 8;
        let mut failed: Vec<String> =
            self.failed().map(|row| format!("`{}`", row.full_name())).collect();
        // A check can have several rows.
        failed.dedup();
        let Some(first) = self.failed().next() else { return Ok(()) };
        let more = failed.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let e = Error::new(format!(
            "{} of {} checks failed on {}: {}{more}",
            self.failed().count(),
            self.rows.len(),
            self.device,
            failed[..failed.len().min(NAMED)].join(", ")
        ));
        let full = if self.full { " --full" } else { "" };
        Err(e
            .hint(format!(
                "repeat the section of the first failure with \
                `reprpo selftest --device {}{full} --only {}`",
                self.device,
                first.section.name()
            ))
            .hint("do not trust results from this machine, and report this table as a bug"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(rows: Vec<Row>) -> Report {
        Report {
            device: "cpu".to_owned(),
            libtorch: "2",
            version: "0",
            full: false,
            rows,
            seconds: 1.0,
        }
    }

    #[test]
    fn a_difference_that_is_not_a_number_fails() {
        let of = |worst| Difference::new("loss", worst, 1e-4);
        assert!(of(1e-4).passes() && !of(1.1e-4).passes() && !of(f64::NAN).passes());
        let worst = Difference::worst_of([of(0.0), of(f64::NAN), of(1.0)]).unwrap();
        assert!(worst.worst.is_nan());
        let row = Row::of(Section::Methods, "x", of(f64::NAN));
        assert_eq!(row.outcome, Outcome::Failed);
    }

    #[test]
    fn the_verdict_is_an_error_that_names_the_failed_checks() {
        let rows = |outcome| {
            vec![
                Row::new(Section::Speed, "a", outcome, ""),
                Row::new(Section::Speed, "b", Outcome::Measured, ""),
            ]
        };
        assert!(report(rows(Outcome::Skipped)).verdict().is_ok());
        let failed = report(rows(Outcome::Failed));
        let e = failed.verdict().unwrap_err();
        assert_eq!(e.message(), "1 of 2 checks failed on cpu: `speed: a`");
        assert_eq!(failed.json()["ok"], json!(false));
        assert!(failed.plain().contains("FAILED on cpu: 0 ok, 1 failed, 0 skipped"));
    }
}
