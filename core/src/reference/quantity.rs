//! The quantities that are cached.

use std::fmt;

use crate::api::{Pooling, Site};

/// A quantity of the reference that is computed for both completions of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// The log-probability of each token of a completion, `[tokens]`.
    Logprobs,
    /// The pooled states at a site, `[width]`.
    State(Site, Pooling),
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Logprobs => f.write_str("log-probabilities"),
            Self::State(site, pooling) => {
                let pooling = serde_json::to_value(pooling).unwrap_or_default();
                write!(f, "states at {site}, pooled over {}", pooling.as_str().unwrap_or_default())
            }
        }
    }
}

impl Quantity {
    /// The site whose states are pooled; `None` for log-probabilities.
    pub fn site(&self) -> Option<&Site> {
        match self {
            Self::Logprobs => None,
            Self::State(site, _) => Some(site),
        }
    }
}
