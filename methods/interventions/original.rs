//! What the `original` variants share: the choice itself, and states pooled as the original project pools them.

use reprpo_plugin::prelude::*;

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

/// The policy's and the reference's states of a tap after `map` (`[m h]` → `[m w]`, token by token), each pooled to
/// `[b w]` by what `map` gave.
///
/// # Errors
/// Where the method's `Needs` did not ask for the states of every token.
pub fn pooled(tap: &TapStates, map: impl Fn(&Tensor) -> Tensor) -> Result<[Sides; 2]> {
    let (policy, reference) = tap.tokens()?;
    let pool = |tokens: &TokenStates| tokens.pool_original(&map(&tokens.states));
    Ok([policy, reference].map(|sides| Sides { chosen: pool(&sides.chosen), rejected: pool(&sides.rejected) }))
}
