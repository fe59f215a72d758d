//! Code that the `original` variants share: the configuration field and the original project's
//! pooling.

use reprpo_plugin::prelude::*;
use reprpo_plugin::tch::Kind;

use crate::taps::outliers;

/// Selects this project's variant of an objective, or the variant of the original implementation.
#[choice]
pub enum Variant {
    /// The formula `L` above.
    #[default]
    Default,
    /// The formula `original` above, with the pooling of the original implementation, to reproduce
    /// its results.
    Original,
}

/// The inputs of every `original` variant. The original pooling reads the state of every token.
pub const NEEDS: Needs = Needs { states: States::PerToken, reference_states: true, ..Needs::NONE };

/// The states of every token at one tap, including any padding tokens.
pub struct OriginalTap<'a> {
    /// States of the policy and of the reference, in this order.
    pub tokens: [Sides<Padded<'a>>; 2],
}

/// The token states of b sequences, possibly with padding tokens.
#[derive(Clone, Copy)]
pub struct Padded<'a> {
    /// States of the tokens.
    pub tokens: &'a TokenStates,
    /// Bool mask `[m]`, false for padding; `None` if there is no padding. Padding is included in
    /// the mean norm, but not in the pooled states.
    pub attended: Option<&'a Tensor>,
}

impl<'a> OriginalTap<'a> {
    /// Returns the taps of a training batch, which has no padding.
    ///
    /// # Errors
    /// Fails if the method's `Needs` do not request the states of every token.
    pub fn all(pairs: &'a Pairs) -> Result<Vec<Self>> {
        let of_tap = |tap: &'a TapStates| {
            let (policy, reference) = tap.tokens()?;
            Ok(Self {
                tokens: [policy, reference]
                    .map(|sides| sides.as_ref().map(|tokens| Padded { tokens, attended: None })),
            })
        };
        pairs.taps.iter().map(of_tap).collect()
    }

    /// Applies `map` to the token states of the policy and of the reference, and pools the results.
    /// The states are `[m h]` before `map`, `[m w]` after it, and `[b w]` when pooled.
    pub fn pooled(&self, map: impl Fn(&Tensor) -> Tensor) -> [Sides; 2] {
        let pool = |side: Padded<'_>| {
            outliers::pool(side.tokens, &map(&side.tokens.states), side.attended)
        };
        self.tokens.map(|sides| sides.map(pool))
    }
}

/// Returns the mean of `per_tap` over the taps.
///
/// # Errors
/// Fails if there are no taps.
pub fn mean_over(
    taps: &[OriginalTap<'_>],
    per_tap: impl Fn(&OriginalTap<'_>) -> Tensor,
) -> Result<Tensor> {
    if taps.is_empty() {
        return Err(Error::internal("the original variants need the states of every token"));
    }
    let values: Vec<Tensor> = taps.iter().map(per_tap).collect();
    Ok(Tensor::stack(&values, 0).mean_dim(0, false, None::<Kind>))
}
