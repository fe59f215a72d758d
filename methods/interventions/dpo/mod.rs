//! Direct preference optimisation and related losses, which only depend on the log-probabilities of
//! the policy and, except for `simper`, of the reference.

pub mod losses;

use reprpo_plugin::prelude::*;

use super::ranges::{above_zero, within};
use super::rewards::log_rewards;

#[cfg(test)]
mod tests;

/// Fields of `intervention` for `name = "dpo"`, with the same names as in TRL.
#[intervention(
    name = "dpo",
    summary = "direct preference optimisation: raise the chosen completion's log-probability over \
        the rejected one's",
    reference = "Rafailov et al. 2023, Direct Preference Optimization, eq. 7; the other types by \
        name below; computed and logged as TRL 1.16 does",
    explain = "\
L = −log σ(β θ)    or another function of θ, Δ⁺ and Δ⁻: `loss_type`
θ = Δ⁺ − Δ⁻    Δ⁺ = logp_π(y⁺|x) − logp_r(y⁺|x)    Δ⁻ = logp_π(y⁻|x) − logp_r(y⁻|x)

logp is the sum over the n⁺ or n⁻ tokens of the completion, in nats. π is the model with its
adapter, and r is the same model without it. At the first step π = r, so L = log 2 = 0.693147. The
loss only looks at outputs, so it is the baseline for the methods that look at states.
With a list of types, the losses are added, each multiplied by its number in `loss_weights` (MPO:
[sigmoid, bco_pair, sft] with [0.8, 0.2, 1]). `f_divergence_type` replaces Δ in the types that
only depend on θ. `ld_alpha` changes logp to Σ over the first min(n⁺, n⁻) tokens + α·Σ over the
others. `use_weighting` multiplies the loss of each pair by w(y⁺)·w(y⁻), which has no gradient:
w(y) = exp(mean over tokens of [log p(token) − log Σ_v p(v)²]). `aot`, `aot_unpaired` and `sft`
depend on the whole micro-batch, so their result changes with `train.batch`. `rewards/*` are β·Δ
for every type.
`simper` has neither a reference nor β: its loss is the difference of two inverse perplexities.
Without other types, the reference never runs, and the rewards are these inverse perplexities. Use
it if there is no time to search for β, or if a reference costs too much; note that an answer that
is already likely has a larger gradient than an unlikely one. Its authors report up to 5.7 points
more than the best other method on AlpacaEval 2, and the best average rank on the Open LLM
Leaderboard.",
    example(loss_type = "robust", label_smoothing = 0.1)
)]
// The schemas of `projgrad` and `projbp` refer to this schema by the name `DpoConfig`.
#[schemars(rename = "DpoConfig")]
pub struct Dpo {
    /// β: factor by which the loss multiplies the margin in nats; greater than 0. A larger value
    /// keeps the policy closer to the reference.
    #[default(0.1)]
    pub beta: f64,
    /// Loss function of the margin: one name, or a list of names whose losses are added.
    #[default(LossTypes::One(LossType::Sigmoid))]
    pub loss_type: LossTypes,
    /// Weight of each loss in the sum, greater than 0; 1 for each by default.
    pub loss_weights: Option<Vec<f64>>,
    /// e: assumed fraction of pairs with swapped labels, at least 0 and less than 1. Used by
    /// `exo_pair` (greater than 0), `robust` (less than ½), `aot` and `aot_unpaired`.
    pub label_smoothing: f64,
    /// Divergence that keeps the policy close to the reference.
    #[default(FDivergence::ReverseKl)]
    pub f_divergence_type: FDivergence,
    /// α of `alpha_divergence`; 1 is `reverse_kl`.
    #[default(0.5)]
    pub f_alpha_divergence_coef: f64,
    /// α: weight of the tokens of the longer completion beyond the length of the shorter one, from
    /// 0 to 1 (LD-DPO). By default, all tokens have the same weight. Not possible with `simper`.
    pub ld_alpha: Option<f64>,
    /// Weights each pair by how likely the policy is to generate its completions (WPO, eq. 2).
    pub use_weighting: bool,
    /// τ of `discopop`: width of the transition from logistic to exponential loss, in units of βθ;
    /// greater than 0.
    #[default(0.05)]
    pub discopop_tau: f64,
}

/// The types of loss, with TRL's names.
#[choice]
pub enum LossType {
    /// −log σ(βθ) (Rafailov et al. 2023, eq. 7)
    Sigmoid,
    /// relu(1 − βθ) (SLiC: Zhao et al. 2023; RSO: Liu et al. 2023)
    Hinge,
    /// (Δ⁺/n⁺ − Δ⁻/n⁻ − 1/(2β))² (Azar et al. 2023, eq. 17, per token)
    Ipo,
    /// relu(1/(2β) − (Δ⁺/n⁺ − Δ⁻/n⁻))²: `ipo` without a penalty beyond its target
    IpoRelu,
    /// σ(βθ)[log σ(βθ) − log(1−e)] + σ(−βθ)[log σ(−βθ) − log e] (EXO: Ji et al. 2024, eq. 16)
    ExoPair,
    /// −log σ(βΔ⁺) − ½log σ(−βΔ⁺) − ½log σ(−βΔ⁻) (NCA: Chen et al. 2024)
    NcaPair,
    /// [−(1−e)log σ(βθ) + e log σ(−βθ)]/(1−2e) (Chowdhury et al. 2024)
    Robust,
    /// −log σ(βΔ⁺) − log σ(−βΔ⁻) (BCO: Jung et al. 2024)
    BcoPair,
    /// (Δ⁺ − ½/β)² + (Δ⁻ + ½/β)² (SPPO: Wu et al. 2024)
    SppoHard,
    /// −(1−e)log σ(βδ) − e log σ(−βδ), δ = sort(log-ratios of π) − sort(log-ratios of r) over the
    /// micro-batch (Melnyk et al. 2024)
    Aot,
    /// like `aot`, with δ = sort(Δ⁺) − sort(Δ⁻)
    AotUnpaired,
    /// [1 − σ(βΔ⁺)] + σ(βΔ⁻) (APO: D'Oosterlinck et al. 2024, eq. 7)
    ApoZero,
    /// σ(βΔ⁺) + [1 − σ(βθ)] (APO, eq. 8)
    ApoDown,
    /// (1−m)(−log σ(l)) + m·e^{−l}, l = βθ, m = σ(l/τ) (Lu et al. 2024, eq. 5)
    Discopop,
    /// mean of −log p over all tokens of the chosen completions in the micro-batch
    Sft,
    /// −log σ(β(Δ⁺/n⁺ − Δ⁻/n⁻))
    SigmoidNorm,
    /// e^{logp_π(y⁻)/n⁻} − e^{logp_π(y⁺)/n⁺}, without β and without a reference (SimPER: Xiao et
    /// al. 2025)
    Simper,
    /// log σ(−θ), without β and without a lower bound; used in the original implementation of
    /// `prefvec`
    Unbounded,
}

impl LossType {
    /// Returns true if the loss can be combined with an f-divergence, as in TRL.
    fn takes_divergence(self) -> bool {
        use LossType::{Discopop, ExoPair, Hinge, Ipo, IpoRelu, Robust, Sft, Sigmoid, SigmoidNorm};
        matches!(
            self,
            Sigmoid | SigmoidNorm | Hinge | Ipo | IpoRelu | ExoPair | Robust | Discopop | Sft
        )
    }

    fn takes_smoothing(self) -> bool {
        matches!(self, LossType::ExoPair | LossType::Robust | LossType::Aot | LossType::AotUnpaired)
    }

    /// Returns true if the loss sorts the values of a batch. The terms of such a loss do not belong
    /// to individual pairs.
    fn sorts(self) -> bool {
        matches!(self, LossType::Aot | LossType::AotUnpaired)
    }

    /// Returns true if the loss of a pair depends on the other pairs of its micro-batch.
    fn mixes_pairs(self) -> bool {
        self.sorts() || self == LossType::Sft
    }

    /// Returns the name that selects this loss type in the configuration.
    fn name(self) -> String {
        reprpo_plugin::serde_json::to_value(self)
            .ok()
            .and_then(|v| v.as_str().map(str::to_owned))
            .unwrap_or_default()
    }

    /// Returns the loss of each pair, as a tensor of shape `[b]`. For `sft`, returns the mean over
    /// the micro-batch instead, as a scalar.
    fn of(self, terms: &Terms, config: &Dpo) -> Tensor {
        let (delta, beta, e) = (&terms.delta, config.beta, config.label_smoothing);
        let theta = &terms.scores.chosen - &terms.scores.rejected;
        let per_token = || {
            &terms.scores.chosen / &terms.tokens.chosen
                - &terms.scores.rejected / &terms.tokens.rejected
        };
        match self {
            LossType::Sigmoid => losses::sigmoid(&theta, beta),
            LossType::Hinge => losses::hinge(&theta, beta),
            LossType::Ipo => losses::ipo(&per_token(), beta),
            LossType::IpoRelu => losses::ipo_relu(&per_token(), beta),
            LossType::ExoPair => losses::exo_pair(&theta, beta, e),
            LossType::NcaPair => losses::nca_pair(delta, beta),
            LossType::Robust => losses::robust(&theta, beta, e),
            LossType::BcoPair => losses::bco_pair(delta, beta),
            LossType::SppoHard => losses::sppo_hard(delta, beta),
            LossType::Aot => losses::aot(&terms.log_ratios[0], &terms.log_ratios[1], beta, e),
            LossType::AotUnpaired => losses::aot(&delta.chosen, &delta.rejected, beta, e),
            LossType::ApoZero => losses::apo_zero(delta, beta),
            LossType::ApoDown => losses::apo_down(delta, beta),
            LossType::Discopop => losses::discopop(&theta, beta, config.discopop_tau),
            LossType::Sft => terms.nll.shallow_clone(),
            LossType::SigmoidNorm => losses::sigmoid(&per_token(), beta),
            LossType::Simper => losses::simper(&terms.inverse_perplexity),
            LossType::Unbounded => losses::unbounded(&theta),
        }
    }
}

/// One loss type, or a list of types whose losses are added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(
    crate = "reprpo_plugin::serde",
    untagged,
    expecting = "unknown loss type, expected one of `sigmoid`, `hinge`, `ipo`, `ipo_relu`, \
        `exo_pair`, `nca_pair`, `robust`, `bco_pair`, `sppo_hard`, `aot`, `aot_unpaired`, \
        `apo_zero`, `apo_down`, `discopop`, `sft`, `sigmoid_norm`, `simper`, `unbounded`, or a \
        list of them"
)]
#[schemars(crate = "reprpo_plugin::schemars")]
pub enum LossTypes {
    /// One type.
    One(LossType),
    /// Several types; their losses are added.
    Several(Vec<LossType>),
}

impl LossTypes {
    fn list(&self) -> &[LossType] {
        match self {
            LossTypes::One(one) => std::slice::from_ref(one),
            LossTypes::Several(list) => list,
        }
    }
}

/// Divergences between policy and reference. Each one replaces Δ in θ by the given expression.
#[choice]
pub enum FDivergence {
    /// Δ
    ReverseKl,
    /// 1 − e^{−Δ}
    ForwardKl,
    /// log 2 + log σ(Δ)
    JsDivergence,
    /// (e^{(α−1)Δ} − 1)/(α − 1)
    AlphaDivergence,
}

impl InterventionPlugin for Dpo {
    fn build(self, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
        self.check()?;
        Ok(Box::new(self))
    }
}

impl Intervention for Dpo {
    fn needs(&self) -> Needs {
        self.needs()
    }

    fn loss(&mut self, pairs: &Pairs, _: StepInfo) -> Result<Loss> {
        Dpo::loss(self, pairs)
    }
}

/// Inputs of the loss types. Every tensor has the shape `[b]`, except `nll`, which is a scalar.
struct Terms {
    /// logp(y⁺) − logp(y⁻) of the policy and of the reference, in this order.
    log_ratios: [Tensor; 2],
    /// Δ⁺ and Δ⁻.
    delta: Sides,
    /// Δ⁺ and Δ⁻, each replaced by the expression of the f-divergence.
    scores: Sides,
    /// n⁺ and n⁻.
    tokens: Sides,
    /// Mean of −log p over all tokens of the chosen completions.
    nll: Tensor,
    /// exp(logp_π(y⁺)/n⁺), and the same for y⁻.
    inverse_perplexity: Sides,
}

/// The losses of the pairs of a batch, and the values that are logged with them.
pub struct PairLosses {
    /// The weighted loss of each pair `[b]` and its factor in the sum, for each loss type. The loss
    /// of `sft` is one number, the mean over the batch.
    losses: Vec<(Tensor, f64)>,
    /// Weight of each pair, `[b]`, without a gradient; `None` without `use_weighting`.
    pub weight: Option<Tensor>,
    /// The rewards before they are multiplied by `beta`, each `[b]`.
    rewards: Sides,
    beta: f64,
    /// Log-probabilities that differ from those that the engine logs.
    logps: Option<Sides>,
}

impl PairLosses {
    /// Returns the mean loss over the pairs, a scalar.
    fn mean(&self) -> Tensor {
        let means = self.losses.iter().map(|(each, factor)| each.mean(None::<Kind>) * *factor);
        Tensor::stack(&means.collect::<Vec<_>>(), 0).sum(None::<Kind>)
    }

    /// Returns the loss of each pair, `[b]`. Each pair has the loss of the whole batch in place of
    /// the type `sft`.
    pub fn each(&self) -> Tensor {
        let zero = self.rewards.chosen.zeros_like();
        self.losses.iter().fold(zero, |sum, (each, factor)| sum + each * *factor)
    }

    /// Adds the metrics of DPO to a loss.
    pub fn log(&self, loss: Loss) -> Loss {
        let loss = log_rewards(loss, &self.rewards, self.beta);
        match &self.logps {
            Some(logps) => {
                loss.metric("logps/chosen", &logps.chosen).metric("logps/rejected", &logps.rejected)
            }
            None => loss,
        }
    }
}

impl Dpo {
    /// Checks that each field is valid, and that the fields are compatible with each other.
    ///
    /// # Errors
    /// Fails if a number is out of range, if the number of weights differs from the number of loss
    /// types, or if an option is set that a chosen loss type does not support.
    pub fn check(&self) -> Result<()> {
        let (types, e) = (self.loss_type.list(), self.label_smoothing);
        above_zero("beta", self.beta)?;
        above_zero("discopop_tau", self.discopop_tau)?;
        within("label_smoothing", e, (0.0..1.0).contains(&e), "at least 0 and less than 1")?;
        let alpha = self.f_alpha_divergence_coef;
        within("f_alpha_divergence_coef", alpha, alpha.is_finite(), "finite")?;
        if let Some(alpha) = self.ld_alpha {
            within("ld_alpha", alpha, (0.0..=1.0).contains(&alpha), "from 0 to 1")?;
        }
        if types.is_empty() {
            return Err(Error::new("`intervention.loss_type` is an empty list")
                .hint("name at least one type"));
        }
        if let Some(weights) = &self.loss_weights {
            if weights.len() != types.len() {
                return Err(Error::new(format!(
                    "`intervention.loss_weights` has {} weights for {} loss types",
                    weights.len(),
                    types.len()
                ))
                .hint("set one weight for each name in `intervention.loss_type`"));
            }
            weights.iter().try_for_each(|w| above_zero("loss_weights", *w))?;
        }
        if e > 0.0 && !types.iter().any(|t| t.takes_smoothing()) {
            return Err(Error::new(format!(
                "`intervention.label_smoothing` is {e}, but none of the chosen loss types uses it"
            ))
            .hint(
                "choose `exo_pair`, `robust`, `aot` or `aot_unpaired`, or remove `label_smoothing`",
            ));
        }
        for t in types {
            if *t == LossType::ExoPair && e == 0.0 {
                return Err(Error::new(
                    "`intervention.label_smoothing` must be greater than 0 for `exo_pair`, got 0",
                )
                .hint("set it to 1e-3, as in the paper"));
            }
            if *t == LossType::Robust && e >= 0.5 {
                return Err(Error::new(format!(
                    "`intervention.label_smoothing` must be less than 0.5 for `robust`, got {e}"
                )));
            }
            if self.f_divergence_type != FDivergence::ReverseKl && !t.takes_divergence() {
                return Err(Error::new(format!(
                    "`{}` only supports `intervention.f_divergence_type` = `reverse_kl`",
                    t.name()
                ))
                .hint(
                    "use other divergences only with sigmoid, sigmoid_norm, hinge, ipo, ipo_relu, \
                        exo_pair, robust, discopop and sft",
                ));
            }
            if *t == LossType::Simper && self.ld_alpha.is_some() {
                return Err(Error::new(
                    "`simper` compares perplexities, so `intervention.ld_alpha` cannot weight \
                        their tokens",
                )
                .hint("remove `ld_alpha`, or choose another loss type"));
            }
            if self.use_weighting && t.sorts() {
                return Err(Error::new(format!(
                    "`{}` sorts the values of all pairs, so `intervention.use_weighting` cannot \
                        weight individual pairs",
                    t.name()
                )));
            }
        }
        Ok(())
    }

    /// True if a loss type sorts the values of the pairs of a batch.
    pub fn sorts(&self) -> bool {
        self.loss_type.list().iter().any(|t| t.sorts())
    }

    /// True if no loss type has a reference.
    fn is_reference_free(&self) -> bool {
        self.loss_type.list().iter().all(|t| *t == LossType::Simper)
    }

    /// Inputs of [`loss`](Self::loss): log-probabilities of both completions under both models.
    /// Every loss type except `simper` needs these values, because the rewards are logged.
    pub fn needs(&self) -> Needs {
        Needs {
            logprobs: Completions::Both,
            reference_logprobs: !self.is_reference_free(),
            collision: self.use_weighting,
            depends_on_batch: self.loss_type.list().iter().any(|loss| loss.mixes_pairs()),
            ..Needs::default()
        }
    }

    /// Returns the mean loss over the pairs, with TRL's `rewards/*` as metrics. With `ld_alpha`,
    /// `logps/*` are also metrics. Their values then differ from the log-probabilities that the
    /// engine logs.
    ///
    /// # Errors
    /// Fails if `pairs` lacks an input that [`needs`](Self::needs) requests.
    pub fn loss(&self, pairs: &Pairs) -> Result<Loss> {
        let losses = self.pair_losses(pairs)?;
        Ok(losses.log(Loss::new(losses.mean())))
    }

    /// Returns the loss of each pair.
    ///
    /// # Errors
    /// Fails if `pairs` lacks an input that [`needs`](Self::needs) requests.
    pub fn pair_losses(&self, pairs: &Pairs) -> Result<PairLosses> {
        let policy = self.logps(pairs.policy()?)?;
        let is_free = self.is_reference_free();
        let reference = match is_free {
            // A reference of 0 makes Δ the log-probability of the policy, which no term reads.
            true => policy.as_ref().map(Tensor::zeros_like),
            false => self.logps(pairs.reference()?)?,
        };
        let terms = self.terms(pairs, &policy, &reference)?;
        let weight = if self.use_weighting {
            Some(alignment(pairs.policy()?.chosen()?)? * alignment(pairs.policy()?.rejected()?)?)
        } else {
            None
        };
        let types = self.loss_type.list();
        let factors = self.loss_weights.clone().unwrap_or_else(|| vec![1.0; types.len()]);
        let losses = types.iter().map(|t| {
            let each = t.of(&terms, self);
            weight.as_ref().map_or_else(|| each.shallow_clone(), |w| &each * w)
        });
        Ok(PairLosses {
            losses: losses.zip(factors).collect(),
            weight,
            rewards: if is_free { terms.inverse_perplexity } else { terms.delta },
            beta: if is_free { 1.0 } else { self.beta },
            logps: self.ld_alpha.is_some().then_some(policy),
        })
    }

    fn terms(&self, pairs: &Pairs, policy: &Sides, reference: &Sides) -> Result<Terms> {
        let delta = Sides {
            chosen: &policy.chosen - &reference.chosen,
            rejected: &policy.rejected - &reference.rejected,
        };
        let (chosen, rejected) = (&pairs.policy()?.chosen()?, pairs.policy()?.rejected()?);
        Ok(Terms {
            log_ratios: [policy, reference].map(|logps| &logps.chosen - &logps.rejected),
            scores: Sides {
                chosen: self.score(&delta.chosen),
                rejected: self.score(&delta.rejected),
            },
            delta,
            tokens: Sides {
                chosen: chosen.tokens.shallow_clone(),
                rejected: rejected.tokens.shallow_clone(),
            },
            nll: -chosen.per_token.mean(None::<Kind>),
            inverse_perplexity: Sides {
                chosen: chosen.mean().exp(),
                rejected: rejected.mean().exp(),
            },
        })
    }

    fn score(&self, delta: &Tensor) -> Tensor {
        match self.f_divergence_type {
            FDivergence::ReverseKl => delta.shallow_clone(),
            FDivergence::ForwardKl => losses::forward_kl(delta),
            FDivergence::JsDivergence => losses::js_divergence(delta),
            FDivergence::AlphaDivergence => {
                losses::alpha_divergence(delta, self.f_alpha_divergence_coef)
            }
        }
    }

    /// Returns logp(y⁺) and logp(y⁻) of one model. Both tensors have the shape `[b]`.
    fn logps(&self, of: &Logprobs) -> Result<Sides> {
        let (chosen, rejected) = (of.chosen()?, of.rejected()?);
        let Some(alpha) = self.ld_alpha else {
            return Ok(Sides { chosen: chosen.sum(), rejected: rejected.sum() });
        };
        let shared = chosen.tokens.minimum(&rejected.tokens);
        Ok(Sides {
            chosen: shortened(chosen, &shared, alpha),
            rejected: shortened(rejected, &shared, alpha),
        })
    }
}

/// For each sequence, returns Σ log p over the first `shared` tokens plus α·Σ log p over the
/// remaining tokens. `shared` and the result have the shape `[b]`.
fn shortened(of: &TokenLogprobs, shared: &Tensor, alpha: f64) -> Tensor {
    let m = of.per_token.size()[0];
    // Use integers, because a cumulative sum of floats can differ between runs on CUDA.
    let tokens = of.tokens.to_kind(Kind::Int64);
    let first = (tokens.cumsum(0, Kind::Int64) - tokens).to_kind(of.tokens.kind());
    let place = Tensor::arange(m, (of.tokens.kind(), of.tokens.device()))
        - first.index_select(0, &of.owner);
    let past = place.ge_tensor(&shared.index_select(0, &of.owner)).to_kind(of.per_token.kind());
    of.sum_of(&(&of.per_token * (1.0 - past * (1.0 - alpha))))
}

/// Returns w(y) for each completion, as a tensor of shape `[b]` without a gradient. In WPO, the
/// weight of a pair is w(y⁺)·w(y⁻).
///
/// w(y) = exp(mean over tokens of [log p(token) − log Σ_v p(v)²]).
fn alignment(of: &TokenLogprobs) -> Result<Tensor> {
    Ok((of.sum_of(&(of.per_token.detach() - of.collision()?)) / &of.tokens).exp())
}
