//! Contrastive preference optimisation: DPO without a reference, and likelihood of the chosen text.

use reprpo_plugin::prelude::*;

use super::dpo::losses;
use super::ranges::{above_zero, within, zero_or_more};
use super::rewards::log_rewards;

#[cfg(test)]
mod tests;

/// Fields of `intervention` for `name = "cpo"`, with the same names as in TRL.
#[intervention(
    name = "cpo",
    summary = "contrastive preference optimisation: DPO without a reference, plus the likelihood \
        of the chosen text",
    reference = "Xu et al. 2024, Contrastive Preference Optimization, eq. 3 and 4 \
        (arXiv:2401.08417); computed and logged as TRL 1.16 does",
    explain = "\
L = −log σ(β m) + α·nll    m = logp_π(y⁺|x) − logp_π(y⁻|x)    nll = mean of −log p(token)
hinge: relu(1 − β m) + α·nll
ipo:   (m − 1/(2β))² + α·nll    m = logp_π(y⁺|x)/n⁺ − logp_π(y⁻|x)/n⁻

logp is the sum over the n⁺ or n⁻ tokens of the completion, in nats. nll is the mean over all tokens
of the chosen completions in the micro-batch, so it depends on `train.batch`; α is `cpo_alpha`.
There is no reference: it is replaced by a uniform one, and the nll keeps the policy near the chosen
text. So a step has one forward pass, and needs no memory for values of a reference. The loss does
not start at log 2, because m is the base model's margin. With sums over tokens, long completions
have the largest margins; `simpo` divides by the length.
Use it if a reference costs too much, or if the chosen texts are good enough to imitate. Use `dpo`
if the policy must stay close to the base model.
Evidence: the authors train ALMA-13B on 22 thousand pairs of translations and 0.1 % of its
parameters. The result matches or exceeds the winners of WMT'21 to WMT'23 and GPT-4. In the
comparison of SimPO (Meng et al. 2024, table 4), CPO scores below SimPO on AlpacaEval 2.",
    example(loss_type = "hinge", cpo_alpha = 0.5)
)]
pub struct Cpo {
    /// β: factor by which the loss multiplies the margin in nats; greater than 0.
    #[default(0.1)]
    pub beta: f64,
    /// Loss function of the margin.
    pub loss_type: LossType,
    /// e: assumed fraction of pairs with swapped labels, at least 0 and less than 1. Only `sigmoid`
    /// uses it: −(1−e)·log σ(βm) − e·log σ(−βm).
    pub label_smoothing: f64,
    /// α: weight of the chosen completions' mean −log p per token, at least 0.
    #[default(1.0)]
    pub cpo_alpha: f64,
}

/// The loss functions, with TRL's names.
#[choice]
pub enum LossType {
    /// −log σ(βm) (Xu et al. 2024, eq. 3)
    #[default]
    Sigmoid,
    /// relu(1 − βm) (SLiC: Zhao et al. 2023)
    Hinge,
    /// (m − 1/(2β))², with margins per token (Azar et al. 2023, eq. 17)
    Ipo,
}

impl InterventionPlugin for Cpo {
    fn build(self, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
        above_zero("beta", self.beta)?;
        zero_or_more("cpo_alpha", self.cpo_alpha)?;
        check_smoothing(self.label_smoothing)?;
        if self.label_smoothing > 0.0 && self.loss_type != LossType::Sigmoid {
            return Err(Error::new(format!(
                "`intervention.label_smoothing` is {}, but only `loss_type = \"sigmoid\"` uses it",
                self.label_smoothing
            ))
            .hint("remove `label_smoothing`, or choose `sigmoid`"));
        }
        Ok(Box::new(self))
    }
}

impl Intervention for Cpo {
    fn needs(&self) -> Needs {
        needs(self.cpo_alpha)
    }

    fn loss(&mut self, pairs: &Pairs, _: StepInfo) -> Result<Loss> {
        let policy = pairs.policy()?.both()?;
        let logps = match self.loss_type {
            LossType::Sigmoid | LossType::Hinge => policy.map(TokenLogprobs::sum),
            LossType::Ipo => policy.map(TokenLogprobs::mean),
        };
        let margin = &logps.chosen - &logps.rejected;
        let each = match self.loss_type {
            LossType::Sigmoid => losses::smoothed(&(margin * self.beta), self.label_smoothing),
            LossType::Hinge => losses::hinge(&margin, self.beta),
            LossType::Ipo => losses::ipo(&margin, self.beta),
        };
        let loss = with_nll(&each, policy.chosen, self.cpo_alpha);
        Ok(log_rewards(loss, &logps, self.beta)
            .metric("logps/chosen", &logps.chosen)
            .metric("logps/rejected", &logps.rejected))
    }
}

/// Checks the range of `label_smoothing`.
///
/// # Errors
/// Fails if the value is not at least 0 and less than 1.
pub fn check_smoothing(e: f64) -> Result<()> {
    within("label_smoothing", e, (0.0..1.0).contains(&e), "at least 0 and less than 1")
}

/// The needs of a loss without a reference, whose likelihood term has the weight `alpha`.
pub fn needs(alpha: f64) -> Needs {
    Needs { logprobs: Completions::Both, depends_on_batch: alpha > 0.0, ..Needs::default() }
}

/// Returns the mean of the losses `[b]`, plus `alpha` times the mean of −log p over the tokens of
/// all chosen completions. Logs TRL's metric `nll_loss`, which is 0 if `alpha` is.
pub fn with_nll(each: &Tensor, chosen: &TokenLogprobs, alpha: f64) -> Loss {
    let value = each.mean(None::<Kind>);
    if alpha == 0.0 {
        return Loss::new(value).metric("nll_loss", &Tensor::from(0.0f32));
    }
    let nll = -chosen.per_token.mean(None::<Kind>);
    Loss::new(value + &nll * alpha).metric("nll_loss", &nll)
}
