//! A tap that reads the outputs of attention heads, before the output projection mixes them.

mod choice;

use reprpo_plugin::prelude::*;

/// The outputs of attention heads.
#[tap(
    name = "attention-heads",
    summary = "the concatenated outputs of all attention heads of a block; the transform `heads` \
        selects some of them",
    reference = "Li et al. 2023, Inference-Time Intervention: Eliciting Truthful Answers from a \
        Language Model, §3 (arXiv:2306.03341)",
    explain = "\
in.o_proj = [z₁ … z_H]    z_j = Σ_t a_jt v_t, the output of head j    width: H·head_dim

There is one tap per selected block, or one per selected head. With the transform `heads` of the
same crate, losses only compare some of the heads. The paper reads the heads at the last token. Set
`tap.pooling = last` for that; it only distinguishes completions with different endings."
)]
pub struct AttentionHeads {
    /// The blocks, counted from 0: `10,20`, `-2,-1`, `0.33,0.66`, `range(.3,-2)` or
    /// `range(.3,.9,2)`.
    #[default("0.33,0.66")]
    pub layers: Layers,
    /// How the states of a completion's tokens are pooled into one vector.
    pub pooling: Pooling,
    /// Last component of the name of the module that reads the heads.
    #[default("o_proj")]
    pub module: String,
    /// Heads, counted from 0, each of which becomes a separate tap. If the list is empty, all heads
    /// of a block are one tap.
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
                    .within(format!("cannot read the attention heads of block {k}"))
            })?;
            if found.inputs != model.heads * model.head_dim {
                return Err(Error::new(format!(
                    "the input of `{}` has width {}, but {} heads of width {} are needed",
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
                        "`tap.heads` contains {head}, but a block only has {} heads",
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
    fn both_plugins_pass_the_conformance_tests() {
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
    fn each_selected_head_is_a_separate_tap() {
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
            "`tap.heads` contains 3, but a block only has 3 heads\n  hint: valid: 0 to 2"
        );
    }

    #[test]
    fn each_selected_block_is_one_tap_with_all_its_heads() {
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
    fn a_module_whose_input_is_not_the_heads_is_an_error() {
        let refused = |module: &str| {
            AttentionHeads { module: module.to_owned(), ..AttentionHeads::default() }
                .sites(&model())
                .unwrap_err()
        };
        assert!(
            refused("down_proj")
                .to_string()
                .contains("has width 16, but 3 heads of width 4 are needed")
        );
        assert!(format!("{:?}", refused("o_porj")).contains("did you mean `o_proj`?"));
    }
}
