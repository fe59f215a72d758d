//! Checks one method against all invariants for its kind.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::adapters::ADAPTERS;
use super::datasets::DATASETS;
use super::described::DESCRIBED;
use super::interventions::INTERVENTIONS;
use super::lesson::LESSON;
use super::taps::TAPS;
use super::training::TRAINING;
use super::transforms::TRANSFORMS;
use super::{Case, Invariant, Method, Verdict};
use crate::error::{Error, Result};
use crate::hub;
use crate::registry::Entry;

/// The result of checking one invariant of a method.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The invariant as a statement.
    pub statement: &'static str,
    /// The verdict. An error or a panic during the check is a violation.
    pub verdict: Verdict,
    /// Duration of the check.
    pub elapsed: Duration,
}

impl Finding {
    /// Description of the violation, if the invariant is violated.
    pub fn violation(&self) -> Option<&str> {
        match &self.verdict {
            Verdict::Violated(how) => Some(how),
            Verdict::Holds | Verdict::DoesNotApply(_) => None,
        }
    }

    /// Runs `check`. If it fails or panics, the invariant is violated.
    fn of(statement: &'static str, check: impl FnOnce() -> Result<Verdict>) -> Self {
        let start = Instant::now();
        let verdict = match catch_unwind(AssertUnwindSafe(check)) {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(e)) => Verdict::Violated(format!("{e:?}")),
            Err(payload) => {
                Verdict::Violated(format!("{:?}", Error::panicked("it", payload.as_ref())))
            }
        };
        Self { statement, verdict, elapsed: start.elapsed() }
    }
}

/// Formats the verdict and the statement as one line, followed by a description of any violation.
impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.verdict {
            Verdict::Holds => write!(f, "holds     {}", self.statement),
            Verdict::DoesNotApply(why) => write!(f, "-         {}: {why}", self.statement),
            Verdict::Violated(how) => write!(
                f,
                "violated  {}\n          {}",
                self.statement,
                how.replace('\n', "\n          ")
            ),
        }
    }
}

/// Checks a method against all invariants for its kind. The iterator is lazy: each step checks one
/// invariant.
///
/// This function switches the whole process to offline mode. Otherwise, checking the documented
/// example of a data set could download several gigabytes.
pub fn examine(method: impl Into<Method>) -> impl Iterator<Item = Finding> {
    examine_with(method, LESSON)
}

/// Like [`examine`], but without the longer training run, which takes most of the time.
pub fn examine_quickly(method: impl Into<Method>) -> impl Iterator<Item = Finding> {
    examine_with(method, &[])
}

/// Checks a method against all invariants for its kind. `lesson` contains the invariants that need
/// a longer training run; an empty slice skips them.
fn examine_with(
    method: impl Into<Method>,
    lesson: &'static [Invariant],
) -> impl Iterator<Item = Finding> {
    hub::stay_offline();
    let method = method.into();
    let json = method.json.clone();
    let of_kind: Box<dyn Iterator<Item = Finding>> = match method.entry {
        Entry::Intervention(entry) => {
            Box::new(check(Case::from(Method::new(entry, json)), [TRAINING, INTERVENTIONS, lesson]))
        }
        Entry::Adapter(entry) => {
            Box::new(check(Case::from(Method::new(entry, json)), [TRAINING, ADAPTERS, lesson]))
        }
        Entry::Transform(entry) => {
            let transform = Method::new(entry, json);
            Box::new(
                check(transform.clone(), [TRANSFORMS])
                    .chain(check(Case::from(transform), [TRAINING])),
            )
        }
        Entry::Tap(entry) => Box::new(check(Method::new(entry, json), [TAPS])),
        Entry::Dataset(entry) => Box::new(check(Method::new(entry, json), [DATASETS])),
    };
    check(method, [DESCRIBED]).chain(of_kind)
}

/// Checks `subject` against the invariants in all `tables`.
fn check<S, const N: usize>(
    subject: S,
    tables: [&'static [Invariant<S>]; N],
) -> impl Iterator<Item = Finding> {
    tables
        .into_iter()
        .flatten()
        .map(move |invariant| Finding::of(invariant.name, || (invariant.check)(&subject)))
}
