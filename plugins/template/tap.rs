//! A tap: the sites in the model at which states are read.

use reprpo_plugin::prelude::*;

/// The tap that `--tap my-method` selects.
// `reprpo list` and `reprpo explain my-method` show the strings in this attribute.
#[tap(
    name = "my-method",
    summary = "the residual stream after selected blocks",
    reference = "source of the method: paper and section",
    explain = "blocks.k, the residual stream after block k    width: hidden\n\nThere is one tap \
        per selected block."
)]
// Users set the fields with `--set tap.FIELD=…`; their doc comments become the help texts. Without
// `#[default(…)]`, a field defaults to the default value of its type.
pub struct MyMethod {
    /// The blocks, counted from 0: `10,20`, `-2,-1`, `0.33,0.66`, `range(.3,-2)` or
    /// `range(.3,.9,2)`.
    #[default("0.33,0.66")]
    pub layers: Layers,
    /// How the states of a completion's tokens are pooled into one vector.
    pub pooling: Pooling,
}

impl TapPlugin for MyMethod {
    fn build(self) -> Result<Box<dyn Tap>> {
        Ok(Box::new(self))
    }
}

impl Tap for MyMethod {
    fn sites(&self, model: &ModelInfo) -> Result<Vec<Site>> {
        // Your sites go here: block outputs, or `Site::Input` and `Site::Output` with the name of a
        // module in `model.linears`.
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
    fn it_passes_the_conformance_tests() {
        reprpo_plugin::testkit::registered();
    }

    #[test]
    fn layers_are_counted_from_either_end() {
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
