//! Tests the program on the user's machine.
//!
//! The test creates its own models and data, so it needs only the program and libtorch. It runs the
//! same code as a normal run. Each result is compared with a simple reference implementation or
//! with values from transformers. Each comparison adds a [`Row`] to the [`Report`]. The tested
//! methods come from the registry. This module must not name any method.

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
    /// Attention with all strategies and kernels.
    Attention,
    /// Scores and decoding with every architecture.
    Models,
    /// Short training runs with every plugin and every architecture.
    Methods,
    /// Conformance tests of every plugin. For example, gradients must agree with finite
    /// differences.
    Promises,
    /// Repeated runs, which must write the same bytes.
    Determinism,
    /// Speed and memory of training.
    Speed,
    /// Speed and memory compared with TRL and PEFT.
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

    /// True if the section only uses tiny models.
    const fn is_tiny(self) -> bool {
        matches!(
            self,
            Section::Models | Section::Methods | Section::Promises | Section::Determinism
        )
    }

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

/// The scope of a self-test.
#[derive(Clone, Debug)]
pub struct Options {
    /// The device to test, with the same syntax as the option `--device` of `reprpo run`.
    pub device: String,
    /// True to run all checks. False to run a selection that takes about a minute.
    pub full: bool,
    /// True to also compare the speed with TRL and PEFT.
    pub peer: bool,
    /// The sections to run. If empty, the other options select the sections.
    pub only: Vec<Section>,
}

impl Options {
    /// True if the options select `section`.
    fn runs(&self, section: Section) -> bool {
        match section {
            _ if self.only.contains(&section) => true,
            Section::Peer => self.peer,
            _ => self.only.is_empty(),
        }
    }
}

/// Tests the device. `defaults` is TOML with the default plugin of each kind. A check that varies
/// one kind of plugin uses the defaults for the other kinds.
///
/// # Errors
/// Fails if the device does not exist, or if temporary files cannot be written. Returns
/// `Error::interrupted` if `stop` became true. A failed check is a row of the report, not an error.
pub fn run(
    options: &Options,
    defaults: &str,
    registry: &Registry,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<Report> {
    let begin = Instant::now();
    if options.runs(Section::Doctor) {
        // Load CUDA before libtorch is used. The doctor section reports on GPUs, even if only the
        // CPU is tested.
        ffi::load_cuda();
    }
    let device = session::device(&options.device)?;
    let mut test = Selftest {
        options,
        device,
        threads: tch::get_num_threads(),
        workshop: Workshop::new(defaults, registry)?,
        stop,
        progress,
        rows: Vec::new(),
    };
    for section in Section::ALL.into_iter().filter(|section| options.runs(*section)) {
        // Reset these settings, because runs and attention checks change them.
        ffi::set_tf32(false)?;
        ffi::set_deterministic(true)?;
        let _threads = section.is_tiny().then(|| Threads::set(1));
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
    /// Number of threads that a normal run uses.
    threads: i32,
    workshop: Workshop,
    stop: &'a AtomicBool,
    progress: &'a mut dyn Progress,
    rows: Vec<Row>,
}

impl Selftest<'_> {
    fn begin(&mut self, section: Section, checks: usize) {
        self.progress.stage(section.name(), Some(checks as u64));
    }

    /// Runs one check of a section and adds the resulting rows to the report. An error becomes a
    /// failed row.
    ///
    /// # Errors
    /// Returns `Error::interrupted` if the user stopped the test. Fails if temporary files can no
    /// longer be written.
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
        // tch's operators panic if libtorch fails.
        let outcome = catch_unwind(AssertUnwindSafe(|| check(self)))
            .unwrap_or_else(|payload| Err(Error::panicked(name, payload.as_ref())));
        let outcome = outcome.and_then(|rows| faults::check().map(|()| rows));
        let mut rows = match outcome {
            Ok(rows) => rows,
            Err(e) if e.fault() == Fault::Interrupted => return Err(self.interrupted()),
            Err(e) if cannot_write(&e) => return Err(self.workshop.explain(e)),
            // These sections use models of realistic size. If a model does not fit in memory, skip
            // the check instead of failing it.
            Err(e)
                if [Section::Speed, Section::Peer].contains(&section)
                    && e.out_of_memory().is_some() =>
            {
                vec![Row::new(section, name, Outcome::Skipped, e.in_a_line())]
            }
            Err(e) => vec![Row::error(section, name, &e)],
        };
        let seconds = begin.elapsed().as_secs_f64() / rows.len().max(1) as f64;
        for row in &mut rows {
            row.seconds = seconds;
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

/// Sets the number of libtorch's threads, and restores it when dropped.
///
/// Tiny models use one thread, because more threads do not make them faster. On a busy machine,
/// several threads would make the self-test ten times slower: each operation would wait for the
/// slowest thread.
struct Threads {
    before: i32,
}

impl Threads {
    fn set(number: i32) -> Self {
        let before = tch::get_num_threads();
        tch::set_num_threads(number);
        Self { before }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        tch::set_num_threads(self.before);
    }
}

/// True if the disk is full, a quota is exceeded or the file system is read-only. The self-test
/// then stops, because all further checks would fail too.
fn cannot_write(e: &Error) -> bool {
    // ENOSPC, EDQUOT and EROFS. Search the message for these codes: some libraries keep only the
    // message of the system error.
    const CODES: [i32; 3] = [28, 122, 30];
    let text = e.in_a_line();
    CODES.iter().any(|code| text.contains(&format!("(os error {code})")))
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Double => "f64",
        Kind::BFloat16 => "bf16",
        Kind::Half => "f16",
        _ => "f32",
    }
}
