//! The residual stream.

use reprpo_plugin::prelude::*;

use super::default_layers;
use super::pooling::Pooling;

/// The residual stream.
#[tap(
    name = "hs",
    summary = "the residual stream between blocks",
    reference = "numbered like transformers' hidden_states",
    explain = "\
hidden_states[k], k = 0 (embeddings) … number of blocks (after the final norm)    width: hidden

Each chosen k is one tap.",
    example(layers = "0.33,0.66", pooling = "last")
)]
pub struct Hs {
    /// Hidden states to read: `10,20`, `-2,-1`, `0.33,0.66`, `range(.3,-2)` or `range(.3,.9,2)`; 0
    /// selects the embeddings, and the last hidden state comes after the final norm.
    #[default(default_layers())]
    pub layers: Layers,
    /// How the states of a completion's tokens are pooled into one vector.
    pub pooling: Pooling,
}

impl TapPlugin for Hs {
    fn build(self) -> Result<Box<dyn Tap>> {
        Ok(Box::new(self))
    }
}

impl Tap for Hs {
    fn sites(&self, model: &ModelInfo) -> Result<Vec<Site>> {
        Ok(self.layers.resolve(model.layers + 1)?.into_iter().map(Site::Residual).collect())
    }

    fn pooling(&self) -> reprpo_plugin::prelude::Pooling {
        self.pooling.tokens()
    }

    fn token_pooling(&self) -> Option<Box<dyn TokenPooling>> {
        self.pooling.of_states()
    }
}
