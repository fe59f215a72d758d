//! What attention heads write, before the output projection mixes them.

mod choice;

use reprpo_plugin::prelude::*;

/// The outputs of attention heads.
#[tap(
    name = "attention-heads",
    summary = "the outputs of all attention heads of a block, side by side; the transform `heads` \
        chooses among them",
    reference = "Li et al. 2023, Inference-Time Intervention: Eliciting Truthful Answers from a \
        Language Model, §3 (arXiv:2306.03341)",
    explain = "\
in.o_proj = [z₁ … z_H]    z_j = Σ_t a_jt v_t, the output of head j    width: H·head_dim

One tap a chosen block, or one a chosen head. With the transform `heads` of the same plugin, only \
some of the heads are compared. The paper reads
them at the last token, which is `tap.pooling = last`; that tells completions apart where they do \
not end alike."
)]
pub struct AttentionHeads {
    /// Which blocks, from 0: `10,20`, `-2,-1`, `0.33,0.66`, `range(.3,-2)` or `range(.3,.9,2)`.
    #[default("0.33,0.66")]
    pub layers: Layers,
    /// How the tokens of a completion become one vector.
    pub pooling: Pooling,
    /// The last part of the name of the module that reads the heads.
    #[default("o_proj")]
    pub module: String,
    /// Heads, from 0, each of which is a tap of its own; without any, all heads of a block are one
    /// tap.
    pub heads: Vec<i64>,
}

impl TapPlugin for AttentionHeads {
    fn build(self) -> Result<Box<dyn Tap>> {
        Ok(Box::new(self))
    }
}

impl Tap for AttentionHeads {
    fn sites(&self, model: &ModelInfo) -> Result<Vec<Site>> {
        let of_block = |k: usize| {
            let mut block = model.linears.iter().filter(|l| l.layer == Some(k));
            let last = |l: &LinearInfo| l.name.rsplit('.').next().unwrap_or_default().to_owned();
            let found = block.clone().find(|l| last(l) == self.module);
            let found = found.ok_or_else(|| {
                Error::unknown("module", &self.module, block.by_ref().map(last))
                    .within(format!("block {k} has no such heads"))
            })?;
            if found.inputs != model.heads * model.head_dim {
                return Err(Error::new(format!(
                    "`{}` reads {} numbers a token, not {} heads of {}",
                    found.name, found.inputs, model.heads, model.head_dim
                )));
            }
            let all = Site::Input(found.name.clone());
            if self.heads.is_empty() {
                return Ok(vec![all]);
            }
            let one = |head: &i64| {
                if !(0..model.heads).contains(head) {
                    return Err(Error::new(format!(
                        "`tap.heads` has {head}, but a block has {} heads",
                        model.heads
                    ))
                    .hint(format!("valid: 0 to {}", model.heads - 1)));
                }
                Ok(all.clone().columns(head * model.head_dim..(head + 1) * model.head_dim))
            };
            self.heads.iter().map(one).collect()
        };
        Ok(self
            .layers
            .resolve(model.layers)?
            .into_iter()
            .map(of_block)
            .collect::<Result<Vec<_>>>()?
            .concat())
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
    fn both_keep_what_every_plugin_promises() {
        reprpo_plugin::testkit::registered();
    }

    fn model() -> ModelInfo {
        let linear = |k: usize, name: &str, inputs| LinearInfo {
            name: format!("model.layers.{k}.{name}"),
            layer: Some(k),
            inputs,
            outputs: 8,
        };
        let linears = (0..4)
            .flat_map(|k| [linear(k, "self_attn.o_proj", 12), linear(k, "mlp.down_proj", 16)])
            .collect();
        ModelInfo {
            architecture: "llama".to_owned(),
            layers: 4,
            hidden: 8,
            heads: 3,
            head_dim: 4,
            vocab: 16,
            linears,
            parts: Vec::new(),
        }
    }

    #[test]
    fn each_of_the_chosen_heads_is_a_tap_of_its_own() {
        let config = |heads: &[i64]| AttentionHeads {
            layers: Layers("-1".to_owned()),
            heads: heads.to_vec(),
            ..AttentionHeads::default()
        };
        let sites = config(&[0, 2]).build().unwrap().sites(&model()).unwrap();
        let all = Site::Input("model.layers.3.self_attn.o_proj".to_owned());
        assert_eq!(sites, [all.clone().columns(0..4), all.columns(8..12)]);
        assert_eq!(model().width(&sites[1]).unwrap(), 4);
        let e = config(&[3]).build().unwrap().sites(&model()).unwrap_err();
        assert_eq!(
            format!("{e:?}"),
            "`tap.heads` has 3, but a block has 3 heads\n  hint: valid: 0 to 2"
        );
    }

    #[test]
    fn one_tap_a_chosen_block_as_wide_as_its_heads() {
        let config =
            AttentionHeads { layers: Layers("1,-1".to_owned()), ..AttentionHeads::default() };
        let sites = config.build().unwrap().sites(&model()).unwrap();
        assert_eq!(
            sites,
            ["1", "3"].map(|k| Site::Input(format!("model.layers.{k}.self_attn.o_proj")))
        );
        assert_eq!(model().width(&sites[0]).unwrap(), 3 * 4);
    }

    #[test]
    fn a_module_that_reads_no_heads_is_refused() {
        let refused = |module: &str| {
            AttentionHeads { module: module.to_owned(), ..AttentionHeads::default() }
                .sites(&model())
                .unwrap_err()
        };
        assert!(
            refused("down_proj").to_string().contains("reads 16 numbers a token, not 3 heads of 4")
        );
        assert!(format!("{:?}", refused("o_porj")).contains("did you mean `o_proj`?"));
    }
}
