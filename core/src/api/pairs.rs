//! What a method is given of a batch: pooled states and log-probabilities per pair, never the model.

use tch::{Kind, Tensor};

use super::Site;
use crate::error::{Error, Result};

/// The same thing for the chosen and the rejected completion.
#[derive(Debug)]
pub struct Sides {
    /// Of y⁺.
    pub chosen: Tensor,
    /// Of y⁻.
    pub rejected: Tensor,
}

/// Two sides differ if they are further apart than this many times the relative precision of their kind. A mean over some
/// hundreds of equal states, summed in another order, is off by up to a few dozen times that precision.
pub(crate) const ROUNDING: f64 = 64.0;

impl Sides {
    /// True for each pair whose two vectors `[b w]` differ by more than rounding: `[b]`, bool.
    ///
    /// ‖chosen − rejected‖ is compared with the larger of both lengths times 64 ε, where ε is the precision of their
    /// kind. Completions of the same tokens share their rows of a batch, so their states are identical to the bit, even
    /// in a model that computes in bf16.
    pub fn differ(&self) -> Tensor {
        let _guard = tch::no_grad_guard();
        let length = |x: &Tensor| x.norm_scalaropt_dim(2.0, -1, false);
        let (chosen, rejected) = (self.chosen.detach(), self.rejected.detach());
        let limit = length(&chosen).maximum(&length(&rejected)) * (ROUNDING * precision(chosen.kind()));
        length(&(chosen - rejected)).gt_tensor(&limit)
    }
}

/// The relative precision ε of a kind: the distance from 1 to the next larger number.
pub fn precision(kind: Kind) -> f64 {
    match kind {
        Kind::Double => f64::EPSILON,
        Kind::BFloat16 => 1.0 / 128.0,
        Kind::Half => 1.0 / 1024.0,
        _ => f64::from(f32::EPSILON),
    }
}

/// Values of the pairs of a batch, some of which may not count.
#[derive(Debug)]
pub struct Counted {
    /// Values `[… b]`; 0 for a pair that does not count.
    pub values: Tensor,
    /// 1 for a pair that counts and 0 for one that does not, `[b]`, in the kind of `values`.
    pub counts: Tensor,
}

impl Counted {
    /// The mean of `per_pair` `[b]` over the pairs that count, a scalar. If no pair counts, it is 0 and so is its gradient.
    pub fn mean(&self, per_pair: &Tensor) -> Tensor {
        mean_of_counted(per_pair, &self.counts, per_pair.kind())
    }
}

/// The mean of `values` `[b]` over the pairs that count, a scalar of kind `kind`. It is 0 if no pair counts.
pub(super) fn mean_of_counted(values: &Tensor, counts: &Tensor, kind: Kind) -> Tensor {
    (values * counts).sum(kind) / counts.sum(kind).clamp_min(1.0)
}

/// The transformed states of every token of b sequences, end to end, prompts included.
#[derive(Debug)]
pub struct TokenStates {
    /// T h, `[m h]` with m = all tokens.
    pub states: Tensor,
    /// Which of the b sequences each token belongs to `[m]`, int64, ascending.
    pub owner: Tensor,
    /// Whether it is a token of the completion `[m]`, bool.
    pub completion: Tensor,
    /// Whether it may be attended to `[m]`, bool: false is padding, of which the engine's batches have none.
    pub attended: Tensor,
    /// b.
    pub sequences: i64,
}

impl TokenStates {
    /// One sum a sequence of `values` `[m …]`: `[b …]`.
    pub fn sum_by_sequence(&self, values: &Tensor) -> Tensor {
        let mut size = values.size();
        size[0] = self.sequences;
        Tensor::zeros(size, (values.kind(), values.device())).index_add(0, &self.owner, values)
    }

    /// The original project's pooling of `x` `[m w]`, one row a token of these sequences: the mean of the attended
    /// tokens whose norm is at most one standard deviation (unbiased) above the mean norm of all, `[b w]`.
    pub fn pool_original(&self, x: &Tensor) -> Tensor {
        let norms = x.norm_scalaropt_dim(2.0, -1, false);
        let count = self.sum_by_sequence(&norms.ones_like());
        let mean = self.sum_by_sequence(&norms) / &count;
        let off = &norms - mean.index_select(0, &self.owner);
        let std = (self.sum_by_sequence(&off.square()) / (&count - 1.0)).sqrt();
        // One token alone has no deviation, and is kept.
        let limit = (mean + std.nan_to_num(0.0, 0.0, 0.0)).index_select(0, &self.owner);
        let keep = norms.le_tensor(&limit).logical_and(&self.attended).to_kind(x.kind());
        self.sum_by_sequence(&(x * keep.unsqueeze(-1))) / self.sum_by_sequence(&keep).unsqueeze(-1)
    }
}

/// The same thing for the chosen and the rejected sequence.
#[derive(Debug)]
pub struct TokenSides {
    /// Of x and y⁺.
    pub chosen: TokenStates,
    /// Of x and y⁻.
    pub rejected: TokenStates,
}

/// The states of one tap: p⁺, p⁻ and r⁺, r⁻ of the method reference, pooled and transformed, each `[b h]`.
#[derive(Debug)]
pub struct TapStates {
    /// Where they were read.
    pub site: Site,
    /// p⁺ and p⁻, with the adapter on.
    pub policy: Sides,
    reference: Option<Sides>,
    raw: Option<(Sides, Option<Sides>)>,
    tokens: Option<(TokenSides, Option<TokenSides>)>,
}

impl TapStates {
    /// States of the policy, and of the reference where the method asked for them.
    pub fn new(site: Site, policy: Sides, reference: Option<Sides>) -> Self {
        Self { site, policy, reference, raw: None, tokens: None }
    }

    /// Adds what was pooled before the transform: the policy's, and the reference's where the method asked for it.
    #[must_use]
    pub fn with_raw(mut self, policy: Sides, reference: Option<Sides>) -> Self {
        self.raw = Some((policy, reference));
        self
    }

    /// Adds the states of every token: the policy's, and the reference's where the method asked for it.
    #[must_use]
    pub fn with_tokens(mut self, policy: TokenSides, reference: Option<TokenSides>) -> Self {
        self.tokens = Some((policy, reference));
        self
    }

    /// r⁺ and r⁻, with the adapter off. They carry a gradient only into a transform's own parameters.
    ///
    /// # Errors
    /// Where the method's `Needs` did not ask for them.
    pub fn reference(&self) -> Result<&Sides> {
        self.reference.as_ref().ok_or_else(|| missing("reference states", "reference_states"))
    }

    /// The policy's and the reference's states pooled before the transform, each `[b h]`.
    ///
    /// # Errors
    /// Where the method's `Needs` did not ask for them.
    pub fn raw(&self) -> Result<(&Sides, &Sides)> {
        let (policy, reference) = self.raw.as_ref().ok_or_else(|| missing("states before the transform", "raw_states"))?;
        Ok((policy, reference.as_ref().ok_or_else(|| missing("reference states", "reference_states"))?))
    }

    /// The policy's and the reference's transformed states of every token.
    ///
    /// # Errors
    /// Where the method's `Needs` did not ask for them.
    pub fn tokens(&self) -> Result<(&TokenSides, &TokenSides)> {
        let (policy, reference) = self.tokens.as_ref().ok_or_else(|| missing("states of every token", "states: PerToken"))?;
        Ok((policy, reference.as_ref().ok_or_else(|| missing("reference states", "reference_states"))?))
    }
}

/// −log p of each position's own token, of b chosen sequences end to end. A model predicts the next token, so this is
/// the unshifted likelihood that the original project's retain term takes.
#[derive(Debug)]
pub struct SequenceNll {
    /// The policy's `[m]`, with a gradient.
    pub policy: Tensor,
    /// The reference's `[m]`.
    pub reference: Tensor,
    /// Which of the b sequences each token belongs to `[m]`, int64, ascending.
    pub owner: Tensor,
    /// Whether it may be attended to `[m]`, bool: false is padding, of which the engine's batches have none.
    pub attended: Tensor,
}

/// Log-probabilities of the completion tokens of b completions, end to end.
#[derive(Debug)]
pub struct TokenLogprobs {
    /// log p(token | what stands before it), `[m]` with m = all completion tokens.
    pub per_token: Tensor,
    /// Which of the b completions each token belongs to, `[m]` int64, ascending.
    pub owner: Tensor,
    /// Completion tokens of each, `[b]`, as numbers of the same kind as `per_token`.
    pub tokens: Tensor,
    /// log Σ_v p(v)² where each token stands `[m]`, without a gradient; see [`collision`](Self::collision).
    pub log_collision: Option<Tensor>,
}

impl TokenLogprobs {
    /// logp(y|x) = Σ over completion tokens, `[b]`.
    pub fn sum(&self) -> Tensor {
        self.sum_of(&self.per_token)
    }

    /// Σ of `values` `[m]` over each completion's tokens, `[b]`, added up in float64: hundreds of nats lose digits when
    /// they are added one after another in float32.
    pub fn sum_of(&self, values: &Tensor) -> Tensor {
        let kind = values.kind();
        self.tokens.zeros_like().to_kind(Kind::Double).index_add(0, &self.owner, &values.to_kind(Kind::Double)).to_kind(kind)
    }

    /// The mean over completion tokens, `[b]`.
    pub fn mean(&self) -> Tensor {
        self.sum() / &self.tokens
    }

    /// log Σ_v p(v)² over the vocabulary where each token stands `[m]`, without a gradient.
    ///
    /// # Errors
    /// Where the method's `Needs` did not ask for it.
    pub fn collision(&self) -> Result<&Tensor> {
        self.log_collision.as_ref().ok_or_else(|| missing("the collision probability", "collision"))
    }
}

/// Log-probabilities of a batch.
#[derive(Debug)]
pub struct Logprobs {
    /// Of the chosen completions.
    pub chosen: TokenLogprobs,
    rejected: Option<TokenLogprobs>,
}

impl Logprobs {
    /// Log-probabilities of the chosen completions, and of the rejected where the method asked for both.
    pub fn new(chosen: TokenLogprobs, rejected: Option<TokenLogprobs>) -> Self {
        Self { chosen, rejected }
    }

    /// Of the rejected completions.
    ///
    /// # Errors
    /// Where the method's `Needs` asked for the chosen alone.
    pub fn rejected(&self) -> Result<&TokenLogprobs> {
        self.rejected.as_ref().ok_or_else(|| missing("log-probabilities of rejected completions", "logprobs: Both"))
    }
}

/// A batch of b pairs as a method sees it.
#[derive(Debug)]
pub struct Pairs {
    /// b.
    pub len: usize,
    /// One entry a tap; empty where the method asked for no states.
    pub taps: Vec<TapStates>,
    policy: Option<Logprobs>,
    reference: Option<Logprobs>,
    sequence_nll: Option<SequenceNll>,
}

impl Pairs {
    /// Made by the engine, and by the tests of a method.
    pub fn new(len: usize, taps: Vec<TapStates>, policy: Option<Logprobs>, reference: Option<Logprobs>) -> Self {
        Self { len, taps, policy, reference, sequence_nll: None }
    }

    /// Adds the likelihood of the whole chosen sequences.
    #[must_use]
    pub fn with_sequence_nll(mut self, nll: SequenceNll) -> Self {
        self.sequence_nll = Some(nll);
        self
    }

    /// −log p of each position's own token in the chosen sequences.
    ///
    /// # Errors
    /// Where the method's `Needs` did not ask for it.
    pub fn sequence_nll(&self) -> Result<&SequenceNll> {
        self.sequence_nll.as_ref().ok_or_else(|| missing("the likelihood of the whole chosen sequence", "sequence_nll"))
    }

    /// logp_π, with a gradient.
    ///
    /// # Errors
    /// Where the method's `Needs` did not ask for it.
    pub fn policy(&self) -> Result<&Logprobs> {
        self.policy.as_ref().ok_or_else(|| missing("log-probabilities", "logprobs"))
    }

    /// logp_r, without one.
    ///
    /// # Errors
    /// Where the method's `Needs` did not ask for it.
    pub fn reference(&self) -> Result<&Logprobs> {
        self.reference.as_ref().ok_or_else(|| missing("reference log-probabilities", "reference_logprobs"))
    }

    /// Δ⁺ and Δ⁻ = logp_π − logp_r of whole completions, each `[b]`; θ = Δ⁺ − Δ⁻.
    ///
    /// # Errors
    /// Where the method's `Needs` did not ask for both completions of both models.
    pub fn log_ratios(&self) -> Result<Sides> {
        let (policy, reference) = (self.policy()?, self.reference()?);
        Ok(Sides { chosen: policy.chosen.sum() - reference.chosen.sum(), rejected: policy.rejected()?.sum() - reference.rejected()?.sum() })
    }

    /// The mean of `per_tap` over the taps, each of which gives any shape.
    ///
    /// # Errors
    /// Where there is no tap, or one of them fails.
    pub fn mean_over_taps(&self, per_tap: impl Fn(&TapStates) -> Result<Tensor>) -> Result<Tensor> {
        let values = self.taps.iter().map(per_tap).collect::<Result<Vec<_>>>()?;
        if values.is_empty() {
            return Err(missing("states", "states"));
        }
        Ok(Tensor::stack(&values, 0).mean_dim(0, false, None::<Kind>))
    }

    /// Averages the values of each pair over the taps at which it counts. A pair counts if it counts at one tap or more.
    ///
    /// `per_tap` gives values `[… b]` and, for each pair, whether it counts at that tap `[b]`, bool. The values of a
    /// pair that does not count must be finite, because they are multiplied by 0.
    ///
    /// # Errors
    /// Fails if there is no tap, or if `per_tap` fails at one of them.
    pub fn mean_over_counting_taps(&self, per_tap: impl Fn(&TapStates) -> Result<(Tensor, Tensor)>) -> Result<Counted> {
        let (values, counts): (Vec<_>, Vec<_>) = self.taps.iter().map(per_tap).collect::<Result<Vec<_>>>()?.into_iter().unzip();
        if values.is_empty() {
            return Err(missing("states", "states"));
        }
        let (values, counts) = (Tensor::stack(&values, 0), Tensor::stack(&counts, 0).to_kind(values[0].kind()));
        let taps = counts.sum_dim_intlist(0, false, None::<Kind>);
        let shape: Vec<i64> = values.size().iter().enumerate().map(|(i, n)| if i == 0 || i + 1 == values.dim() { *n } else { 1 }).collect();
        let sums = (values * counts.reshape(shape)).sum_dim_intlist(0, false, None::<Kind>);
        Ok(Counted { values: sums / taps.clamp_min(1.0), counts: taps.clamp_max(1.0) })
    }
}

fn missing(what: &str, field: &str) -> Error {
    Error::internal(format!("the method reads {what} that it did not ask for")).hint(format!("set `{field}` in its `Needs`"))
}
