//! A steering vector from the training pairs, as a baseline without training.

use reprpo_plugin::prelude::*;

use super::ranges::within;
use super::steering::{BlockOutputs, directions, first_component, mean_difference, statistics};

#[cfg(test)]
mod tests;

/// How the direction at a block is computed.
#[choice]
pub enum Direction {
    /// The mean of h⁺ − h⁻ over the training pairs.
    #[default]
    Mean,
    /// The first principal component of h⁺ − h⁻, around the mean.
    Pca,
}

/// How the direction is used.
#[choice]
pub enum Edit {
    /// Adds the direction to the state.
    #[default]
    Add,
    /// Removes the direction from the state.
    Ablate,
}

/// A steering vector.
#[intervention(
    name = "steer",
    summary = "steering vector: a direction from the training pairs, added to the residual stream \
        after training, or removed from it; no training",
    reference = "Turner et al. 2023, Steering Language Models With Activation Engineering; Zou et \
        al. 2023, Representation Engineering (PCA); Arditi et al. 2024, Refusal in Language Models \
        Is Mediated by a Single Direction (ablation)",
    explain = "\
h ← h + c·v    at the output of each chosen block and at every token
ablate: h ← h − c·(h·v̂)v̂
v = mean(h⁺ − h⁻), or with pca: v = σu

h± are the pooled states of the base model on the training pairs. u is the first principal
component of the differences h⁺ − h⁻ around their mean, with the sign for which most differences
have a positive projection, and σ is the root mean square of the projections. c is
`coefficient`. `reprpo eval RUN --coefficient` tries other multiples without a new run.

The edit acts in every evaluation and wherever the adapter of the run is used. It is stored as
`edits.safetensors` next to the adapter, which is not trained. `reprpo export --control-vector`
writes it for llama.cpp and repeng.
When to use it: as the cheapest baseline. A trained method should beat it. Read the perplexity
ratio too, because a large coefficient damages the text.
Differences of repeng: it reads the last token, edits all blocks but the first, and its vectors
have unit length. Set `pooling=last`, `direction=pca` and `layers` for the same direction.",
    example(layers = "0.5", direction = "pca", coefficient = 2)
)]
pub struct Steer {
    /// Blocks whose output is edited, e.g. `10,20`, `-2,-1`, `0.33,0.66` or `range(.3,.9,2)`; 0 is
    /// the first block.
    #[default("0.5")]
    pub layers: Layers,
    /// The direction: the mean difference, or the first principal component.
    pub direction: Direction,
    /// Add the direction, or remove it.
    pub edit: Edit,
    /// c: multiple of the direction. Negative values steer towards the rejected completions.
    #[default(1.0)]
    pub coefficient: f64,
    /// How the states of a completion's tokens are pooled into one vector.
    pub pooling: Pooling,
}

impl InterventionPlugin for Steer {
    fn build(self, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
        within("coefficient", self.coefficient, self.coefficient.is_finite(), "a finite number")?;
        Ok(Box::new(Steering { config: self, directions: Vec::new() }))
    }
}

/// A configured steering vector, with its directions once they are known.
struct Steering {
    config: Steer,
    /// The edited blocks, with their directions `[hidden]`.
    directions: Vec<(usize, Tensor)>,
}

impl Intervention for Steering {
    fn needs(&self) -> Needs {
        Needs { evaluate_only: true, fit: true, ..Needs::default() }
    }

    fn tap(&self) -> Option<Box<dyn Tap>> {
        let Steer { layers, pooling, .. } = &self.config;
        Some(Box::new(BlockOutputs { layers: layers.clone(), pooling: *pooling }))
    }

    fn fit(&self, states: &PairStates) -> Result<Statistics> {
        statistics(states, |at| match self.config.direction {
            Direction::Mean => mean_difference(&at.differences()),
            Direction::Pca => first_component(&at.differences()),
        })
    }

    fn set_statistics(&mut self, statistics: &Statistics) -> Result<()> {
        self.directions = directions(statistics)?;
        Ok(())
    }

    fn edits(&self) -> Result<Vec<BlockEdit>> {
        let c = self.config.coefficient;
        let edit = |(block, v): &(usize, Tensor)| match self.config.edit {
            Edit::Add => Ok(BlockEdit::add(*block, EditTime::Afterwards, &(v * c))),
            Edit::Ablate => BlockEdit::ablate(*block, EditTime::Afterwards, v, c),
        };
        self.directions.iter().map(edit).collect()
    }

    fn loss(&mut self, _: &Pairs, _: StepInfo) -> Result<Loss> {
        Err(Error::internal("the intervention `steer` has no loss"))
    }
}
