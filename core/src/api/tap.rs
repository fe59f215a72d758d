//! Taps: where activations are read, and how the tokens of a completion become one vector.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{ModelInfo, Plugin, Site, TokenStates};
use crate::error::{Error, Result};

/// How the tokens of one completion become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// The mean over the completion's tokens.
    #[default]
    Completion,
    /// The mean over the prompt's and the completion's tokens.
    All,
    /// The last token.
    Last,
    /// The mean over the positions that both sequences of the pair have, prompt included.
    Common,
}

/// A choice of layers, as text: `10,20`, `-2,-1` (from the end), `0.33,0.66` (fractions of the
/// depth), `range(.3,-2)`, `range(.3,.9,2)` (start, end before which to stop, step).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Layers(pub String);

impl From<&str> for Layers {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl Layers {
    /// The indices it means where valid ones are `0..places`: ascending, each once.
    ///
    /// A whole number counts from the start, or from the end when it is negative; a number with a
    /// point is a fraction f of the depth and means round(f·(places − 1)).
    ///
    /// # Errors
    /// Text that is none of the forms, an index outside, or a range that holds nothing.
    pub fn resolve(&self, places: usize) -> Result<Vec<usize>> {
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
                // The end may be one past the last place, as in Python.
                let end = if end.parse() == Ok(places) { places } else { self.index(end, places)? };
                (self.index(first, places)?..end).step_by(step).collect::<Vec<_>>()
            }
            None => spec
                .split(',')
                .map(|part| self.index(part.trim(), places))
                .collect::<Result<Vec<_>>>()?,
        };
        indices.sort_unstable();
        indices.dedup();
        if indices.is_empty() {
            return Err(
                Error::new(format!("layers `{spec}` holds no layer")).hint(Self::valid(places))
            );
        }
        Ok(indices)
    }

    fn index(&self, text: &str, places: usize) -> Result<usize> {
        let outside = || {
            Error::new(format!("layer `{text}` in `{}` is outside the model", self.0))
                .hint(Self::valid(places))
        };
        if let Ok(i) = text.parse::<i64>() {
            let i = if i < 0 { i + places as i64 } else { i };
            return usize::try_from(i).ok().filter(|i| *i < places).ok_or_else(outside);
        }
        match text.parse::<f64>() {
            Ok(f) if (0.0..=1.0).contains(&f) => Ok((f * (places - 1) as f64).round() as usize),
            Ok(f) if f.is_finite() => Err(outside()),
            _ => Err(self.malformed()),
        }
    }

    fn valid(places: usize) -> String {
        format!(
            "valid: 0 to {} or -{places} to -1 from the end, or fractions 0.0 to 1.0",
            places - 1
        )
    }

    fn malformed(&self) -> Error {
        Error::new(format!("layers `{}` is not a choice of layers", self.0))
            .hint("write `10,20`, `-2,-1`, `0.33,0.66`, `range(.3,-2)` or `range(.3,.9,2)`")
    }
}

/// The places of a model that a run reads.
pub trait Tap: Send {
    /// The places, in the order in which a pass reaches them.
    ///
    /// # Errors
    /// Layers outside the model, or modules that it does not have.
    fn sites(&self, model: &ModelInfo) -> Result<Vec<Site>>;

    /// How tokens become one vector.
    fn pooling(&self) -> Pooling;

    /// A pooling that looks at the transformed states themselves; `None` for the mean over the
    /// tokens of [`pooling`](Self::pooling).
    fn token_pooling(&self) -> Option<Box<dyn TokenPooling>> {
        None
    }
}

/// Pools states by what they are, and not only by where their tokens stand.
pub trait TokenPooling: Send {
    /// One vector for each of the b sequences, `[b h]`, from the transformed states of all their
    /// tokens.
    ///
    /// # Errors
    /// Fails if memory runs out.
    fn pool(&self, tokens: &TokenStates) -> Result<Tensor>;
}

/// A configuration that makes a [`Tap`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say how it is built",
    label = "write `impl TapPlugin for {Self}`"
)]
pub trait TapPlugin: Plugin {
    /// Makes the tap.
    ///
    /// # Errors
    /// A value out of range.
    fn build(self) -> Result<Box<dyn Tap>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(spec: &str, places: usize) -> Vec<usize> {
        Layers(spec.to_owned()).resolve(places).expect(spec)
    }

    #[test]
    fn every_form_of_the_grammar() {
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
    fn an_index_outside_names_the_valid_ones() {
        let e = Layers("31".into()).resolve(31).unwrap_err();
        assert_eq!(
            format!("{e:?}"),
            "layer `31` in `31` is outside the model\n  hint: valid: 0 to 30 or -31 to -1 from \
                the end, or fractions 0.0 to 1.0"
        );
        for bad in
            ["", "x", "range(1)", "range(3,2)", "range(0,2,0)", "1.5", "nan", "-4", "range(0,9)"]
        {
            assert!(Layers(bad.into()).resolve(3).is_err(), "{bad}");
        }
    }
}
