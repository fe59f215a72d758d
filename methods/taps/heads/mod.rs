//! The outputs of single attention heads.

use reprpo_plugin::prelude::*;

use super::pooling::Pooling;
use super::{default_layers, modules};

/// The outputs of single attention heads.
#[tap(
    name = "heads",
    summary = "the output of each attention head, before the projection that mixes the heads",
    reference = "Li et al. 2023, Inference-Time Intervention: Eliciting Truthful Answers from a \
        Language Model",
    explain = "\
in.o_proj[head·head_dim .. (head + 1)·head_dim] for each head of each chosen block

Each head is one tap of width head_dim. A transform is built per tap, so a transform with many
parameters is expensive here; `train.share_transform` shares one.",
    example(layers = "0.5", pooling = "last")
)]
pub struct Heads {
    /// Blocks to read, counted from 0: `10,20`, `-2,-1`, `0.33,0.66`, `range(.3,-2)` or
    /// `range(.3,.9,2)`.
    #[default(default_layers())]
    pub layers: Layers,
    /// How the states of a completion's tokens are pooled into one vector.
    pub pooling: Pooling,
}

impl TapPlugin for Heads {
    fn build(self) -> Result<Box<dyn Tap>> {
        Ok(Box::new(self))
    }
}

impl Tap for Heads {
    fn sites(&self, model: &ModelInfo) -> Result<Vec<Site>> {
        heads(model, &self.layers)
    }

    fn pooling(&self) -> reprpo_plugin::prelude::Pooling {
        self.pooling.tokens()
    }

    fn token_pooling(&self) -> Option<Box<dyn TokenPooling>> {
        self.pooling.of_states()
    }
}

/// The outputs of all heads of the blocks `layers`, in the order of blocks and heads.
///
/// # Errors
/// Fails if the model does not have a layer, or if a block has no attention output.
pub fn heads(model: &ModelInfo, layers: &Layers) -> Result<Vec<Site>> {
    let projections = modules(model, layers, None, &["o_proj"], Heads::NAME)?;
    let mut sites = Vec::new();
    for projection in projections {
        let width = model.head_dim;
        if projection.inputs != model.heads * width {
            return Err(Error::new(format!(
                "the input of `{}` has {} columns, but the model has {} heads of width {width}",
                projection.name, projection.inputs, model.heads
            )));
        }
        let of_head = |head: i64| {
            Site::Input(projection.name.clone()).columns(head * width..(head + 1) * width)
        };
        sites.extend((0..model.heads).map(of_head));
    }
    Ok(sites)
}
