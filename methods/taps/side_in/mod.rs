//! The inputs of modules that write into the residual stream.

use reprpo_plugin::prelude::*;

use super::pooling::Pooling;
use super::{default_layers, modules};

/// The modules that write into the residual stream.
const WRITERS: [&str; 2] = ["o_proj", "down_proj"];

/// The inputs of the modules that write into the residual stream.
#[tap(
    name = "side-in",
    aliases = &["side"],
    summary = "the inputs of o_proj and down_proj, the modules that write into the residual stream",
    reference = "wassname, repr-preference-optimization (side channels)",
    explain = "\
in.o_proj (width heads·head_dim) and in.down_proj (width intermediate) of each chosen block

Each block has two taps, or one for each entry of `modules`.",
    example(modules = r#"["o_proj"]"#),
)]
pub struct SideIn {
    /// Blocks to read, counted from 0: `10,20`, `-2,-1`, `0.33,0.66`, `range(.3,-2)` or
    /// `range(.3,.9,2)`.
    #[default(default_layers())]
    pub layers: Layers,
    /// How the states of a completion's tokens are pooled into one vector.
    pub pooling: Pooling,
    /// Modules whose inputs are read. Each entry is the last component of a module name. By
    /// default, o_proj and down_proj.
    pub modules: Option<Vec<String>>,
}

impl TapPlugin for SideIn {
    fn build(self) -> Result<Box<dyn Tap>> {
        Ok(Box::new(self))
    }
}

impl Tap for SideIn {
    fn sites(&self, model: &ModelInfo) -> Result<Vec<Site>> {
        let read = modules(model, &self.layers, self.modules.as_deref(), &WRITERS, SideIn::NAME)?;
        Ok(read.into_iter().map(|l| Site::Input(l.name.clone())).collect())
    }

    fn pooling(&self) -> reprpo_plugin::prelude::Pooling {
        self.pooling.tokens()
    }

    fn token_pooling(&self) -> Option<Box<dyn TokenPooling>> {
        self.pooling.of_states()
    }
}
