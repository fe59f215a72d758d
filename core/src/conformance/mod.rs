//! What every method promises, as tables of statements that a method joins by being registered.
//!
//! [`examine`] holds one method to all that concerns its kind: what it says of itself, then what it
//! does. What takes part in training is put together with stand-ins for the other kinds, on a small
//! float64 model. Each [`Invariant`] is a statement that holds, does not apply, or is violated;
//! none of them knows the method.

mod adapters;
mod bench;
mod datasets;
mod described;
mod examination;
mod example;
mod fixture;
mod interventions;
mod lesson;
mod measure;
mod stand_ins;
mod taps;
#[cfg(test)]
mod tests;
mod training;
mod transforms;

use std::borrow::Cow;

pub use adapters::ADAPTERS;
pub(crate) use bench::Bench;
pub use examination::{Finding, examine, examine_quickly};
pub use fixture::{model, pairs};
pub use lesson::LESSON;
pub use training::TRAINING;

use crate::api::States;
use crate::error::Result;
use crate::registry::{About, AdapterEntry, Entry, InterventionEntry, TransformEntry};

/// A method with its default configuration, or with the fields of this JSON object set.
#[derive(Clone, Debug)]
pub struct Method<E = Entry> {
    /// Its entry: of one kind, or of any.
    pub entry: E,
    /// The fields that are not at their defaults.
    pub json: Cow<'static, str>,
}

impl<E> Method<E> {
    /// With the fields of this JSON object set.
    pub fn new(entry: E, json: impl Into<Cow<'static, str>>) -> Self {
        Self { entry, json: json.into() }
    }

    /// At its defaults.
    pub fn default_of(entry: E) -> Self {
        Self::new(entry, "{}")
    }
}

impl From<Entry> for Method {
    fn from(entry: Entry) -> Self {
        Self::default_of(entry)
    }
}

impl<E: AsRef<About>> std::fmt::Display for Method<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.entry.as_ref().name, if self.json == "{}" { "" } else { &self.json })
    }
}

/// Methods that are trained together.
#[derive(Clone, Debug)]
pub struct Case {
    /// The objective.
    pub intervention: Method<&'static InterventionEntry>,
    /// The adapter.
    pub adapter: Method<&'static AdapterEntry>,
    /// The transform at the taps; none: the states as they are.
    pub transform: Option<Method<&'static TransformEntry>>,
}

impl Case {
    /// The stand-ins, without a transform.
    pub(crate) fn of_stand_ins() -> Self {
        Self {
            intervention: Method::default_of(&stand_ins::INTERVENTION),
            adapter: Method::default_of(&stand_ins::ADAPTER),
            transform: None,
        }
    }

    /// True if the objective compares states, so that taps and transforms matter to it.
    pub fn reads_states(&self) -> bool {
        Bench::new(self, 0).is_ok_and(|bench| bench.objective.needs().states > States::None)
    }
}

/// With stand-ins for the other kinds.
impl From<Method<&'static InterventionEntry>> for Case {
    fn from(intervention: Method<&'static InterventionEntry>) -> Self {
        Self { intervention, ..Self::of_stand_ins() }
    }
}

/// With stand-ins for the other kinds.
impl From<Method<&'static AdapterEntry>> for Case {
    fn from(adapter: Method<&'static AdapterEntry>) -> Self {
        Self { adapter, ..Self::of_stand_ins() }
    }
}

/// With stand-ins for the other kinds.
impl From<Method<&'static TransformEntry>> for Case {
    fn from(transform: Method<&'static TransformEntry>) -> Self {
        Self { transform: Some(transform), ..Self::of_stand_ins() }
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} × {}", self.intervention, self.adapter)?;
        self.transform.iter().try_for_each(|t| write!(f, " × {t}"))
    }
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The statement is true of the case.
    Holds,
    /// It says nothing about such a case, for this reason.
    DoesNotApply(&'static str),
    /// It is false: what was found.
    Violated(String),
}

impl Verdict {
    /// Holds where `error` is at most `limit`.
    fn within(what: &str, error: f64, limit: f64) -> Self {
        // Written so that NaN is a violation.
        if error <= limit {
            Verdict::Holds
        } else {
            Verdict::Violated(format!("{what} off by {error:.2e}, more than {limit:.0e}"))
        }
    }

    /// Holds where nothing was found.
    fn unless(found: Option<String>) -> Self {
        found.map_or(Verdict::Holds, Verdict::Violated)
    }
}

/// A statement: about [`Case`]s, or about single [`Method`]s.
pub struct Invariant<S: 'static = Case> {
    /// The statement.
    pub name: &'static str,
    /// Whether it holds.
    pub check: fn(&S) -> Result<Verdict>,
}

impl<S> std::fmt::Debug for Invariant<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}
