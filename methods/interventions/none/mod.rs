//! No training: the base model's own row in a table of methods.

use reprpo_plugin::prelude::*;

#[cfg(test)]
mod tests;

/// No training.
pub struct Untrained;

/// `intervention` with `name = "none"` has no fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "reprpo_plugin::serde", deny_unknown_fields, default)]
#[schemars(crate = "reprpo_plugin::schemars")]
pub struct UntrainedConfig {}

impl Plugin for Untrained {
    const NAME: &'static str = "none";
    const SUMMARY: &'static str = "train nothing: the adapter is saved as it starts, and judged";
    const REFERENCE: &'static str = "this project";
    const EXPLAIN: &'static str = "\
no loss, no steps

What an untrained adapter gives, or with `init_adapter` one that was trained elsewhere: the evaluation is the usual one,
`metrics.jsonl` is empty.";
    type Config = UntrainedConfig;
}

impl InterventionPlugin for Untrained {
    fn build(config: UntrainedConfig, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
        Ok(Box::new(config))
    }
}

impl Intervention for UntrainedConfig {
    fn needs(&self) -> Needs {
        Needs { evaluate_only: true, ..Needs::default() }
    }

    fn loss(&mut self, _: &Pairs, _: StepInfo) -> Result<Loss> {
        Err(Error::internal("a method that trains nothing was asked for its loss"))
    }
}

register!(intervention: Untrained);
