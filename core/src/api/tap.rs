//! Taps: the sites where activations are read, and the pooling of a completion's tokens into one
//! vector.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{ModelInfo, Plugin, Site, TokenStates};
use crate::error::{Error, Result};

/// How the states of one completion's tokens are pooled into one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// The mean over the tokens of the completion.
    #[default]
    Completion,
    /// The mean over the tokens of the prompt and the completion.
    All,
    /// The last token.
    Last,
    /// The mean over the positions that both sequences of a pair have, including the prompt. The
    /// tail of the longer sequence is ignored.
    Common,
}

/// A selection of layers, written as `10,20`, `-2,-1` (from the end), `0.33,0.66` (fractions of the
/// depth), `range(.3,-2)` (start and exclusive end) or `range(.3,.9,2)` (with a step).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Layers(pub String);

impl From<&str> for Layers {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl Layers {
    /// Returns the selected indices in `0..count`, in ascending order and without duplicates.
    ///
    /// An integer is an index. A negative index counts from the end. A number with a decimal point
    /// is a fraction f of the depth, and selects the index round(f·(count − 1)).
    ///
    /// # Errors
    /// Fails if the syntax is invalid, if an index is out of range, or if a range is empty.
    pub fn resolve(&self, count: usize) -> Result<Vec<usize>> {
        let spec = self.0.trim();
        let mut indices = match spec.strip_prefix("range(").and_then(|s| s.strip_suffix(')')) {
            Some(inner) => {
                let parts: Vec<&str> = inner.split(',').map(str::trim).collect();
                let (first, end, step) = match parts[..] {
                    [a, b] => (a, b, "1"),
                    [a, b, c] => (a, b, c),
                    _ => return Err(self.malformed()),
                };
                let step = step.parse().ok().filter(|s| *s > 0).ok_or_else(|| self.malformed())?;
                // The end may be one past the last index, as in Python.
                let end = if end.parse() == Ok(count) { count } else { self.index(end, count)? };
                (self.index(first, count)?..end).step_by(step).collect::<Vec<_>>()
            }
            None => spec
                .split(',')
                .map(|part| self.index(part.trim(), count))
                .collect::<Result<Vec<_>>>()?,
        };
        indices.sort_unstable();
        indices.dedup();
        if indices.is_empty() {
            return Err(
                Error::new(format!("`{spec}` does not select any layers")).hint(Self::valid(count))
            );
        }
        Ok(indices)
    }

    fn index(&self, text: &str, count: usize) -> Result<usize> {
        let outside = || {
            Error::new(format!("layer `{text}` in `{}` is out of range", self.0))
                .hint(Self::valid(count))
        };
        if let Ok(i) = text.parse::<i64>() {
            let i = if i < 0 { i + count as i64 } else { i };
            return usize::try_from(i).ok().filter(|i| *i < count).ok_or_else(outside);
        }
        match text.parse::<f64>() {
            Ok(f) if (0.0..=1.0).contains(&f) => Ok((f * (count - 1) as f64).round() as usize),
            Ok(f) if f.is_finite() => Err(outside()),
            _ => Err(self.malformed()),
        }
    }

    fn valid(count: usize) -> String {
        format!(
            "valid: 0 to {}, -{count} to -1 (from the end), or fractions from 0.0 to 1.0",
            count - 1
        )
    }

    fn malformed(&self) -> Error {
        Error::new(format!("invalid layer selection `{}`", self.0))
            .hint("write `10,20`, `-2,-1`, `0.33,0.66`, `range(.3,-2)` or `range(.3,.9,2)`")
    }
}

/// Chooses the sites of a model where a run reads states.
pub trait Tap: Send {
    /// The sites, in the order in which a forward pass computes them.
    ///
    /// # Errors
    /// Fails if a layer is out of range, or if the model lacks a module that the tap reads.
    fn sites(&self, model: &ModelInfo) -> Result<Vec<Site>>;

    /// How the states of a completion's tokens are pooled into one vector.
    fn pooling(&self) -> Pooling;

    /// A pooling that depends on the values of the transformed states. If `None`,
    /// [`pooling`](Self::pooling) is used. `pooling` only depends on the positions of the tokens.
    fn token_pooling(&self) -> Option<Box<dyn TokenPooling>> {
        None
    }
}

/// A pooling that depends on the values of the states, not only on the positions of the tokens.
pub trait TokenPooling: Send {
    /// Pools the transformed token states of each sequence into one vector. The result is `[b h]`
    /// for b sequences.
    ///
    /// # Errors
    /// Fails if memory runs out.
    fn pool(&self, tokens: &TokenStates) -> Result<Tensor>;
}

/// A configuration that builds a [`Tap`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not implement `TapPlugin`",
    label = "write `impl TapPlugin for {Self}`"
)]
pub trait TapPlugin: Plugin {
    /// Creates the tap.
    ///
    /// # Errors
    /// Fails if a value is out of range.
    fn build(self) -> Result<Box<dyn Tap>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(spec: &str, count: usize) -> Vec<usize> {
        Layers(spec.to_owned()).resolve(count).expect(spec)
    }

    #[test]
    fn every_form_of_a_layer_selection_is_parsed() {
        assert_eq!(of("10,20", 31), [10, 20]);
        assert_eq!(of("-2,-1", 31), [29, 30]);
        assert_eq!(of("0.33,0.66", 31), [10, 20]);
        assert_eq!(of("range(.3,-2)", 11), [3, 4, 5, 6, 7, 8]);
        assert_eq!(of("range(.3,.9,2)", 11), [3, 5, 7]);
        assert_eq!(of("range(0, 4)", 4), [0, 1, 2, 3]);
        assert_eq!(of("0.0,1.0", 31), [0, 30]);
        assert_eq!(of("2,1,2", 3), [1, 2]);
    }

    #[test]
    fn an_index_out_of_range_is_an_error_that_lists_the_valid_ones() {
        let e = Layers("31".into()).resolve(31).unwrap_err();
        assert_eq!(
            format!("{e:?}"),
            "layer `31` in `31` is out of range\n  hint: valid: 0 to 30, -31 to -1 (from the end), \
                or fractions from 0.0 to 1.0"
        );
        for bad in
            ["", "x", "range(1)", "range(3,2)", "range(0,2,0)", "1.5", "nan", "-4", "range(0,9)"]
        {
            assert!(Layers(bad.into()).resolve(3).is_err(), "{bad}");
        }
    }
}
