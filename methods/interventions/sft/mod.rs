//! Supervised fine-tuning on the chosen completions, to measure preference methods against.

use reprpo_plugin::prelude::*;

#[cfg(test)]
mod tests;

/// Supervised fine-tuning.
#[intervention(
    name = "sft",
    summary = "supervised fine-tuning on the chosen completions; the rejected ones are not looked \
        at",
    reference = "the usual cross-entropy",
    explain = "\
L = −logp_π(y⁺|x)/n⁺

The mean over the chosen completion's n⁺ tokens in nats, then over pairs: a pair counts the same \
however long it is, and
however pairs are put into micro-batches. There is no reference. Prompts are context, and not \
learnt."
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
