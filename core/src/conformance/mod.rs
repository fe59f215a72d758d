//! What every method promises, as tables of statements that a method joins by being registered.
//!
//! [`examine`] holds one method to all that concerns its kind: what it says of itself, then what it does. What takes
//! part in training is put together with stand-ins for the other kinds, on a small float64 model. Each [`Invariant`] is
//! a statement that holds, does not apply, or is violated; none of them knows the method.

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
pub use examination::{Finding, examine};
pub use fixture::{model, pairs};
pub use lesson::LESSON;
pub use training::TRAINING;

use crate::api::States;
use crate::error::{Error, Result};
use crate::registry::{Entry, Kind};

/// A method with its default configuration, or with the fields of this JSON object set.
#[derive(Clone, Debug)]
pub struct Method {
    /// Which one.
    pub entry: &'static Entry,
    /// The fields that are not at their defaults.
    pub json: Cow<'static, str>,
}

impl Method {
    /// With the fields of this JSON object set.
    pub fn new(entry: &'static Entry, json: impl Into<Cow<'static, str>>) -> Self {
        Self { entry, json: json.into() }
    }

    /// As it is when nothing is said.
    pub fn default_of(entry: &'static Entry) -> Self {
        Self::new(entry, "{}")
    }
}

impl From<&'static Entry> for Method {
    fn from(entry: &'static Entry) -> Self {
        Self::default_of(entry)
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.entry.about.name, if self.json == "{}" { "" } else { &self.json })
    }
}

/// What is put together.
#[derive(Clone, Debug)]
pub struct Case {
    /// The objective.
    pub intervention: Method,
    /// The adapter.
    pub adapter: Method,
    /// The transform at the taps; none: the states as they are.
    pub transform: Option<Method>,
}

impl Case {
    /// An intervention, an adapter or a transform with stand-ins for the other kinds.
    ///
    /// # Errors
    /// A method of another kind, which trains nothing.
    pub fn of(method: &Method) -> Result<Self> {
        let mut case = Self { intervention: Method::default_of(&stand_ins::INTERVENTION), adapter: Method::default_of(&stand_ins::ADAPTER), transform: None };
        match method.entry.kind() {
            Kind::Intervention => case.intervention = method.clone(),
            Kind::Adapter => case.adapter = method.clone(),
            Kind::Transform => case.transform = Some(method.clone()),
            Kind::Tap | Kind::Dataset => return Err(wrong_kind(method)),
        }
        Ok(case)
    }

    /// Whether the objective compares states, so that taps and transforms matter to it.
    pub fn reads_states(&self) -> bool {
        Bench::new(self, 0).is_ok_and(|bench| bench.objective.needs().states > States::None)
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} × {}", self.intervention, self.adapter)?;
        self.transform.iter().try_for_each(|t| write!(f, " × {t}"))
    }
}

/// The error of a method that was taken for one of another kind.
fn wrong_kind(method: &Method) -> Error {
    Error::internal(format!("`{}` is of another kind", method.entry.about.name))
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
        if error <= limit { Verdict::Holds } else { Verdict::Violated(format!("{what} off by {error:.2e}, more than {limit:.0e}")) }
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
