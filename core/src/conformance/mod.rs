//! The conformance tests: invariants that every registered method must satisfy.
//!
//! [`examine`] checks one method against all invariants for its kind. It checks the method's
//! description first and then its behaviour. Interventions, adapters and transforms are trained on
//! a small float64 model. An adapter can only be trained together with an intervention and vice
//! versa, so simple stand-ins replace the missing methods. Each [`Invariant`] either holds, does
//! not apply or is violated. Invariants must not contain code for a specific method.

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
pub(crate) mod stand_ins;
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

/// A method and its configuration.
#[derive(Clone, Debug)]
pub struct Method<E = Entry> {
    /// The method's registry entry.
    pub entry: E,
    /// JSON object with the fields that differ from the defaults.
    pub json: Cow<'static, str>,
}

impl<E> Method<E> {
    /// Creates a method with the given configuration, a JSON object. Missing fields take their
    /// default values.
    pub fn new(entry: E, json: impl Into<Cow<'static, str>>) -> Self {
        Self { entry, json: json.into() }
    }

    /// Creates a method with its default configuration.
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

/// A combination of methods that are trained together.
#[derive(Clone, Debug)]
pub struct Case {
    /// The intervention.
    pub intervention: Method<&'static InterventionEntry>,
    /// The adapter.
    pub adapter: Method<&'static AdapterEntry>,
    /// The transform at the taps; `None` for the identity.
    pub transform: Option<Method<&'static TransformEntry>>,
}

impl Case {
    /// Combines the stand-in intervention and adapter, without a transform.
    pub(crate) fn of_stand_ins() -> Self {
        Self {
            intervention: Method::default_of(&stand_ins::INTERVENTION),
            adapter: Method::default_of(&stand_ins::ADAPTER),
            transform: None,
        }
    }

    /// True if the intervention reads states, so that taps and transforms affect it.
    pub fn reads_states(&self) -> bool {
        Bench::new(self, 0).is_ok_and(|bench| bench.objective.needs().states > States::None)
    }
}

/// Uses the stand-in adapter and no transform.
impl From<Method<&'static InterventionEntry>> for Case {
    fn from(intervention: Method<&'static InterventionEntry>) -> Self {
        Self { intervention, ..Self::of_stand_ins() }
    }
}

/// Uses the stand-in intervention and no transform.
impl From<Method<&'static AdapterEntry>> for Case {
    fn from(adapter: Method<&'static AdapterEntry>) -> Self {
        Self { adapter, ..Self::of_stand_ins() }
    }
}

/// Uses the stand-in intervention and the stand-in adapter.
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

/// The result of checking an invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The invariant holds.
    Holds,
    /// The invariant does not apply. The string gives the reason.
    DoesNotApply(&'static str),
    /// The invariant is violated. The string describes the violation.
    Violated(String),
}

impl Verdict {
    /// Returns `Holds` if `error` is at most `limit`, and `Violated` otherwise. `what` names the
    /// computed value in the message.
    fn within(what: &str, error: f64, limit: f64) -> Self {
        // The comparison is false for NaN, so NaN counts as a violation.
        if error <= limit {
            Verdict::Holds
        } else {
            Verdict::Violated(format!("{what} is off by {error:.2e}, more than {limit:.0e}"))
        }
    }

    /// Returns `Violated` with the description in `violation`, or `Holds` if there is none.
    fn unless(violation: Option<String>) -> Self {
        violation.map_or(Verdict::Holds, Verdict::Violated)
    }
}

/// An invariant of a [`Case`] or of a single [`Method`].
pub struct Invariant<S: 'static = Case> {
    /// The invariant as a statement, which also serves as its name.
    pub name: &'static str,
    /// Checks the invariant. An error counts as a violation.
    pub check: fn(&S) -> Result<Verdict>,
}

impl<S> std::fmt::Debug for Invariant<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}
