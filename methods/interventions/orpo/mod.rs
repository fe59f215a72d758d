//! Odds ratio preference optimisation: supervised fine-tuning and a preference term in one stage.

use reprpo_plugin::prelude::*;

use super::ranges::zero_or_more;
use super::rewards::log_rewards;

#[cfg(test)]
mod tests;

/// The largest mean log-probability per token whose odds are computed, in nats. At 0, the odds are
/// infinite.
const CERTAIN: f64 = -1e-12;

/// Fields of `intervention` for `name = "orpo"`, with the same names as in TRL.
#[intervention(
    name = "orpo",
    summary = "ORPO: fine-tuning on the chosen text and the odds ratio of both completions, \
        without a reference",
    reference = "Hong, Lee and Thorne 2024, ORPO: Monolithic Preference Optimization without \
        Reference Model, eq. 4 to 7 (arXiv:2403.07691); computed and logged as TRL 1.16 does",
    explain = "\
L = nll(x, y⁺) − β·log σ(log odds(y⁺) − log odds(y⁻))
odds(y) = P/(1 − P)    log P = logp_π(y|x)/n

log P is the mean log-probability of the n tokens of a completion. nll(x, y⁺) is the mean of −log p
over the tokens of prompt and chosen completion after the first one, as in TRL and in the authors'
code. It is a mean over all these tokens of the micro-batch, so it depends on `train.batch`. The
method trains on prompts too: with long prompts, most of the nll comes from them. There is no
reference, so a step has one forward pass.
Use it to replace supervised fine-tuning and preference training of a base model by one run. The
nll outweighs the preference term, so a small β gives nearly `sft`. Use another method if the model
is already fine-tuned, or if prompts must not be learnt.
Evidence: the authors train Phi-2, Llama-2-7B and Mistral-7B on UltraFeedback only, and report up to
12.20 % on AlpacaEval 2, 66.19 % on IFEval and 7.32 on MT-Bench. In the comparison of SimPO (Meng et
al. 2024, table 4), ORPO scores below SimPO on AlpacaEval 2.",
    example(beta = 0.5)
)]
pub struct Orpo {
    /// β, λ in the paper: weight of the odds ratio term, at least 0.
    #[default(0.1)]
    pub beta: f64,
}

impl InterventionPlugin for Orpo {
    fn build(self, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
        zero_or_more("beta", self.beta)?;
        Ok(Box::new(self))
    }
}

impl Intervention for Orpo {
    fn needs(&self) -> Needs {
        Needs {
            logprobs: Completions::Both,
            sequence_logprobs: Completions::Chosen,
            depends_on_batch: true,
            ..Needs::default()
        }
    }

    fn loss(&mut self, pairs: &Pairs, _: StepInfo) -> Result<Loss> {
        let logps = pairs.policy()?.both()?.map(TokenLogprobs::mean);
        let log_odds = log_odds(&logps.chosen) - log_odds(&logps.rejected);
        let ratio = log_odds.log_sigmoid();
        let nll = -pairs.sequence_logprobs()?.chosen()?.per_token.mean(None::<Kind>);
        let loss = Loss::new(&nll - ratio.mean(None::<Kind>) * self.beta);
        Ok(log_rewards(loss, &logps, self.beta)
            .metric("logps/chosen", &logps.chosen)
            .metric("logps/rejected", &logps.rejected)
            .metric("nll_loss", &nll)
            .metric("log_odds_ratio", &ratio)
            .metric("log_odds_chosen", &log_odds))
    }
}

/// Returns log(P/(1 − P)) for log P `[b]`.
fn log_odds(log_p: &Tensor) -> Tensor {
    let log_p = log_p.clamp_max(CERTAIN);
    let one_minus_p = -log_p.expm1();
    log_p - one_minus_p.log()
}
