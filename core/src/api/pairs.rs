//! What a method is given of a batch: pooled states and log-probabilities per pair, never the
//! model.

use tch::{Kind, Tensor};

use super::{Side, Sides, Site};
use crate::error::{Error, Result};

/// Two sides differ if they are further apart than this many times the relative precision of their
/// kind. A mean over some hundreds of equal states, summed in another order, is off by up to a few
/// dozen times that precision.
pub(crate) const ROUNDING: f64 = 64.0;

impl Sides<Tensor> {
    /// True for each pair whose two vectors `[b w]` differ by more than rounding: `[b]`, bool.
    ///
    /// ‖chosen − rejected‖ is compared with the larger of both lengths times 64 ε, where ε is the
    /// precision of their kind. Completions of the same tokens share their rows of a batch, so
    /// their states are identical to the bit, even in a model that computes in bf16.
    pub fn differ(&self) -> Tensor {
        let _guard = tch::no_grad_guard();
        let length = |x: &Tensor| x.norm_scalaropt_dim(2.0, -1, false);
        let (chosen, rejected) = (self.chosen.detach(), self.rejected.detach());
        let limit =
            length(&chosen).maximum(&length(&rejected)) * (ROUNDING * precision(chosen.kind()));
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
    /// The mean of `per_pair` `[b]` over the pairs that count, a scalar. If no pair counts, it is 0
    /// and so is its gradient.
    pub fn mean(&self, per_pair: &Tensor) -> Tensor {
        mean_of_counted(per_pair, &self.counts, per_pair.kind())
    }
}

/// The mean of `values` `[b]` over the pairs that count, a scalar of kind `kind`. It is 0 if no
/// pair counts.
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
}

/// Values of one model for the sides that a method asked for.
#[derive(Debug)]
pub enum PerSide<T = Tensor> {
    /// Values for both sides.
    Both(Sides<T>),
    /// The value for this side only.
    One(Side, T),
}

impl<T> PerSide<T> {
    /// The values of both sides.
    fn both(&self, what: &str) -> Result<&Sides<T>> {
        match self {
            Self::Both(sides) => Ok(sides),
            Self::One(side, _) => Err(missing(
                &format!("{what} of both sides"),
                &format!("only: None` instead of `only: Some(Side::{side:?})"),
            )),
        }
    }

    /// The value of one side.
    fn of(&self, side: Side, what: &str) -> Result<&T> {
        match self {
            Self::Both(sides) => Ok(sides.get(side)),
            Self::One(own, value) if *own == side => Ok(value),
            Self::One(..) => Err(missing(&format!("{what} of the {} side", side.name()), "only")),
        }
    }
}

impl<T> From<Sides<T>> for PerSide<T> {
    fn from(sides: Sides<T>) -> Self {
        Self::Both(sides)
    }
}

/// Values of the policy, and of the reference if the method asked for them.
type OfModels<T> = (PerSide<T>, Option<PerSide<T>>);

const STATES: &str = "states";
const REFERENCE: &str = "reference states";

/// The states of one tap: p⁺, p⁻ and r⁺, r⁻ of the method reference, pooled and transformed, each
/// `[b h]`.
#[derive(Debug)]
pub struct TapStates {
    /// Where they were read.
    pub site: Site,
    pooled: OfModels<Tensor>,
    raw: Option<OfModels<Tensor>>,
    tokens: Option<OfModels<TokenStates>>,
}

impl TapStates {
    /// States of the policy, and of the reference where the method asked for them. Each is a
    /// [`Sides`], or a [`PerSide`].
    pub fn new<S: Into<PerSide>>(site: Site, policy: S, reference: Option<S>) -> Self {
        Self { site, pooled: (policy.into(), reference.map(Into::into)), raw: None, tokens: None }
    }

    /// Adds the states pooled before the transform: the policy's, and the reference's where the
    /// method asked for it.
    #[must_use]
    pub fn with_raw<S: Into<PerSide>>(mut self, policy: S, reference: Option<S>) -> Self {
        self.raw = Some((policy.into(), reference.map(Into::into)));
        self
    }

    /// Adds the states of every token: the policy's, and the reference's where the method asked for
    /// it.
    #[must_use]
    pub fn with_tokens<S: Into<PerSide<TokenStates>>>(
        mut self,
        policy: S,
        reference: Option<S>,
    ) -> Self {
        self.tokens = Some((policy.into(), reference.map(Into::into)));
        self
    }

    /// p⁺ and p⁻, with the adapter on.
    ///
    /// # Errors
    /// Fails if the method only asked for one side.
    pub fn policy(&self) -> Result<&Sides> {
        self.pooled.0.both(STATES)
    }

    /// p of one side, with the adapter on.
    ///
    /// # Errors
    /// Fails if the method only asked for the other side.
    pub fn policy_of(&self, side: Side) -> Result<&Tensor> {
        self.pooled.0.of(side, STATES)
    }

    /// r⁺ and r⁻, with the adapter off. They carry a gradient only into a transform's own
    /// parameters.
    ///
    /// # Errors
    /// Fails if the method did not ask for them in its `Needs`.
    pub fn reference(&self) -> Result<&Sides> {
        of_reference(&self.pooled.1)?.both(REFERENCE)
    }

    /// r of one side, with the adapter off.
    ///
    /// # Errors
    /// Fails if the method did not ask for it in its `Needs`.
    pub fn reference_of(&self, side: Side) -> Result<&Tensor> {
        of_reference(&self.pooled.1)?.of(side, REFERENCE)
    }

    /// The policy's and the reference's states pooled before the transform, each `[b h]`.
    ///
    /// # Errors
    /// Fails if the method did not ask for them in its `Needs`.
    pub fn raw(&self) -> Result<(&Sides, &Sides)> {
        let what = "states before the transform";
        let (policy, reference) = self.raw.as_ref().ok_or_else(|| missing(what, "raw_states"))?;
        Ok((policy.both(what)?, of_reference(reference)?.both(what)?))
    }

    /// The policy's and the reference's transformed states of every token.
    ///
    /// # Errors
    /// Fails if the method did not ask for them in its `Needs`.
    pub fn tokens(&self) -> Result<(&Sides<TokenStates>, &Sides<TokenStates>)> {
        Ok((self.policy_tokens()?, of_reference(&self.per_token()?.1)?.both(TOKENS)?))
    }

    /// The policy's transformed states of every token.
    ///
    /// # Errors
    /// Fails if the method did not ask for them in its `Needs`, or only asked for one side.
    pub fn policy_tokens(&self) -> Result<&Sides<TokenStates>> {
        self.per_token()?.0.both(TOKENS)
    }

    /// The policy's transformed states of every token of one side.
    ///
    /// # Errors
    /// Fails if the method did not ask for them in its `Needs`.
    pub fn policy_tokens_of(&self, side: Side) -> Result<&TokenStates> {
        self.per_token()?.0.of(side, TOKENS)
    }

    fn per_token(&self) -> Result<&OfModels<TokenStates>> {
        self.tokens.as_ref().ok_or_else(|| missing(TOKENS, "states: PerToken"))
    }
}

const TOKENS: &str = "states of every token";

fn of_reference<T>(reference: &Option<PerSide<T>>) -> Result<&PerSide<T>> {
    reference.as_ref().ok_or_else(|| missing(REFERENCE, "reference_states"))
}

/// −log p of each position's own token, of b chosen sequences end to end. A model predicts the next
/// token, so this is a likelihood without the usual shift by one position.
#[derive(Debug)]
pub struct SequenceNll {
    /// The policy's `[m]`, with a gradient.
    pub policy: Tensor,
    /// The reference's `[m]`.
    pub reference: Tensor,
    /// Which of the b sequences each token belongs to `[m]`, int64, ascending.
    pub owner: Tensor,
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
    /// log Σ_v p(v)² where each token stands `[m]`, without a gradient; see
    /// [`collision`](Self::collision).
    pub log_collision: Option<Tensor>,
    /// KL(policy ‖ reference) where each token stands `[m]`; see [`kl`](Self::kl).
    pub kl: Option<Tensor>,
}

impl TokenLogprobs {
    /// Log-probabilities `[m]` of the tokens of b completions, with the completion `[m]` that each
    /// token belongs to and the number of tokens of each completion `[b]`.
    pub fn new(per_token: Tensor, owner: Tensor, tokens: Tensor) -> Self {
        Self { per_token, owner, tokens, log_collision: None, kl: None }
    }

    /// logp(y|x) = Σ over completion tokens, `[b]`.
    pub fn sum(&self) -> Tensor {
        self.sum_of(&self.per_token)
    }

    /// Σ of `values` `[m]` over each completion's tokens, `[b]`, added up in float64: hundreds of
    /// nats lose digits when they are added one after another in float32.
    pub fn sum_of(&self, values: &Tensor) -> Tensor {
        let kind = values.kind();
        self.tokens
            .zeros_like()
            .to_kind(Kind::Double)
            .index_add(0, &self.owner, &values.to_kind(Kind::Double))
            .to_kind(kind)
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

    /// KL(policy ‖ reference) = Σ_v π(v)·log(π(v)/r(v)) over the vocabulary where each token
    /// stands, in nats, `[m]`. It has a gradient into the policy.
    ///
    /// # Errors
    /// Fails if the method did not ask for it in its `Needs`, or if these are the reference's
    /// log-probabilities.
    pub fn kl(&self) -> Result<&Tensor> {
        self.kl.as_ref().ok_or_else(|| missing("the divergence from the reference", "reference_kl"))
    }
}

/// Log-probabilities of a batch.
#[derive(Debug)]
pub struct Logprobs(Sides<Option<TokenLogprobs>>);

impl Logprobs {
    /// Log-probabilities of the chosen completions, and of the rejected where the method asked for
    /// both.
    pub fn new(chosen: TokenLogprobs, rejected: Option<TokenLogprobs>) -> Self {
        Self(Sides { chosen: Some(chosen), rejected })
    }

    /// Log-probabilities of the completions that the method asked for.
    pub fn of_sides(sides: Sides<Option<TokenLogprobs>>) -> Self {
        Self(sides)
    }

    /// Log-probabilities of the chosen completions.
    ///
    /// # Errors
    /// Fails if the method did not ask for them in its `Needs`.
    pub fn chosen(&self) -> Result<&TokenLogprobs> {
        self.of(Side::Chosen)
    }

    /// Log-probabilities of the rejected completions.
    ///
    /// # Errors
    /// Fails if the method did not ask for them in its `Needs`.
    pub fn rejected(&self) -> Result<&TokenLogprobs> {
        self.of(Side::Rejected)
    }

    /// Log-probabilities of both completions.
    ///
    /// # Errors
    /// Fails if the method did not ask for both in its `Needs`.
    pub fn both(&self) -> Result<Sides<&TokenLogprobs>> {
        Sides::try_of(|side| self.of(side))
    }

    fn of(&self, side: Side) -> Result<&TokenLogprobs> {
        let found = self.0.get(side).as_ref();
        found.ok_or_else(|| {
            missing(&format!("log-probabilities of {} completions", side.name()), "logprobs: Both")
        })
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
    pub fn new(
        len: usize,
        taps: Vec<TapStates>,
        policy: Option<Logprobs>,
        reference: Option<Logprobs>,
    ) -> Self {
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
        self.sequence_nll
            .as_ref()
            .ok_or_else(|| missing("the likelihood of the whole chosen sequence", "sequence_nll"))
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
        self.reference
            .as_ref()
            .ok_or_else(|| missing("reference log-probabilities", "reference_logprobs"))
    }

    /// Δ⁺ and Δ⁻ = logp_π − logp_r of whole completions, each `[b]`; θ = Δ⁺ − Δ⁻.
    ///
    /// # Errors
    /// Where the method's `Needs` did not ask for both completions of both models.
    pub fn log_ratios(&self) -> Result<Sides> {
        let models = self.policy()?.both()?.zip(self.reference()?.both()?);
        Ok(models.map(|(policy, reference)| policy.sum() - reference.sum()))
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

    /// Averages the values of each pair over the taps at which it counts. A pair counts if it
    /// counts at one tap or more.
    ///
    /// `per_tap` gives values `[… b]` and, for each pair, whether it counts at that tap `[b]`,
    /// bool. The values of a pair that does not count must be finite, because they are multiplied
    /// by 0.
    ///
    /// # Errors
    /// Fails if there is no tap, or if `per_tap` fails at one of them.
    pub fn mean_over_counting_taps(
        &self,
        per_tap: impl Fn(&TapStates) -> Result<(Tensor, Tensor)>,
    ) -> Result<Counted> {
        let (values, counts): (Vec<_>, Vec<_>) =
            self.taps.iter().map(per_tap).collect::<Result<Vec<_>>>()?.into_iter().unzip();
        if values.is_empty() {
            return Err(missing("states", "states"));
        }
        let (values, counts) =
            (Tensor::stack(&values, 0), Tensor::stack(&counts, 0).to_kind(values[0].kind()));
        let taps = counts.sum_dim_intlist(0, false, None::<Kind>);
        let shape: Vec<i64> = values
            .size()
            .iter()
            .enumerate()
            .map(|(i, n)| if i == 0 || i + 1 == values.dim() { *n } else { 1 })
            .collect();
        let sums = (values * counts.reshape(shape)).sum_dim_intlist(0, false, None::<Kind>);
        Ok(Counted { values: sums / taps.clamp_min(1.0), counts: taps.clamp_max(1.0) })
    }
}

fn missing(what: &str, field: &str) -> Error {
    Error::internal(format!("the method reads {what} that it did not ask for"))
        .hint(format!("set `{field}` in its `Needs`"))
}
