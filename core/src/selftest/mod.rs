//! A test of the machine that the program runs on.
//!
//! The models and the data are made on the spot, so that nothing but the program and libtorch is
//! needed. Every comparison is a [`Row`] of the [`Report`]: a computation as users run it, on the
//! tested device, against one that takes the plainest way, or against values that transformers
//! computed. No method is named here. The registry knows which there are.

mod attention;
mod determinism;
mod methods;
mod models;
mod pairs;
mod peer;
mod products;
mod promises;
mod report;
mod shapes;
mod speed;
#[cfg(test)]
mod tests;
mod trial;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::Serialize;
use tch::{Device, Kind};

pub use report::{Difference, Outcome, Report, Row};
use trial::Workshop;

use crate::doctor::{self, State};
use crate::error::{Error, Fault, Result};
use crate::ffi;
use crate::guard::faults;
use crate::registry::Registry;
use crate::report::Progress;
use crate::session;

/// A part of the self-test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Section {
    /// The checks of `reprpo doctor`.
    Doctor,
    /// Matrix products with frozen weights.
    Products,
    /// Every way to compute attention.
    Attention,
    /// The scores and the decoding of every architecture.
    Models,
    /// Short training runs with every plugin and every architecture.
    Methods,
    /// The promises of every plugin, such as gradients that agree with finite differences.
    Promises,
    /// Runs that are repeated.
    Determinism,
    /// Speed and memory of training.
    Speed,
    /// The same with TRL and PEFT.
    Peer,
}

impl Section {
    /// All sections, in the order in which they run.
    pub const ALL: [Section; 9] = [
        Section::Doctor,
        Section::Products,
        Section::Attention,
        Section::Models,
        Section::Methods,
        Section::Promises,
        Section::Determinism,
        Section::Speed,
        Section::Peer,
    ];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Section::Doctor => "doctor",
            Section::Products => "products",
            Section::Attention => "attention",
            Section::Models => "models",
            Section::Methods => "methods",
            Section::Promises => "promises",
            Section::Determinism => "determinism",
            Section::Speed => "speed",
            Section::Peer => "peer",
        }
    }
}

/// The extent of a self-test.
#[derive(Clone, Debug)]
pub struct Options {
    /// The device to test, as in `--device` of a run.
    pub device: String,
    /// True to run everything, and not only what takes about a minute.
    pub full: bool,
    /// True to compare the speed with TRL and PEFT.
    pub peer: bool,
    /// The sections to run; empty for all that the other options ask for.
    pub only: Vec<Section>,
}

impl Options {
    /// True if `section` runs.
    fn runs(&self, section: Section) -> bool {
        if !self.only.is_empty() {
            return self.only.contains(&section);
        }
        match section {
            Section::Promises => self.full,
            Section::Peer => self.peer,
            _ => true,
        }
    }
}

/// Tests the device. The binary's `defaults`, as TOML, say which plugins are used where a check
/// needs any.
///
/// # Errors
/// Fails if the device does not exist or if temporary files cannot be written; `Error::interrupted`
/// if `stop` turned true. A check that fails is a row of the report, and not an error.
pub fn run(
    options: &Options,
    defaults: &str,
    registry: &Registry,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<Report> {
    let begin = Instant::now();
    let device = session::device(&options.device)?;
    ffi::set_tf32(false)?;
    ffi::set_deterministic(true)?;
    let mut test = Selftest {
        options,
        device,
        workshop: Workshop::new(defaults, registry)?,
        stop,
        progress,
        rows: Vec::new(),
    };
    for section in Section::ALL.into_iter().filter(|section| options.runs(*section)) {
        match section {
            Section::Doctor => test.doctor()?,
            Section::Products => products::check(&mut test)?,
            Section::Attention => attention::check(&mut test)?,
            Section::Models => models::check(&mut test)?,
            Section::Methods => methods::check(&mut test)?,
            Section::Promises => promises::check(&mut test, registry)?,
            Section::Determinism => determinism::check(&mut test)?,
            Section::Speed => speed::check(&mut test)?,
            Section::Peer => peer::check(&mut test)?,
        }
        test.progress.finish();
    }
    let rows = test.rows;
    Ok(Report {
        device: session::device_name(device),
        libtorch: ffi::LIBTORCH_VERSION,
        version: env!("CARGO_PKG_VERSION"),
        full: options.full,
        rows,
        seconds: begin.elapsed().as_secs_f64(),
    })
}

/// A self-test in progress.
struct Selftest<'a> {
    options: &'a Options,
    device: Device,
    workshop: Workshop,
    stop: &'a AtomicBool,
    progress: &'a mut dyn Progress,
    rows: Vec<Row>,
}

impl Selftest<'_> {
    /// Announces a section of so many checks.
    fn begin(&mut self, section: Section, checks: usize) {
        self.progress.stage(section.name(), Some(checks as u64));
    }

    /// Runs one check of a section, and adds the rows that it gives. An error of the check is a
    /// failed row.
    ///
    /// # Errors
    /// `Error::interrupted` if the user stopped the test.
    fn check(
        &mut self,
        section: Section,
        name: &str,
        check: impl FnOnce(&mut Self) -> Result<Vec<Row>>,
    ) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(self.interrupted());
        }
        let begin = Instant::now();
        // libtorch's errors are panics of tch's operators.
        let outcome = catch_unwind(AssertUnwindSafe(|| check(self)))
            .unwrap_or_else(|payload| Err(Error::panicked(name, payload.as_ref())));
        let outcome = outcome.and_then(|rows| faults::check().map(|()| rows));
        let mut rows = match outcome {
            Ok(rows) => rows,
            Err(e) if e.fault() == Fault::Interrupted => return Err(self.interrupted()),
            Err(e) => vec![Row::error(section, name, &e)],
        };
        // Rows of one check share its time unless they have their own.
        let own: f64 = rows.iter().map(|row| row.seconds).sum();
        let without = rows.iter().filter(|row| row.seconds == 0.0).count().max(1);
        let share = (begin.elapsed().as_secs_f64() - own).max(0.0) / without as f64;
        for row in &mut rows {
            if row.seconds == 0.0 {
                row.seconds = share;
            }
            if row.outcome == Outcome::Failed {
                let numbers =
                    row.worst.zip(row.tolerance).map_or_else(String::new, |(worst, most)| {
                        format!(", off by {worst:.1e}, more than {most:.1e}")
                    });
                self.progress.message(&format!(
                    "FAILED {}: {}{numbers}",
                    row.full_name(),
                    row.compared
                ));
            }
        }
        self.rows.extend(rows);
        self.progress.advance(1, &[]);
        Ok(())
    }

    fn interrupted(&self) -> Error {
        Error::interrupted(format!("interrupted after {} checks", self.rows.len()))
    }

    /// The checks of `reprpo doctor`.
    fn doctor(&mut self) -> Result<()> {
        self.begin(Section::Doctor, 1);
        self.check(Section::Doctor, "doctor", |_| {
            let row = |check: doctor::Check| {
                let outcome = match check.state {
                    State::Good => Outcome::Ok,
                    State::Absent | State::Limited => Outcome::Measured,
                    State::Broken => Outcome::Failed,
                };
                let hint = check
                    .hint
                    .filter(|_| check.state != State::Absent)
                    .map_or_else(String::new, |hint| format!("; hint: {hint}"));
                Row::new(Section::Doctor, check.name, outcome, format!("{}{hint}", check.found))
            };
            Ok(doctor::checks().into_iter().map(row).collect())
        })
    }
}

/// The name of a kind of numbers in rows.
fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Double => "f64",
        Kind::BFloat16 => "bf16",
        Kind::Half => "f16",
        _ => "f32",
    }
}
