//! Supervised fine-tuning on the chosen completions, to measure preference methods against.

use reprpo_plugin::prelude::*;

#[cfg(test)]
mod tests;

/// Supervised fine-tuning.
pub struct Sft;

/// `intervention` with `name = "sft"` has no fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "reprpo_plugin::serde", deny_unknown_fields, default)]
#[schemars(crate = "reprpo_plugin::schemars")]
pub struct SftConfig {}

impl Plugin for Sft {
    const NAME: &'static str = "sft";
    const SUMMARY: &'static str = "supervised fine-tuning on the chosen completions; the rejected ones are not looked at";
    const REFERENCE: &'static str = "the usual cross-entropy";
    const EXPLAIN: &'static str = "\
L = −logp_π(y⁺|x)/n⁺

The mean over the chosen completion's n⁺ tokens in nats, then over pairs: a pair counts the same however long it is, and
however pairs are put into micro-batches. There is no reference. Prompts are context, and not learnt.";
    type Config = SftConfig;
}

impl InterventionPlugin for Sft {
    fn build(config: SftConfig, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
        Ok(Box::new(config))
    }
}

impl Intervention for SftConfig {
    fn needs(&self) -> Needs {
        Needs { logprobs: Completions::Chosen, ..Needs::default() }
    }

    fn loss(&mut self, pairs: &Pairs, _: StepInfo) -> Result<Loss> {
        Ok(Loss::new(-pairs.policy()?.chosen()?.mean().mean(None::<Kind>)))
    }
}

register!(intervention: Sft);
