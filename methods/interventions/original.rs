//! What the `original` variants share: the choice itself, and states pooled as the original project
//! pools them.

use reprpo_plugin::prelude::*;
use reprpo_plugin::tch::Kind;

use crate::taps::outliers;

/// This project's objective, or the original implementation's with its numbers.
#[choice]
pub enum Variant {
    /// As the formula above says.
    #[default]
    Default,
    /// As the original implementation computes it, pooling included, to reproduce its numbers.
    Original,
}

/// What every original variant reads: the original pooling looks at single tokens.
pub const NEEDS: Needs = Needs { states: States::PerToken, reference_states: true, ..Needs::NONE };

/// The states of every token at one tap, as the original's batches have them.
pub struct OriginalTap<'a> {
    /// The policy's and the reference's tokens.
    pub tokens: [Sides<Padded<'a>>; 2],
}

/// The tokens of b sequences, some of which may be padding.
#[derive(Clone, Copy)]
pub struct Padded<'a> {
    /// The tokens.
    pub tokens: &'a TokenStates,
    /// False for padding `[m]`, bool. It counts in the mean norm, and not in the pooled states.
    /// `None` if there is none.
    pub attended: Option<&'a Tensor>,
}

impl<'a> OriginalTap<'a> {
    /// The taps of the engine's batches, which have no padding.
    ///
    /// # Errors
    /// Fails if the method did not ask for the states of every token in its `Needs`.
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

    /// The policy's and the reference's states after `map` (`[m h]` → `[m w]`, token by token),
    /// each pooled to `[b w]`.
    pub fn pooled(&self, map: impl Fn(&Tensor) -> Tensor) -> [Sides; 2] {
        let pool = |side: Padded<'_>| {
            outliers::pool(side.tokens, &map(&side.tokens.states), side.attended)
        };
        self.tokens.map(|sides| sides.map(pool))
    }
}

/// The mean of `per_tap` over the taps.
///
/// # Errors
/// Fails if there is no tap.
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
