//! An intervention that does not train, so that a table of methods can include the base model.

use reprpo_plugin::prelude::*;

#[cfg(test)]
mod tests;

/// An intervention that does not train.
#[intervention(
    name = "none",
    summary = "train nothing: evaluate the adapter as it is initialised, and save it",
    reference = "this project",
    explain = "\
no loss, no steps

Evaluates an untrained adapter, or with `init_adapter` an adapter that was trained elsewhere. The
evaluation is the same as for other methods. `metrics.jsonl` is empty."
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
        Err(Error::internal("the intervention `none` has no loss"))
    }
}
