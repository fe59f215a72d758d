//! Blockwise hyperplane reflections of a module's input and output.

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::json;

use super::blocks::{join, quotient, split};
use super::{default_targets, no_multiple, peft_layers};

#[cfg(test)]
mod tests;

/// Blockwise hyperplane reflections of a module's input and output.
#[adapter(
    name = "ether",
    summary = "blockwise hyperplane reflections of a module's input and output (ETHER, ETHER+)",
    reference = "Bini et al. 2024, ETHER: Efficient Finetuning of Large-Scale Models with \
        Hyperplane Reflections, §3.2 (ETHER), §3.3 (ETHER+); not in PEFT",
    explain = "\
y = W·H·x + b               H = diag(H₀, …, H_{k−1}), H_i = I − 2ûᵢûᵢᵀ
plus:                       H_i = I − ûᵢûᵢᵀ + ŵᵢŵᵢᵀ
two_sided:  y = H′·W·H·x + b, with an H′ of the same form for the output

ûᵢ and ŵᵢ are consecutive blocks of ether_u and ether_w [in], each at unit length; for the output,
of ether_out_u and ether_out_w [out]. The distance between H and I is bounded (2 per block, √2
with plus) however long training goes, so large learning rates are safe. With plus, u and w start
equal, so the model starts unchanged. Without plus, the model starts reflected, as in the paper;
that form is for comparisons. The adapter trains `in` numbers per module, twice as many with plus,
and the same for the output if two_sided. Merged weight: H′WH. The keys of the file and peft_type
ETHER are specific to this project: PEFT cannot read them.",
    peft_type = "ETHER",
    learning_rate_factor = 2.0
)]
pub struct Ether {
    /// k: number of blocks, at least 1. It must divide the input width of each module and, with
    /// `two_sided`, also the output width.
    #[default(4)]
    pub blocks: u32,
    /// Uses the relaxed reflection I − ûûᵀ + ŵŵᵀ, which starts as the identity.
    #[default(true)]
    pub plus: bool,
    /// Transforms a module's output as well as its input.
    #[default(true)]
    pub two_sided: bool,
    /// Linear modules to adapt: a list of name suffixes (`qkv_proj.q_proj` selects a part of a
    /// fused module), a regular expression that matches whole names, or `all-linear`.
    #[default(default_targets())]
    pub target_modules: Targets,
    /// Blocks of the model to adapt, counted from 0; all by default.
    #[schemars(extend("uniqueItems" = true))]
    pub layers_to_transform: Option<Vec<usize>>,
}

impl AdapterPlugin for Ether {
    fn build(self) -> Result<Box<dyn Adapter>> {
        if self.blocks == 0 {
            return Err(Error::new("`adapter.blocks` must be at least 1, got 0"));
        }
        Ok(Box::new(self))
    }

    fn from_peft(json: &str) -> Result<Self> {
        let peft = PeftConfig::parse(json)?;
        Ok(Self {
            blocks: peft.need("blocks")?,
            plus: peft.need("plus")?,
            two_sided: peft.need("two_sided")?,
            target_modules: peft.need("target_modules")?,
            layers_to_transform: peft_layers(&peft)?,
        })
    }
}

impl Adapter for Ether {
    fn attach(&self, site: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        let mut planes = |key: &str, width: i64| -> Result<Planes> {
            let block = quotient("blocks", self.blocks, width)?;
            let u = init.normal(&format!("{key}u"), &[width], 1.0 / (block as f64).sqrt());
            let w = self.plus.then(|| u.detach().copy().set_requires_grad(true));
            Ok(Planes { u, w, blocks: i64::from(self.blocks) })
        };
        let input = planes("ether_", site.info.inputs)?;
        let output =
            if self.two_sided { Some(planes("ether_out_", site.info.outputs)?) } else { None };
        Ok(Box::new(EtherLinear { input, output }))
    }

    fn starts_as_identity(&self) -> bool {
        self.plus
    }

    fn accepts_coefficient(&self) -> Result<()> {
        Err(no_multiple("ether", "reflections"))
    }

    fn peft_config(&self) -> String {
        json!({ "blocks": self.blocks, "plus": self.plus, "two_sided": self.two_sided }).to_string()
    }
}

/// The block-diagonal matrix H. Each block is a reflection, or a relaxed reflection with `plus`.
struct Planes {
    /// The vectors uᵢ of all blocks, concatenated into one vector of length h.
    u: Tensor,
    /// The vectors wᵢ of all blocks, concatenated like `u`; only with `plus`.
    w: Option<Tensor>,
    /// Number of blocks k.
    blocks: i64,
}

impl Planes {
    /// Returns x·H, where x has shape `[n h]`. H is symmetric, so this applies H to each row of x.
    fn reflect(&self, x: &Tensor) -> Result<Tensor> {
        let unit = |v: &Tensor| -> Result<Tensor> {
            let v = v.f_view([self.blocks, -1, 1])?;
            Ok(&v / v.f_norm_scalaropt_dim(2.0, 1, true)?)
        };
        let u = unit(&self.u)?;
        let (directions, change) = match &self.w {
            None => (u.shallow_clone(), u * -2.0),
            Some(w) => {
                let w = unit(w)?;
                (Tensor::f_cat(&[&u, &w], 2)?, Tensor::f_cat(&[-&u, w], 2)?)
            }
        };
        let along = split(x, self.blocks)?.f_bmm(&directions.f_to_kind(x.kind())?)?;
        Ok(x + join(&along.f_bmm(&change.f_transpose(1, 2)?.f_to_kind(x.kind())?)?)?)
    }

    /// Returns the parameters, with `key` as the prefix of their names.
    fn parameters(&self, key: &str, axis: Axis) -> impl Iterator<Item = Parameter> {
        let u = Parameter::new(&format!("{key}u"), &self.u).along(axis);
        let w = self.w.as_ref().map(|w| Parameter::new(&format!("{key}w"), w).along(axis));
        std::iter::once(u).chain(w)
    }
}

/// The reflections of one module.
struct EtherLinear {
    input: Planes,
    output: Option<Planes>,
}

impl AdaptedLinear for EtherLinear {
    fn forward(&self, x: &Tensor, base: &Frozen, _: bool) -> Result<Tensor> {
        let x = self.input.reflect(x)?;
        let Some(output) = &self.output else { return base.forward(&x) };
        let y = output.reflect(&base.product(&x)?)?;
        Ok(match base.bias() {
            Some(bias) => y.f_add(bias)?,
            None => y,
        })
    }

    fn parameters(&self) -> Vec<Parameter> {
        let output = self.output.iter().flat_map(|o| o.parameters("ether_out_", Axis::Output(0)));
        self.input.parameters("ether_", Axis::Input(0)).chain(output).collect()
    }

    fn merge(&self, base: &Frozen) -> Result<Frozen> {
        let mut weight = self.input.reflect(&base.dense()?.to_kind(self.input.u.kind()))?;
        if let Some(output) = &self.output {
            weight = output.reflect(&weight.tr())?.tr();
        }
        Ok(base.with_weight(weight.contiguous()))
    }
}
