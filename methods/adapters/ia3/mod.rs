//! IA³ (infused adapter by inhibiting and amplifying inner activations).

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::json;

use super::peft_layers;

#[cfg(test)]
mod tests;

/// Name of the parameter in an adapter file.
const KEY: &str = "ia3_l";

/// IA³ (infused adapter by inhibiting and amplifying inner activations).
#[adapter(
    name = "ia3",
    summary = "IA³: a trainable scale for each output or each input of a module",
    reference = "Liu et al. 2022, Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper \
        than In-Context Learning, §3.3; same files as PEFT 0.21",
    explain = "\
y = l ⊙ (Wx + b)        l [out 1]
y = W(l ⊙ x) + b        l [1 in], in feedforward_modules

l (ia3_l) starts at 1, so the model starts unchanged. It has out or in numbers per module, the
fewest of all adapters here, which calls for a higher learning rate. Merged: l ⊙ W and l ⊙ b, or W
with its columns scaled by l.

On parts of a fused module (`qkv_proj.v_proj`), the file has one l for the whole module, which is
1 at the outputs of other parts.",
    example(layers_to_transform = "[1, 2]"),
    peft_type = "IA3",
    learning_rate_factor = 10.0,
    peft_has_layers = false
)]
pub struct Ia3 {
    /// Linear modules to adapt: a list of name suffixes (`qkv_proj.q_proj` selects a part of a
    /// fused module), a regular expression that matches whole names, or `all-linear`.
    // The defaults of the next two fields are PEFT's defaults for models of the Llama family.
    #[default(["k_proj", "v_proj", "down_proj"].into())]
    pub target_modules: Targets,
    /// Target modules whose input is scaled instead of their output.
    #[default(["down_proj"].into())]
    pub feedforward_modules: Targets,
    /// Modules not to adapt although `target_modules` selects them: a list of name suffixes, or a
    /// regular expression that matches whole names.
    pub exclude_modules: Targets,
    /// Blocks of the model to adapt, counted from 0; all by default. PEFT's IA³ does not have
    /// this field, so a saved adapter lists its modules by name.
    #[schemars(extend("uniqueItems" = true))]
    pub layers_to_transform: Option<Vec<usize>>,
}

impl AdapterPlugin for Ia3 {
    fn build(self) -> Result<Box<dyn Adapter>> {
        if let (Targets::Suffixes(all), Targets::Suffixes(forward)) =
            (&self.target_modules, &self.feedforward_modules)
            && let Some(stray) = forward.iter().find(|f| !all.contains(f))
        {
            return Err(Error::new(format!(
                "`adapter.feedforward_modules` has `{stray}`, which \
                is not among `adapter.target_modules`"
            ))
            .hint(format!("valid: {}", all.join(", "))));
        }
        Ok(Box::new(self))
    }

    fn from_peft(json: &str) -> Result<Self> {
        let peft = PeftConfig::parse(json)?;
        Ok(Self {
            target_modules: peft.need("target_modules")?,
            feedforward_modules: peft
                .get("feedforward_modules")?
                .unwrap_or(Targets::Suffixes(Vec::new())),
            exclude_modules: peft.get("exclude_modules")?.unwrap_or_default(),
            layers_to_transform: peft_layers(&peft)?,
        })
    }
}

impl Adapter for Ia3 {
    fn selections(&self) -> Vec<Selection> {
        vec![Selection::targets("feedforward_modules", &self.feedforward_modules)]
    }

    fn attach(&self, site: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        let forward = self.feedforward_modules.fits(&site.info.name)?;
        Ok(Box::new(if forward {
            Ia3Linear::Input(init.ones(&[1, site.info.inputs]))
        } else {
            Ia3Linear::Output(init.ones(&[site.info.outputs, 1]))
        }))
    }

    // Outputs of parts that are not adapted get a scale of 1. Input scales cannot be combined,
    // because all parts of a fused module share one input.
    fn fuse(&self, modules: &[FusedSite<'_>]) -> Result<Option<Fused>> {
        let mut fused: Vec<Box<dyn AdaptedLinear>> = Vec::new();
        for FusedSite { module, parts } in modules {
            let names = parts.iter().map(|part| &part.info.linear.name).chain([&module.info.name]);
            if names
                .map(|name| self.feedforward_modules.fits(name))
                .collect::<Result<Vec<_>>>()?
                .contains(&true)
            {
                return Ok(None);
            }
            let scales = parts.iter().map(|part| part.tensor(KEY)).collect::<Result<Vec<_>>>()?;
            let Some(first) = scales.first() else { return Ok(None) };
            let l = first.f_new_ones([module.info.outputs, 1], (first.kind(), first.device()))?;
            for (part, own) in parts.iter().zip(&scales) {
                part.info.rows.put(&l, own)?;
            }
            fused.push(Box::new(Ia3Linear::Output(l.set_requires_grad(true))));
        }
        Ok(Some(Fused { adapter: Box::new(self.clone()), modules: fused }))
    }

    fn peft_has_conv1d(&self) -> bool {
        true
    }

    fn peft_config(&self) -> String {
        json!({ "feedforward_modules": self.feedforward_modules, "fan_in_fan_out": false,
            "init_ia3_weights": true })
        .to_string()
    }
}

/// The scale l of one module.
enum Ia3Linear {
    /// Scale of the input, `[1 in]`.
    Input(Tensor),
    /// Scale of the output, `[out 1]`.
    Output(Tensor),
}

impl AdaptedLinear for Ia3Linear {
    fn forward(&self, x: &Tensor, base: &Frozen, _: bool) -> Result<Tensor> {
        // Multiply in the dtype of l: half precision would round away small differences from 1.
        match self {
            Self::Input(l) => base.forward(&(x * l).f_to_kind(x.kind())?),
            Self::Output(l) => Ok((base.forward(x)? * l.f_squeeze_dim(1)?).f_to_kind(x.kind())?),
        }
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![match self {
            Self::Input(l) => Parameter::new(KEY, l).along(Axis::Input(1)),
            Self::Output(l) => Parameter::new(KEY, l).along(Axis::Output(0)),
        }]
    }

    fn merge(&self, base: &Frozen) -> Result<Frozen> {
        let (Self::Input(l) | Self::Output(l)) = self;
        let merged = base.with_weight(base.dense()? * l);
        Ok(match (self, base.bias()) {
            (Self::Output(l), Some(bias)) => merged.with_bias(&(bias * l.f_squeeze_dim(1)?)),
            _ => merged,
        })
    }
}
