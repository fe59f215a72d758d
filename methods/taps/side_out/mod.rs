//! The outputs of modules that read the residual stream.

use reprpo_plugin::prelude::*;

use super::pooling::Pooling;
use super::{default_layers, modules};

/// The modules that read the residual stream.
const READERS: [&str; 5] = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"];

/// The outputs of the modules that read the residual stream.
#[tap(
    name = "side-out",
    summary = "the outputs of the q, k, v, gate and up projections, the modules that read the \
        residual stream",
    reference = "wassname, repr-preference-optimization (side channels)",
    explain = "\
out.q_proj (width heads·head_dim), out.k_proj and out.v_proj (key-value heads·head_dim), \
out.gate_proj and out.up_proj
(intermediate) of each chosen block, before any rotation or activation function

Each block has five taps, or one for each entry of `modules`.",
    example(layers = "-2,-1", modules = r#"["up_proj"]"#)
)]
pub struct SideOut {
    /// Blocks to read, counted from 0: `10,20`, `-2,-1`, `0.33,0.66`, `range(.3,-2)` or
    /// `range(.3,.9,2)`.
    #[default(default_layers())]
    pub layers: Layers,
    /// How the states of a completion's tokens are pooled into one vector.
    pub pooling: Pooling,
    /// Modules whose outputs are read. Each entry is the last component of a module name. By
    /// default, q_proj, k_proj, v_proj, gate_proj and up_proj.
    pub modules: Option<Vec<String>>,
}

impl TapPlugin for SideOut {
    fn build(self) -> Result<Box<dyn Tap>> {
        Ok(Box::new(self))
    }
}

impl Tap for SideOut {
    fn sites(&self, model: &ModelInfo) -> Result<Vec<Site>> {
        let read = modules(model, &self.layers, self.modules.as_deref(), &READERS, SideOut::NAME)?;
        Ok(read.into_iter().map(|l| Site::Output(l.name.clone())).collect())
    }

    fn pooling(&self) -> reprpo_plugin::prelude::Pooling {
        self.pooling.tokens()
    }

    fn token_pooling(&self) -> Option<Box<dyn TokenPooling>> {
        self.pooling.of_states()
    }
}
