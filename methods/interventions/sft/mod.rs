//! Supervised fine-tuning on the chosen completions, as a baseline for preference methods.

use reprpo_plugin::prelude::*;

#[cfg(test)]
mod tests;

/// Supervised fine-tuning.
#[intervention(
    name = "sft",
    summary = "supervised fine-tuning on the chosen completions; the rejected ones are not used",
    reference = "the usual cross-entropy",
    explain = "\
L = −logp_π(y⁺|x)/n⁺

The loss is the mean over the n⁺ tokens of the chosen completion, in nats, and then over pairs.
Each pair has the same weight, regardless of its length and of how the pairs are divided into
micro-batches. The method has no reference model. Prompt tokens are context and have no loss."
)]
pub struct Sft {}

impl InterventionPlugin for Sft {
    fn build(self, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
        Ok(Box::new(self))
    }
}

impl Intervention for Sft {
    fn needs(&self) -> Needs {
        Needs { logprobs: Completions::Chosen, ..Needs::default() }
    }

    fn loss(&mut self, pairs: &Pairs, _: StepInfo) -> Result<Loss> {
        Ok(Loss::new(-pairs.policy()?.chosen()?.mean().mean(None::<Kind>)))
    }
}
