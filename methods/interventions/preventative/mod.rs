//! Preventative steering: fine-tuning while the residual stream is steered towards the behaviour
//! that the model should not learn.

use reprpo_plugin::prelude::*;

use super::ranges::within;
use super::steering::{BlockOutputs, directions, mean_difference, statistics};

#[cfg(test)]
mod tests;

/// Preventative steering.
#[intervention(
    name = "preventative",
    summary = "preventative steering: supervised fine-tuning while the residual stream is steered \
        towards the rejected completions, during training only",
    reference = "Chen et al. 2025, Persona Vectors: Monitoring and Controlling Character Traits in \
        Language Models, arXiv 2507.21509",
    explain = "\
h ← h + c·v    at the output of each chosen block and at every token, in training passes only
v = mean(h⁻ − h⁺)
L = −logp_π(y⁺|x)/n⁺

h± are the pooled states of the base model on the training pairs, so v points from the chosen
completions to the rejected ones. The steered model already leans towards the rejected side, so
the adapter has to push against it to fit the chosen completions. The steering is removed after
training: evaluations and the saved adapter are without it. The loss is that of `sft`.
When to use it: as a control for methods that change states during training. The paper reports
that steering towards a trait during fine-tuning reduces the shift towards this trait, and costs
less general ability than steering away from it afterwards; it used traits such as sycophancy and
models of 7 to 8 billion parameters.
Differences of the paper: its vectors come from prompts that describe a trait; here, they come
from the training pairs.",
    example(layers = "0.5", coefficient = 2)
)]
pub struct Preventative {
    /// Blocks whose output is edited, e.g. `10,20`, `-2,-1`, `0.33,0.66` or `range(.3,.9,2)`; 0 is
    /// the first block.
    #[default("0.5")]
    pub layers: Layers,
    /// c: multiple of the mean difference. Negative values steer towards the chosen completions.
    #[default(1.0)]
    pub coefficient: f64,
    /// How the states of a completion's tokens are pooled into one vector.
    pub pooling: Pooling,
}

impl InterventionPlugin for Preventative {
    fn build(self, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
        within("coefficient", self.coefficient, self.coefficient.is_finite(), "a finite number")?;
        Ok(Box::new(Preventing { config: self, directions: Vec::new() }))
    }
}

/// A configured method, with its directions once they are known.
struct Preventing {
    config: Preventative,
    /// The edited blocks, with their directions `[hidden]`.
    directions: Vec<(usize, Tensor)>,
}

impl Intervention for Preventing {
    fn needs(&self) -> Needs {
        Needs { logprobs: Completions::Chosen, fit: true, ..Needs::default() }
    }

    fn tap(&self) -> Option<Box<dyn Tap>> {
        let Preventative { layers, pooling, .. } = &self.config;
        Some(Box::new(BlockOutputs { layers: layers.clone(), pooling: *pooling }))
    }

    fn fit(&self, states: &PairStates) -> Result<Statistics> {
        statistics(states, |at| Ok(-mean_difference(&at.differences())?))
    }

    fn set_statistics(&mut self, statistics: &Statistics) -> Result<()> {
        self.directions = directions(statistics)?;
        Ok(())
    }

    fn edits(&self) -> Result<Vec<BlockEdit>> {
        let c = self.config.coefficient;
        let edit =
            |(block, v): &(usize, Tensor)| BlockEdit::add(*block, EditTime::Training, &(v * c));
        Ok(self.directions.iter().map(edit).collect())
    }

    fn loss(&mut self, pairs: &Pairs, _: StepInfo) -> Result<Loss> {
        Ok(Loss::new(-pairs.policy()?.chosen()?.mean().mean(None::<Kind>)))
    }
}
