//! What attention heads write, before the output projection mixes them.

mod choice;

use reprpo_plugin::prelude::*;

/// The outputs of attention heads.
pub struct AttentionHeads;

/// Fields of `tap` with `name = "attention-heads"`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "reprpo_plugin::serde", deny_unknown_fields, default)]
#[schemars(crate = "reprpo_plugin::schemars")]
pub struct AttentionHeadsConfig {
    /// Which blocks, from 0: `10,20`, `-2,-1`, `0.33,0.66`, `range(.3,-2)` or `range(.3,.9,2)`.
    pub layers: Layers,
    /// How the tokens of a completion become one vector.
    pub pooling: Pooling,
    /// The last part of the name of the module that reads the heads.
    pub module: String,
}

impl Default for AttentionHeadsConfig {
    fn default() -> Self {
        Self { layers: Layers("0.33,0.66".to_owned()), pooling: Pooling::Completion, module: "o_proj".to_owned() }
    }
}

impl Plugin for AttentionHeads {
    const NAME: &'static str = "attention-heads";
    const SUMMARY: &'static str = "the outputs of all attention heads of a block, side by side; the transform `heads` chooses among them";
    const REFERENCE: &'static str = "Li et al. 2023, Inference-Time Intervention: Eliciting Truthful Answers from a Language Model, §3 (arXiv:2306.03341)";
    const EXPLAIN: &'static str = "\
in.o_proj = [z₁ … z_H]    z_j = Σ_t a_jt v_t, the output of head j    width: H·head_dim

One tap a chosen block. With the transform `heads` of the same plugin, some of the heads alone are compared. The paper reads
them at the last token, which is `tap.pooling = last`; that tells completions apart where they do not end alike.";
    type Config = AttentionHeadsConfig;
}

impl TapPlugin for AttentionHeads {
    fn build(config: AttentionHeadsConfig) -> Result<Box<dyn Tap>> {
        Ok(Box::new(config))
    }
}

impl Tap for AttentionHeadsConfig {
    fn sites(&self, model: &ModelInfo) -> Result<Vec<Site>> {
        let of_block = |k: usize| {
            let mut block = model.linears.iter().filter(|l| l.layer == Some(k));
            let last = |l: &LinearInfo| l.name.rsplit('.').next().unwrap_or_default().to_owned();
            let found = block.clone().find(|l| last(l) == self.module);
            let found = found.ok_or_else(|| Error::unknown("module", &self.module, block.by_ref().map(last)).within(format!("block {k} has no such heads")))?;
            if found.inputs != model.heads * model.head_dim {
                return Err(Error::new(format!("`{}` reads {} numbers a token, not {} heads of {}", found.name, found.inputs, model.heads, model.head_dim)));
            }
            Ok(Site::Input(found.name.clone()))
        };
        self.layers.resolve(model.layers)?.into_iter().map(of_block).collect()
    }

    fn pooling(&self) -> Pooling {
        self.pooling
    }
}

register!(tap: AttentionHeads);

#[cfg(feature = "plugin")]
reprpo_plugin::export_plugin!();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_keep_what_every_plugin_promises() {
        reprpo_plugin::testkit::registered();
    }

    fn model() -> ModelInfo {
        let linear = |k: usize, name: &str, inputs| LinearInfo { name: format!("model.layers.{k}.{name}"), layer: Some(k), inputs, outputs: 8 };
        let linears = (0..4).flat_map(|k| [linear(k, "self_attn.o_proj", 12), linear(k, "mlp.down_proj", 16)]).collect();
        ModelInfo { architecture: "llama".to_owned(), layers: 4, hidden: 8, heads: 3, head_dim: 4, vocab: 16, linears, parts: Vec::new() }
    }

    #[test]
    fn one_tap_a_chosen_block_as_wide_as_its_heads() {
        let config = AttentionHeadsConfig { layers: Layers("1,-1".to_owned()), ..AttentionHeadsConfig::default() };
        let sites = AttentionHeads::build(config).unwrap().sites(&model()).unwrap();
        assert_eq!(sites, ["1", "3"].map(|k| Site::Input(format!("model.layers.{k}.self_attn.o_proj"))));
        assert_eq!(model().width(&sites[0]).unwrap(), 3 * 4);
    }

    #[test]
    fn a_module_that_reads_no_heads_is_refused() {
        let refused = |module: &str| AttentionHeadsConfig { module: module.to_owned(), ..AttentionHeadsConfig::default() }.sites(&model()).unwrap_err();
        assert!(refused("down_proj").to_string().contains("reads 16 numbers a token, not 3 heads of 4"));
        assert!(format!("{:?}", refused("o_porj")).contains("did you mean `o_proj`?"));
    }
}
