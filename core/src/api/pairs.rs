//! The input of a method: states and log-probabilities of the pairs in a batch. A method never
//! receives the model itself.

use tch::{Kind, Tensor};

use super::{Side, Sides, Site};
use crate::error::{Error, Result};

/// Tolerance for treating two states as equal, in multiples of the dtype's machine epsilon.
/// Averaging a few hundred equal states in a different order changes the mean by up to a few dozen
/// epsilons.
pub(crate) const ROUNDING: f64 = 64.0;

impl Sides<Tensor> {
    /// Returns a bool tensor `[b]` that is true for each pair whose two vectors differ by more than
    /// rounding errors. The two sides are `[b w]`.
    ///
    /// ‖chosen − rejected‖ is compared with 64 ε times the length of the longer vector, where ε is
    /// the machine epsilon of the dtype. Identical completions share their rows in a batch, so
    /// their states are bitwise equal, even if the model computes in bf16.
    pub fn differ(&self) -> Tensor {
        let _guard = tch::no_grad_guard();
        let length = |x: &Tensor| x.norm_scalaropt_dim(2.0, -1, false);
        let (chosen, rejected) = (self.chosen.detach(), self.rejected.detach());
        let limit =
            length(&chosen).maximum(&length(&rejected)) * (ROUNDING * precision(chosen.kind()));
        length(&(chosen - rejected)).gt_tensor(&limit)
    }
}

/// The machine epsilon of a dtype: the distance from 1 to the next larger number.
pub fn precision(kind: Kind) -> f64 {
    match kind {
        Kind::Double => f64::EPSILON,
        Kind::BFloat16 => 1.0 / 128.0,
        Kind::Half => 1.0 / 1024.0,
        _ => f64::from(f32::EPSILON),
    }
}

/// One value per pair of a batch, and a mask of the pairs that are included in the mean.
#[derive(Debug)]
pub struct Counted {
    /// The values `[… b]`, which are 0 for excluded pairs.
    pub values: Tensor,
    /// 1 for included pairs and 0 for excluded ones, `[b]`, with the dtype of `values`.
    pub counts: Tensor,
}

impl Counted {
    /// Averages `per_pair`, of shape `[b]`, over the included pairs. If no pairs are included, the
    /// mean and its gradient are 0.
    pub fn mean(&self, per_pair: &Tensor) -> Tensor {
        mean_of_counted(per_pair, &self.counts, per_pair.kind())
    }
}

/// Averages `values`, of shape `[b]`, over the included pairs. The mean has the dtype `kind`, and
/// is 0 if no pairs are included.
pub(super) fn mean_of_counted(values: &Tensor, counts: &Tensor, kind: Kind) -> Tensor {
    (values * counts).sum(kind) / counts.sum(kind).clamp_min(1.0)
}

/// The transformed states of every token in b concatenated sequences, including the prompts.
#[derive(Debug)]
pub struct TokenStates {
    /// The states after the transform, `[m h]`, where m is the total number of tokens.
    pub states: Tensor,
    /// Index of the sequence (0 to b − 1) that each token belongs to, `[m]`, int64, ascending.
    pub owner: Tensor,
    /// True for the tokens of completions, `[m]`, bool.
    pub completion: Tensor,
    /// Number of sequences b.
    pub sequences: i64,
}

impl TokenStates {
    /// Sums `values` over the tokens of each sequence, `[m …]` → `[b …]`.
    pub fn sum_by_sequence(&self, values: &Tensor) -> Tensor {
        let mut size = values.size();
        size[0] = self.sequences;
        Tensor::zeros(size, (values.kind(), values.device())).index_add(0, &self.owner, values)
    }
}

/// Values from one model, for both sides or only for the side that the method needs.
#[derive(Debug)]
pub enum PerSide<T = Tensor> {
    /// Values for both sides.
    Both(Sides<T>),
    /// The value for one side.
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

/// The policy's values, and the reference's values if the method needs these.
type OfModels<T> = (PerSide<T>, Option<PerSide<T>>);

const STATES: &str = "states";
const REFERENCE: &str = "reference states";

/// The pooled and transformed states at one tap, each `[b h]`: p⁺ and p⁻ from the policy, and r⁺
/// and r⁻ from the reference.
#[derive(Debug)]
pub struct TapStates {
    /// Site where the states were read.
    pub site: Site,
    pooled: OfModels<Tensor>,
    raw: Option<OfModels<Tensor>>,
    tokens: Option<OfModels<TokenStates>>,
}

impl TapStates {
    /// Creates the states of a tap. `reference` is `None` if the method does not need the
    /// reference's states. `policy` and `reference` are each a [`Sides`] or a [`PerSide`].
    pub fn new<S: Into<PerSide>>(site: Site, policy: S, reference: Option<S>) -> Self {
        Self { site, pooled: (policy.into(), reference.map(Into::into)), raw: None, tokens: None }
    }

    /// Adds the states pooled before the transform. `reference` is `None` if the method does not
    /// need the reference's states.
    #[must_use]
    pub fn with_raw<S: Into<PerSide>>(mut self, policy: S, reference: Option<S>) -> Self {
        self.raw = Some((policy.into(), reference.map(Into::into)));
        self
    }

    /// Adds the states of every token. `reference` is `None` if the method does not need the
    /// reference's states.
    #[must_use]
    pub fn with_tokens<S: Into<PerSide<TokenStates>>>(
        mut self,
        policy: S,
        reference: Option<S>,
    ) -> Self {
        self.tokens = Some((policy.into(), reference.map(Into::into)));
        self
    }

    /// The policy's states p⁺ and p⁻.
    ///
    /// # Errors
    /// Fails if the method's `Needs` only request one side.
    pub fn policy(&self) -> Result<&Sides> {
        self.pooled.0.both(STATES)
    }

    /// The policy's states of one side.
    ///
    /// # Errors
    /// Fails if the method's `Needs` only request the other side.
    pub fn policy_of(&self, side: Side) -> Result<&Tensor> {
        self.pooled.0.of(side, STATES)
    }

    /// The reference's states r⁺ and r⁻. Gradients only flow into the parameters of the transform.
    ///
    /// # Errors
    /// Fails if the method's `Needs` do not request them.
    pub fn reference(&self) -> Result<&Sides> {
        of_reference(&self.pooled.1)?.both(REFERENCE)
    }

    /// The reference's states of one side.
    ///
    /// # Errors
    /// Fails if the method's `Needs` do not request them.
    pub fn reference_of(&self, side: Side) -> Result<&Tensor> {
        of_reference(&self.pooled.1)?.of(side, REFERENCE)
    }

    /// The policy's and the reference's states pooled before the transform, each `[b h]`.
    ///
    /// # Errors
    /// Fails if the method's `Needs` do not request them.
    pub fn raw(&self) -> Result<(&Sides, &Sides)> {
        let what = "states before the transform";
        let (policy, reference) = self.raw.as_ref().ok_or_else(|| missing(what, "raw_states"))?;
        Ok((policy.both(what)?, of_reference(reference)?.both(what)?))
    }

    /// The policy's and the reference's transformed states of every token.
    ///
    /// # Errors
    /// Fails if the method's `Needs` do not request them.
    pub fn tokens(&self) -> Result<(&Sides<TokenStates>, &Sides<TokenStates>)> {
        Ok((self.policy_tokens()?, of_reference(&self.per_token()?.1)?.both(TOKENS)?))
    }

    /// The policy's transformed states of every token.
    ///
    /// # Errors
    /// Fails if the method's `Needs` do not request them, or only request one side.
    pub fn policy_tokens(&self) -> Result<&Sides<TokenStates>> {
        self.per_token()?.0.both(TOKENS)
    }

    /// The policy's transformed states of every token of one side.
    ///
    /// # Errors
    /// Fails if the method's `Needs` do not request them.
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

/// −log p of each token under the logits at its own position, for b concatenated chosen sequences.
///
/// This is not the usual likelihood, in which the logits at a position predict the next token.
#[derive(Debug)]
pub struct SequenceNll {
    /// −log p under the policy, `[m]`, with a gradient.
    pub policy: Tensor,
    /// −log p under the reference, `[m]`.
    pub reference: Tensor,
    /// Index of the sequence (0 to b − 1) that each token belongs to, `[m]`, int64, ascending.
    pub owner: Tensor,
}

/// Log-probabilities of the tokens of b concatenated completions.
#[derive(Debug)]
pub struct TokenLogprobs {
    /// log p(token | preceding tokens), `[m]`, where m is the total number of completion tokens.
    pub per_token: Tensor,
    /// Index of the completion (0 to b − 1) that each token belongs to, `[m]`, int64, ascending.
    pub owner: Tensor,
    /// Number of tokens of each completion, `[b]`, with the dtype of `per_token`.
    pub tokens: Tensor,
    /// log Σ_v p(v)² at each token, `[m]`, without a gradient; see [`collision`](Self::collision).
    pub log_collision: Option<Tensor>,
    /// KL(policy ‖ reference) at each token, `[m]`; see [`kl`](Self::kl).
    pub kl: Option<Tensor>,
}

impl TokenLogprobs {
    /// Creates log-probabilities without `log_collision` and `kl`. Each argument sets the field of
    /// the same name.
    pub fn new(per_token: Tensor, owner: Tensor, tokens: Tensor) -> Self {
        Self { per_token, owner, tokens, log_collision: None, kl: None }
    }

    /// log p(y|x) of each completion, i.e. the sum over its tokens, `[b]`.
    pub fn sum(&self) -> Tensor {
        self.sum_of(&self.per_token)
    }

    /// Sums `values` over the tokens of each completion, `[m]` → `[b]`. The sums are accumulated in
    /// float64, because a sum of hundreds of nats loses digits in float32.
    pub fn sum_of(&self, values: &Tensor) -> Tensor {
        let kind = values.kind();
        self.tokens
            .zeros_like()
            .to_kind(Kind::Double)
            .index_add(0, &self.owner, &values.to_kind(Kind::Double))
            .to_kind(kind)
    }

    /// The mean log-probability of the tokens of each completion, `[b]`.
    pub fn mean(&self) -> Tensor {
        self.sum() / &self.tokens
    }

    /// log Σ_v p(v)² over the vocabulary at each token, `[m]`, without a gradient.
    ///
    /// # Errors
    /// Fails if the method's `Needs` do not request it.
    pub fn collision(&self) -> Result<&Tensor> {
        self.log_collision.as_ref().ok_or_else(|| missing("the collision probability", "collision"))
    }

    /// KL(policy ‖ reference) = Σ_v π(v)·log(π(v)/r(v)) over the vocabulary at each token, in nats,
    /// `[m]`. Its gradient flows into the policy.
    ///
    /// # Errors
    /// Fails if the method's `Needs` do not request it, or if `self` belongs to the reference.
    pub fn kl(&self) -> Result<&Tensor> {
        self.kl.as_ref().ok_or_else(|| missing("the divergence from the reference", "reference_kl"))
    }
}

/// Log-probabilities of a batch of pairs under one model.
#[derive(Debug)]
pub struct Logprobs(Sides<Option<TokenLogprobs>>);

impl Logprobs {
    /// Log-probabilities of the chosen completions, and of the rejected ones if the method needs
    /// both.
    pub fn new(chosen: TokenLogprobs, rejected: Option<TokenLogprobs>) -> Self {
        Self(Sides { chosen: Some(chosen), rejected })
    }

    /// Log-probabilities of the completions that the method needs.
    pub fn of_sides(sides: Sides<Option<TokenLogprobs>>) -> Self {
        Self(sides)
    }

    /// Log-probabilities of the chosen completions.
    ///
    /// # Errors
    /// Fails if the method's `Needs` do not request them.
    pub fn chosen(&self) -> Result<&TokenLogprobs> {
        self.of(Side::Chosen)
    }

    /// Log-probabilities of the rejected completions.
    ///
    /// # Errors
    /// Fails if the method's `Needs` do not request them.
    pub fn rejected(&self) -> Result<&TokenLogprobs> {
        self.of(Side::Rejected)
    }

    /// Log-probabilities of both completions.
    ///
    /// # Errors
    /// Fails if the method's `Needs` do not request both.
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

/// A batch of b pairs with the values that the method needs.
#[derive(Debug)]
pub struct Pairs {
    /// Number of pairs b.
    pub len: usize,
    /// States at each tap; empty if the method needs no states.
    pub taps: Vec<TapStates>,
    policy: Option<Logprobs>,
    reference: Option<Logprobs>,
    sequence_nll: Option<SequenceNll>,
    sequence_logprobs: Option<Logprobs>,
}

impl Pairs {
    /// Creates a batch. Called by the engine and by the tests of methods.
    pub fn new(
        len: usize,
        taps: Vec<TapStates>,
        policy: Option<Logprobs>,
        reference: Option<Logprobs>,
    ) -> Self {
        Self { len, taps, policy, reference, sequence_nll: None, sequence_logprobs: None }
    }

    /// Adds −log p of the chosen sequences; see [`SequenceNll`].
    #[must_use]
    pub fn with_sequence_nll(mut self, nll: SequenceNll) -> Self {
        self.sequence_nll = Some(nll);
        self
    }

    /// Adds the policy's log-probabilities of whole sequences; see
    /// [`sequence_logprobs`](Self::sequence_logprobs).
    #[must_use]
    pub fn with_sequence_logprobs(mut self, logprobs: Logprobs) -> Self {
        self.sequence_logprobs = Some(logprobs);
        self
    }

    /// Log-probabilities of every token of prompt and completion after the first one, under the
    /// policy, with a gradient.
    ///
    /// # Errors
    /// Fails if the method's `Needs` do not request them.
    pub fn sequence_logprobs(&self) -> Result<&Logprobs> {
        self.sequence_logprobs.as_ref().ok_or_else(|| {
            missing("log-probabilities of whole sequences", "sequence_logprobs: Both")
        })
    }

    /// −log p of each token of the chosen sequences under the logits at its own position.
    ///
    /// # Errors
    /// Fails if the method's `Needs` do not request it.
    pub fn sequence_nll(&self) -> Result<&SequenceNll> {
        self.sequence_nll
            .as_ref()
            .ok_or_else(|| missing("the likelihood of the chosen sequences", "sequence_nll"))
    }

    /// Log-probabilities of the policy, with a gradient.
    ///
    /// # Errors
    /// Fails if the method's `Needs` do not request them.
    pub fn policy(&self) -> Result<&Logprobs> {
        self.policy.as_ref().ok_or_else(|| missing("log-probabilities", "logprobs"))
    }

    /// Log-probabilities of the reference, without a gradient.
    ///
    /// # Errors
    /// Fails if the method's `Needs` do not request them.
    pub fn reference(&self) -> Result<&Logprobs> {
        self.reference
            .as_ref()
            .ok_or_else(|| missing("reference log-probabilities", "reference_logprobs"))
    }

    /// The log-ratios Δ⁺ and Δ⁻ = log p_π − log p_r of whole completions, each `[b]`. The margin is
    /// θ = Δ⁺ − Δ⁻.
    ///
    /// # Errors
    /// Fails if the method's `Needs` do not request both completions for both models.
    pub fn log_ratios(&self) -> Result<Sides> {
        let models = self.policy()?.both()?.zip(self.reference()?.both()?);
        Ok(models.map(|(policy, reference)| policy.sum() - reference.sum()))
    }

    /// Averages the results of `per_tap` over the taps. All results must have the same shape.
    ///
    /// # Errors
    /// Fails if there are no taps, or if `per_tap` fails at one of them.
    pub fn mean_over_taps(&self, per_tap: impl Fn(&TapStates) -> Result<Tensor>) -> Result<Tensor> {
        let values = self.taps.iter().map(per_tap).collect::<Result<Vec<_>>>()?;
        if values.is_empty() {
            return Err(missing("states", "states"));
        }
        Ok(Tensor::stack(&values, 0).mean_dim(0, false, None::<Kind>))
    }

    /// Averages the values of each pair over the taps that include it. A pair is included in the
    /// result if at least one tap includes it.
    ///
    /// `per_tap` returns values `[… b]` and a bool tensor `[b]` that is true for the included
    /// pairs. The values of excluded pairs must be finite, because they are multiplied by 0.
    ///
    /// # Errors
    /// Fails if there are no taps, or if `per_tap` fails at one of them.
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
    Error::internal(format!("the method reads {what}, which its `Needs` do not request"))
        .hint(format!("set `{field}` in its `Needs`"))
}
