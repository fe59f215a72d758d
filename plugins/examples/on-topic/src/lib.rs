//! DPO with an additional term on the states of single tokens, which keeps the chosen completion
//! closer to the prompt than the rejected one.
//!
//! The method defines its own taps. It reads the states of every token from the policy, but not
//! from the reference.

use reprpo_plugin::prelude::*;

/// DPO plus a preference for completions whose states are close to those of the prompt.
#[intervention(
    name = "on-topic",
    summary = "DPO, with a term that keeps the states of the chosen completion closer to the \
        prompt than those of the rejected one",
    reference = "an example of reprpo's plugin interface",
    explain = "\
L = −log σ(β θ) + λ·(−log σ(s⁺ − s⁻))
s± = mean over taps and completion tokens of cos(h_t, mean over the prompt of h)

θ is the log-ratio margin of DPO, and h are the policy's states at the output of every `stride`-th
block. The method defines its own taps, so `--tap` is an error.",
    example(lambda = "2.0")
)]
pub struct OnTopic {
    /// β of DPO, per nat, above 0.
    #[default(0.1)]
    pub beta: f64,
    /// λ: weight of the term on states, 0 or more.
    #[default(1.0)]
    pub lambda: f64,
    /// Distance between the blocks whose outputs are read, 1 or more.
    #[default(2)]
    pub stride: usize,
}

impl InterventionPlugin for OnTopic {
    fn build(self, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            return Err(Error::new(format!(
                "`intervention.beta` must be greater than 0, got {}",
                self.beta
            )));
        }
        if !(self.lambda >= 0.0 && self.lambda.is_finite()) {
            return Err(Error::new(format!(
                "`intervention.lambda` must not be negative, got {}",
                self.lambda
            )));
        }
        if self.stride == 0 {
            return Err(Error::new("`intervention.stride` must be at least 1, got 0"));
        }
        Ok(Box::new(self))
    }
}

/// A tap that reads the output of every `stride`-th block, including the last one.
struct EveryBlock {
    stride: usize,
}

impl Tap for EveryBlock {
    fn sites(&self, model: &ModelInfo) -> Result<Vec<Site>> {
        Ok((0..model.layers)
            .filter(|k| (model.layers - 1 - k).is_multiple_of(self.stride))
            .map(Site::Block)
            .collect())
    }

    fn pooling(&self) -> Pooling {
        Pooling::Completion
    }
}

impl Intervention for OnTopic {
    fn needs(&self) -> Needs {
        Needs {
            logprobs: Completions::Both,
            reference_logprobs: true,
            states: States::PerToken,
            ..Needs::default()
        }
    }

    fn tap(&self) -> Option<Box<dyn Tap>> {
        Some(Box::new(EveryBlock { stride: self.stride }))
    }

    fn validate(&self, run: &RunInfo<'_>) -> Result<Vec<String>> {
        let only_last = self.stride >= run.model.layers;
        let warning = || {
            format!(
                "`intervention.stride` is {}, so only the last of {} blocks is read",
                self.stride, run.model.layers
            )
        };
        Ok(only_last.then(warning).into_iter().collect())
    }

    fn loss(&mut self, pairs: &Pairs, _: StepInfo) -> Result<Loss> {
        let ratios = pairs.log_ratios()?;
        let margin = &ratios.chosen - &ratios.rejected;
        // s⁺ − s⁻ of each pair, [b].
        let closeness = pairs.mean_over_taps(|tap| {
            let Sides { chosen, rejected } = tap.policy_tokens()?.as_ref().map(closeness);
            Ok(chosen - rejected)
        })?;
        let log_sigmoid = |x: &Tensor| -x.log_sigmoid().mean(None::<Kind>);
        let value = log_sigmoid(&(&margin * self.beta)) + log_sigmoid(&closeness) * self.lambda;
        Ok(Loss::new(value)
            .metric("rewards/margins", &(margin * self.beta))
            .metric("on-topic/closeness", &closeness))
    }
}

/// For each sequence, the mean cosine between the states of its completion tokens and the mean
/// state of its prompt: `[b]`.
fn closeness(tokens: &TokenStates) -> Tensor {
    let of = |mask: &Tensor| mask.to_kind(tokens.states.kind());
    let (completion, prompt) = (of(&tokens.completion), of(&tokens.completion.logical_not()));
    let sum = |weights: &Tensor| tokens.sum_by_sequence(&(&tokens.states * weights.unsqueeze(-1)));
    let topic = sum(&prompt) / tokens.sum_by_sequence(&prompt).unsqueeze(-1);
    let cos =
        Tensor::cosine_similarity(&tokens.states, &topic.index_select(0, &tokens.owner), -1, 1e-12);
    tokens.sum_by_sequence(&(cos * &completion)) / tokens.sum_by_sequence(&completion)
}

#[cfg(feature = "plugin")]
reprpo_plugin::export_plugin!();

#[cfg(test)]
mod tests {
    use reprpo_plugin::testkit::{
        STEP, model, near, registered, sides, tap_of_tokens, tensor, tokens,
    };

    use super::*;

    #[test]
    fn it_passes_the_conformance_tests() {
        registered();
    }

    #[test]
    fn the_last_block_and_every_stride_th_block_before_it_are_read() {
        let of =
            |layers, stride| EveryBlock { stride }.sites(&ModelInfo { layers, ..model() }).unwrap();
        assert_eq!(of(5, 2), [Site::Block(0), Site::Block(2), Site::Block(4)]);
        assert_eq!(of(2, 3), [Site::Block(1)]);
    }

    #[test]
    fn the_loss_of_one_pair_matches_a_calculation_by_hand() {
        // The prompt is one token with the state (1, 0). The state of the chosen token is parallel
        // to it, and that of the rejected token is orthogonal.
        let policy = sides(
            &tensor(&[1.0, 0.0, 2.0, 0.0], &[1, 2, 2]),
            &tensor(&[1.0, 0.0, 0.0, 3.0], &[1, 2, 2]),
        );
        let logp = |chosen: f64, rejected: f64| {
            Logprobs::new(
                tokens(&tensor(&[chosen], &[1]), &[1]),
                Some(tokens(&tensor(&[rejected], &[1]), &[1])),
            )
        };
        let pairs = Pairs::new(
            1,
            vec![tap_of_tokens(&policy, &policy, 1)],
            Some(logp(-1.0, -2.0)),
            Some(logp(-2.0, -1.0)),
        );
        let loss = OnTopic::default().loss(&pairs, STEP).unwrap();
        // θ = 1 + 1, s⁺ = 1 and s⁻ = 0.
        near(loss.value.double_value(&[]), (-0.2f64).exp().ln_1p() + (-1f64).exp().ln_1p());
    }
}
