//! One method held to all that concerns its kind.

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

/// A statement about a method, and its verdict.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The statement.
    pub statement: &'static str,
    /// Its verdict. An error or a panic on the way is a violation.
    pub verdict: Verdict,
    /// How long it took.
    pub elapsed: Duration,
}

impl Finding {
    /// What was found where the statement is false.
    pub fn violation(&self) -> Option<&str> {
        match &self.verdict {
            Verdict::Violated(how) => Some(how),
            Verdict::Holds | Verdict::DoesNotApply(_) => None,
        }
    }

    /// Of a check that may fail or panic.
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

/// A line, and below it what is wrong.
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

/// Holds a method to all that concerns its kind, one statement after the other as the findings are
/// asked for.
///
/// From here on the process is offline: a method's promises are checked with what is here, and its
/// documented example may be gigabytes on the hub.
pub fn examine(method: impl Into<Method>) -> impl Iterator<Item = Finding> {
    examine_with(method, LESSON)
}

/// Like [`examine`], but without the statement that takes most of the time, a longer training run.
pub fn examine_quickly(method: impl Into<Method>) -> impl Iterator<Item = Finding> {
    examine_with(method, &[])
}

/// Examines a method, with these statements about what it learns.
fn examine_with(
    method: impl Into<Method>,
    lesson: &'static [Invariant],
) -> impl Iterator<Item = Finding> {
    hub::stay_offline();
    let method = method.into();
    let json = method.json.clone();
    let of_kind: Box<dyn Iterator<Item = Finding>> = match method.entry {
        Entry::Intervention(entry) => {
            Box::new(held(Case::from(Method::new(entry, json)), [TRAINING, INTERVENTIONS, lesson]))
        }
        Entry::Adapter(entry) => {
            Box::new(held(Case::from(Method::new(entry, json)), [TRAINING, ADAPTERS, lesson]))
        }
        Entry::Transform(entry) => {
            let transform = Method::new(entry, json);
            Box::new(
                held(transform.clone(), [TRANSFORMS])
                    .chain(held(Case::from(transform), [TRAINING])),
            )
        }
        Entry::Tap(entry) => Box::new(held(Method::new(entry, json), [TAPS])),
        Entry::Dataset(entry) => Box::new(held(Method::new(entry, json), [DATASETS])),
    };
    held(method, [DESCRIBED]).chain(of_kind)
}

/// Holds one subject to the statements of these tables.
fn held<S, const N: usize>(
    subject: S,
    tables: [&'static [Invariant<S>]; N],
) -> impl Iterator<Item = Finding> {
    tables
        .into_iter()
        .flatten()
        .map(move |statement| Finding::of(statement.name, || (statement.check)(&subject)))
}
