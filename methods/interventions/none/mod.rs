//! No training: the base model's own row in a table of methods.

use reprpo_plugin::prelude::*;

#[cfg(test)]
mod tests;

/// No training.
#[intervention(
    name = "none",
    summary = "train nothing: the adapter is saved as it starts, and judged",
    reference = "this project",
    explain = "\
no loss, no steps

What an untrained adapter gives, or with `init_adapter` one that was trained elsewhere: the \
evaluation is the usual one,
`metrics.jsonl` is empty."
)]
pub struct Untrained {}

impl InterventionPlugin for Untrained {
    fn build(self, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
        Ok(Box::new(self))
    }
}

impl Intervention for Untrained {
    fn needs(&self) -> Needs {
        Needs { evaluate_only: true, ..Needs::default() }
    }

    fn loss(&mut self, _: &Pairs, _: StepInfo) -> Result<Loss> {
        Err(Error::internal("a method that trains nothing was asked for its loss"))
    }
}
