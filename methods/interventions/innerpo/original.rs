//! What the original branch computes, including its defects.

use reprpo_plugin::prelude::*;

use super::{InnerPo, Mode, symlog};
use crate::interventions::dpo::losses;
use crate::interventions::original::{self, OriginalTap, later_logps};
use crate::interventions::rewards::log_rewards;
use crate::interventions::vectors::{dot, norm};

/// Standard deviations above the mean norm beyond which a token is an attention sink.
const SINK: f64 = 3.0;

/// Outer losses of the branch.
#[choice]
pub enum OuterLoss {
    /// e^{ℓ⁻} − e^{ℓ⁺}, without a reference
    #[default]
    Simper,
    /// (θ − 1/(2β))²; in mode `dpo` relu(½ − βθ)²
    Ipo,
    /// −log σ(βθ)
    Dpo,
}

/// Margins x of the branch. c = ⟨p⁺ − p⁻, v̂⟩.
#[choice]
pub enum Align {
    /// c/(‖d‖ + ε) − 1
    #[default]
    ParsRat,
    /// 10·(log(c + 1e-12) − log(‖d‖ + 1e-12)), which is nan if c is negative
    ParsRatLog,
    /// c
    ParaSigned,
}

/// ℓ⁺ and ℓ⁻ of the policy and of the reference, each `[b]`. The reference is missing if the loss
/// does not read it.
pub struct Labels {
    pub policy: Sides,
    pub reference: Option<Sides>,
}

impl Labels {
    /// θ, `[b]`.
    fn margin(&self) -> Result<Tensor> {
        let Some(reference) = &self.reference else {
            return Err(Error::internal("the loss reads log-probabilities of the reference"));
        };
        let ratio = |of: &Sides| &of.chosen - &of.rejected;
        Ok(ratio(&self.policy) - ratio(reference))
    }
}

impl InnerPo {
    /// The outer loss of the selected mode.
    pub(super) fn outer_loss(&self) -> OuterLoss {
        self.original_dpo_loss.unwrap_or(match self.mode {
            Mode::Dpo => OuterLoss::Ipo,
            _ => OuterLoss::Simper,
        })
    }

    fn original_beta(&self) -> f64 {
        self.original_beta.unwrap_or(if self.mode == Mode::Dpo { 0.2 } else { 0.4 })
    }

    fn eps(&self) -> f64 {
        self.original_eps.unwrap_or(1e-4)
    }

    pub(super) fn original_needs(&self) -> Needs {
        let states = if self.mode == Mode::Dpo { Needs::NONE } else { original::NEEDS };
        let outer = match self.mode {
            Mode::Innerdpo | Mode::Dpo => Completions::Both,
            Mode::Topk | Mode::Topkl => Completions::None,
        };
        Needs {
            logprobs: outer,
            reference_logprobs: outer.any() && self.outer_loss() != OuterLoss::Simper,
            collision: self.original_policy_weights,
            depends_on_batch: self.original_policy_weights,
            ..states
        }
    }

    /// Returns the loss of a training batch.
    pub(super) fn original_of_batch(&self, pairs: &Pairs) -> Result<Loss> {
        let taps = match self.mode {
            Mode::Dpo => Vec::new(),
            _ => OriginalTap::completions(pairs, self.sinks())?,
        };
        let labels = match self.mode {
            Mode::Topk | Mode::Topkl => None,
            Mode::Innerdpo | Mode::Dpo => {
                let mean = self.mode == Mode::Innerdpo || self.outer_loss() != OuterLoss::Dpo;
                let reference = match self.outer_loss() {
                    OuterLoss::Simper => None,
                    _ => Some(later_logps(pairs.reference()?, mean)?),
                };
                Some(Labels { policy: later_logps(pairs.policy()?, mean)?, reference })
            }
        };
        let weights = match self.original_policy_weights {
            true => Some(log_weights(pairs.policy()?)?),
            false => None,
        };
        self.original(&taps, labels.as_ref(), weights.as_ref())
    }

    /// The number of standard deviations beyond which a token is left out.
    pub(super) fn sinks(&self) -> Option<f64> {
        self.original_filter_sinks.then_some(SINK)
    }

    /// Returns the loss of the branch. `weights` has the mean log-weights of WPO of both
    /// completions, each `[b]`.
    pub(super) fn original(
        &self,
        taps: &[OriginalTap<'_>],
        labels: Option<&Labels>,
        weights: Option<&Sides>,
    ) -> Result<Loss> {
        match (self.mode, labels) {
            (Mode::Topk, _) => Ok(region_loss(original::mean_over(taps, |tap| self.topk(tap))?)),
            (Mode::Topkl, _) => Ok(region_loss(self.topkl(taps)?)),
            (Mode::Innerdpo, Some(labels)) => self.innerdpo(taps, labels),
            (Mode::Dpo, Some(labels)) => self.dpo_of_branch(labels, weights),
            (Mode::Innerdpo | Mode::Dpo, None) => {
                Err(Error::internal("the loss reads log-probabilities"))
            }
        }
    }

    /// Returns p⁺ − p⁻ and r⁺ − r⁻ at a tap, each `[b h]`.
    fn differences(&self, tap: &OriginalTap<'_>) -> [Tensor; 2] {
        let [p, r] = tap.pooled(Tensor::shallow_clone);
        let rejected = if self.original_detach_rejected { p.rejected.detach() } else { p.rejected };
        [p.chosen - rejected, r.chosen - r.rejected]
    }

    fn innerdpo(&self, taps: &[OriginalTap<'_>], labels: &Labels) -> Result<Loss> {
        let margins = original::mean_over(taps, |tap| self.margins(tap))?;
        let (x, projection) = (margins.get(0), margins.get(1));
        let (beta, e) = (self.original_beta(), self.original_label_smoothing.unwrap_or(0.0));
        let (outer, inner) = match self.outer_loss() {
            OuterLoss::Simper => (losses::simper(&exponentials(labels)), projection),
            OuterLoss::Ipo => (losses::ipo(&labels.margin()?, beta), losses::ipo(&x, beta)),
            OuterLoss::Dpo => {
                let inner = losses::sigmoid(&x, beta) + losses::sigmoid(&x, -beta) * e;
                (losses::smoothed(&(labels.margin()? * beta), e), inner)
            }
        };
        let value = (outer + &inner * self.alpha()).mean(None::<Kind>);
        let loss = Loss::new(value).metric("innerpo/margin", &x).metric("innerpo/inner", &inner);
        Ok(logged(loss, labels, beta))
    }

    /// Returns x and symlog(c) at a tap, stacked to the shape `[2 b]`.
    fn margins(&self, tap: &OriginalTap<'_>) -> Tensor {
        let p_norm = |x: &Tensor| x.norm_scalaropt_dim(self.original_p.unwrap_or(2), -1, false);
        let [a, d] = self.differences(tap);
        // The reference's states have no gradient, not even into T.
        let d = d.detach();
        let length = p_norm(&d);
        let v = &d / (&length + self.eps()).unsqueeze(-1);
        let c = dot(&a, &v);
        let mut x = match self.original_align_method.unwrap_or_default() {
            Align::ParsRat => &c / (&length + self.eps()) - 1.0,
            Align::ParsRatLog => ((&c + 1e-12).log() - (&length + 1e-12).log()) * 10.0,
            Align::ParaSigned => c.shallow_clone(),
        };
        if self.original_inner_weights {
            let along = c.unsqueeze(-1) * &v;
            let (size, rest) = (p_norm(&along) + self.eps(), p_norm(&(&a - &along)) + self.eps());
            let q = (&size / (&size + rest)).detach();
            let weight = &q / (q.square() + (&q - 1.0).square());
            x = &x * weight.clamp_max(1.0);
        }
        let tau = self.original_trust_region.unwrap_or(0.0);
        if tau > 0.0 {
            x = if self.original_clamp_bottom { x.clamp_min(tau) } else { x.clamp_max(tau) };
        }
        if self.original_token_constraint {
            let moved = tap.moved(p_norm, self.original_detach_rejected);
            x = &x - (moved.rejected - moved.chosen).relu() * 0.5;
        }
        Tensor::stack(&[x, symlog(&c)], 0)
    }

    /// Returns the loss of one tap, a scalar.
    fn topk(&self, tap: &OriginalTap<'_>) -> Tensor {
        let [a, d] = self.differences(tap);
        let [a, d] = self.of_largest(&a, &d);
        let unit = unit(&d);
        let c = dot(&a, &unit).unsqueeze(-1);
        self.region(&(c / (unit + 1e-8)))
    }

    /// Returns the loss of all taps, a scalar.
    ///
    /// # Errors
    /// Fails if there are no taps.
    fn topkl(&self, taps: &[OriginalTap<'_>]) -> Result<Tensor> {
        if taps.is_empty() {
            return Err(Error::internal("the original variants need the states of every token"));
        }
        let scaled = |x: &Tensor| x / (norm(x).unsqueeze(-1) + self.eps());
        let (a, d): (Vec<_>, Vec<_>) = taps
            .iter()
            .map(|tap| {
                let [a, d] = self.differences(tap);
                (scaled(&a), scaled(&d))
            })
            .unzip();
        let [a, d] = self.of_largest(&Tensor::cat(&a, -1), &Tensor::cat(&d, -1));
        Ok(self.region(&(dot(&a, &unit(&d)) / (norm(&d) + 1e-8))))
    }

    /// Selects the coordinates with the largest |d_j| of each pair.
    fn of_largest(&self, a: &Tensor, d: &Tensor) -> [Tensor; 2] {
        let k = self.k(d.size().last().copied().unwrap_or_default());
        let indices = d.abs().topk(k, -1, true, true).1;
        [a, d].map(|x| x.gather(-1, &indices, false))
    }

    /// mean (τ − ρ)² + mean relu(1 − ρ) + 2·mean relu(ρ − τ), a scalar.
    fn region(&self, rho: &Tensor) -> Tensor {
        let tau = self.original_trust_region.unwrap_or(2.0);
        let mean = |x: Tensor| x.mean(None::<Kind>);
        mean((tau - rho).square()) + mean((-rho + 1.0).relu()) + mean((rho - tau).relu()) * 2.0
    }

    fn dpo_of_branch(&self, labels: &Labels, weights: Option<&Sides>) -> Result<Loss> {
        let beta = self.original_beta();
        let mut each = match self.outer_loss() {
            OuterLoss::Simper => losses::simper(&exponentials(labels)),
            OuterLoss::Ipo => (labels.margin()? * -beta + 0.5).relu().square(),
            OuterLoss::Dpo => losses::sigmoid(&labels.margin()?, beta),
        };
        if let Some(weights) = weights {
            let w = ((&weights.chosen + &weights.rejected) / 3.0).sigmoid().detach();
            each = &each * (&w / (w.mean(None::<Kind>) + 1e-6));
        }
        Ok(logged(Loss::new(each.mean(None::<Kind>)), labels, beta))
    }
}

fn region_loss(value: Tensor) -> Loss {
    let shown = value.shallow_clone();
    Loss::new(value).metric("innerpo/inner", &shown)
}

/// x/max(‖x‖, 1e-12).
fn unit(x: &Tensor) -> Tensor {
    x / norm(x).clamp_min(1e-12).unsqueeze(-1)
}

fn exponentials(labels: &Labels) -> Sides {
    labels.policy.as_ref().map(Tensor::exp)
}

/// Adds the reward metrics. Without a reference, the rewards are e^{ℓ}.
fn logged(loss: Loss, labels: &Labels, beta: f64) -> Loss {
    match &labels.reference {
        None => log_rewards(loss, &exponentials(labels), 1.0),
        Some(reference) => {
            let ratios = labels.policy.as_ref().zip(reference.as_ref()).map(|(p, r)| p - r);
            log_rewards(loss, &ratios, beta)
        }
    }
}

/// Returns the mean over a completion without its first token of log p(token) − log Σ_v p(v)², for
/// both sides, each `[b]`.
fn log_weights(policy: &Logprobs) -> Result<Sides> {
    policy.both()?.try_map(|of| {
        let kept = original::after_first(of);
        let values = (of.per_token.detach() - of.collision()?) * &kept;
        Ok(of.sum_of(&values) / of.sum_of(&kept))
    })
}
