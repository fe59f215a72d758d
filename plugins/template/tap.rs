//! A tap: where in the model states are read.

use reprpo_plugin::prelude::*;

/// What `--tap my-method` names.
// `reprpo list` and `reprpo explain my-method` show these texts.
#[tap(
    name = "my-method",
    summary = "the residual stream behind chosen blocks",
    reference = "where it comes from: paper and section",
    explain = "blocks.k, the residual stream behind block k    width: hidden\n\nOne tap a chosen \
        block."
)]
// Every field is on the command line as `--set tap.FIELD=…`, and its comment is its help. A field
// without `#[default(…)]` has the default of its type.
pub struct MyMethod {
    /// Which blocks, from 0: `10,20`, `-2,-1`, `0.33,0.66`, `range(.3,-2)` or `range(.3,.9,2)`.
    #[default("0.33,0.66")]
    pub layers: Layers,
    /// How the tokens of a completion become one vector.
    pub pooling: Pooling,
}

impl TapPlugin for MyMethod {
    fn build(self) -> Result<Box<dyn Tap>> {
        Ok(Box::new(self))
    }
}

impl Tap for MyMethod {
    fn sites(&self, model: &ModelInfo) -> Result<Vec<Site>> {
        // Your choice goes here: the outputs of blocks, or `Site::Input` and `Site::Output` of
        // `model.linears` by name.
        Ok(self.layers.resolve(model.layers)?.into_iter().map(Site::Block).collect())
    }

    fn pooling(&self) -> Pooling {
        self.pooling
    }
}

#[cfg(feature = "plugin")]
reprpo_plugin::export_plugin!();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_what_every_plugin_promises() {
        reprpo_plugin::testkit::registered();
    }

    #[test]
    fn layers_count_blocks_from_either_end() {
        let linears = (0..10)
            .map(|k| LinearInfo {
                name: format!("model.layers.{k}.mlp.down_proj"),
                layer: Some(k),
                inputs: 16,
                outputs: 8,
            })
            .collect();
        let model = ModelInfo {
            architecture: "llama".to_owned(),
            layers: 10,
            hidden: 8,
            heads: 2,
            head_dim: 4,
            vocab: 16,
            linears,
            parts: Vec::new(),
        };
        let sites = |layers: &str| {
            MyMethod { layers: Layers(layers.to_owned()), ..MyMethod::default() }.sites(&model)
        };
        assert_eq!(sites("0.33,0.66").unwrap(), [Site::Block(3), Site::Block(6)]);
        assert_eq!(sites("-1").unwrap(), [Site::Block(9)]);
        assert!(sites("10").is_err());
    }
}
