//! Code that the `original` variants share: the configuration fields and the poolings of the
//! original project.

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

/// Selects a version of the original implementation.
#[choice]
pub enum Version {
    /// The first one: it pools over prompt and completion, leaving out tokens whose states are
    /// unusually long, and log-probabilities are sums over tokens.
    #[default]
    First,
    /// The branch `topk`: it pools over the completion without its last token, and
    /// log-probabilities are means over the completion without its first token.
    Later,
}

impl Version {
    /// Checks that the variant of the objective reads the version.
    ///
    /// # Errors
    /// Fails for the later version with the default variant.
    pub fn check(self, variant: Variant) -> Result<()> {
        if self == Self::Later && variant == Variant::Default {
            return Err(Error::new(
                "`original_version = \"later\"` is only possible with `variant = \"original\"`",
            )
            .hint("set the variant too, or leave out `original_version`"));
        }
        Ok(())
    }
}

/// The inputs of every `original` variant. The original pooling reads the state of every token.
pub const NEEDS: Needs = Needs { states: States::PerToken, reference_states: true, ..Needs::NONE };

/// The states of every token at one tap, including any padding tokens.
pub struct OriginalTap<'a> {
    /// States of the policy and of the reference, in this order.
    pub tokens: [Sides<Padded<'a>>; 2],
    /// Standard deviations above the mean norm beyond which a token is left out; `None` if no token
    /// is left out for its norm.
    pub deviations: Option<f64>,
}

/// The token states of b sequences, possibly with padding tokens.
pub struct Padded<'a> {
    /// States of the tokens.
    pub tokens: &'a TokenStates,
    /// Bool mask `[m]`, true for the tokens to pool; `None` to pool all of them. The other ones,
    /// such as padding, are included in the mean norm, but not in the pooled states.
    pub attended: Option<Tensor>,
}

impl<'a> OriginalTap<'a> {
    /// Returns the taps of a training batch, which has no padding, as `version` pools them.
    ///
    /// # Errors
    /// Fails if the method's `Needs` do not request the states of every token.
    pub fn of(pairs: &'a Pairs, version: Version) -> Result<Vec<Self>> {
        match version {
            Version::First => Self::with(pairs, Some(outliers::DEVIATIONS), |_| None),
            Version::Later => Self::completions(pairs, None),
        }
    }

    /// Returns the taps of a training batch, pooled over the completions without their last token.
    ///
    /// # Errors
    /// Fails if the method's `Needs` do not request the states of every token.
    pub fn completions(pairs: &'a Pairs, deviations: Option<f64>) -> Result<Vec<Self>> {
        Self::with(pairs, deviations, |tokens| Some(before_last(tokens)))
    }

    fn with(
        pairs: &'a Pairs,
        deviations: Option<f64>,
        attended: impl Fn(&TokenStates) -> Option<Tensor>,
    ) -> Result<Vec<Self>> {
        let of_tap = |tap: &'a TapStates| {
            let (policy, reference) = tap.tokens()?;
            let tokens = [policy, reference].map(|sides| {
                sides.as_ref().map(|tokens| Padded { tokens, attended: attended(tokens) })
            });
            Ok(Self { tokens, deviations })
        };
        pairs.taps.iter().map(of_tap).collect()
    }

    /// Applies `map` to the token states of the policy and of the reference, and pools the results.
    /// The states are `[m h]` before `map`, `[m w]` after it, and `[b w]` when pooled.
    pub fn pooled(&self, map: impl Fn(&Tensor) -> Tensor) -> [Sides; 2] {
        let pool = |side: &Padded<'_>| {
            let x = map(&side.tokens.states);
            outliers::pool(side.tokens, &x, side.attended.as_ref(), self.deviations)
        };
        self.tokens.each_ref().map(|sides| sides.as_ref().map(pool))
    }

    /// Returns the mean over the pooled tokens of the length of h_π − h_r, for both sides, each
    /// `[b]`. No token is left out for its norm. `detached` stops the gradient of the policy's
    /// rejected states.
    pub fn moved(&self, length: impl Fn(&Tensor) -> Tensor, detached: bool) -> Sides {
        let [policy, reference] = self.tokens.each_ref().map(Sides::as_ref);
        let mut policy_states = policy.map(|side| side.tokens.states.shallow_clone());
        if detached {
            policy_states.rejected = policy_states.rejected.detach();
        }
        policy_states.zip(policy.zip(reference)).map(|(states, (policy, reference))| {
            let distance = length(&(states - reference.tokens.states.detach()));
            outliers::pool(policy.tokens, &distance.unsqueeze(-1), policy.attended.as_ref(), None)
                .squeeze_dim(-1)
        })
    }
}

/// Returns a bool mask `[m]` of the tokens of completions, except for the last token of each
/// completion that has several.
fn before_last(tokens: &TokenStates) -> Tensor {
    let m = tokens.owner.size()[0];
    let ends = tokens.owner.narrow(0, 1, m - 1).ne_tensor(&tokens.owner.narrow(0, 0, m - 1));
    let last = Tensor::cat(&[ends, tokens.completion.narrow(0, 0, 1).ones_like()], 0);
    let counts = tokens.sum_by_sequence(&tokens.completion.to_kind(Kind::Int64));
    let several = counts.gt(1).index_select(0, &tokens.owner);
    tokens.completion.logical_and(&last.logical_and(&several).logical_not())
}

/// Returns 1 for each token except the first one of each completion that has several, `[m]`.
pub fn after_first(of: &TokenLogprobs) -> Tensor {
    let m = of.per_token.size()[0];
    let starts = of.owner.narrow(0, 1, m - 1).ne_tensor(&of.owner.narrow(0, 0, m - 1));
    let one = Tensor::ones([1], (Kind::Bool, starts.device()));
    let first = Tensor::cat(&[one, starts], 0);
    let several = of.tokens.gt(1).index_select(0, &of.owner);
    first.logical_and(&several).logical_not().to_kind(of.per_token.kind())
}

/// Returns ℓ⁺ and ℓ⁻ of the later version, each `[b]`: log p over the completion without its first
/// token, as a mean or as a sum.
///
/// # Errors
/// Fails if `of` lacks a side.
pub fn later_logps(of: &Logprobs, mean: bool) -> Result<Sides> {
    Ok(of.both()?.map(|side| {
        let kept = after_first(side);
        let sum = side.sum_of(&(&side.per_token * &kept));
        if mean { sum / side.sum_of(&kept) } else { sum }
    }))
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
