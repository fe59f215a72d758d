//! Householder reflection adaptation.

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::json;

use super::{default_targets, no_multiple, peft_layers, rank};
use crate::reflections::{Reflections, equal_pairs};

#[cfg(test)]
mod tests;

/// Name of the parameter in an adapter file.
const KEY: &str = "hra_u";

/// Householder reflection adaptation.
#[adapter(
    name = "hra",
    summary = "Householder reflection adaptation: r trainable reflections of each module's input",
    reference = "Yuan et al. 2024, Bridging the Gap between Low-rank and Orthogonal Adaptation \
        (HRA), eq. 4; same files as PEFT 0.21",
    explain = "\
y = W·H₀H₁⋯H_{r−1}·x + b    H_i = I − 2ûᵢûᵢᵀ
computed as W(x − U·S·Uᵀx) + b, S⁻¹ = ½I + striu(UᵀU)

ûᵢ are the columns of hra_u [in r] at unit length. The product is orthogonal, so the rows of W
keep their lengths. With an even r, columns start as equal pairs whose reflections cancel, so the
model starts unchanged. With an odd r, one reflection is left over and the model starts changed,
as in PEFT. No in×in matrix is built: the cost is that of LoRA.

apply_gs: y = W·(I − 2ÛÛᵀ)x + b, where Û [in r] are the columns of hra_u after Gram–Schmidt. It
reverses r directions, so the model starts changed for every r. The columns start independent,
because Gram–Schmidt of equal columns leaves nothing (in PEFT, only rounding errors are left).",
    example(r = 16),
    peft_type = "HRA",
    learning_rate_factor = 2.0
)]
pub struct Hra {
    /// r: number of reflections of each module's input, at least 1. With an odd number, the adapter
    /// does not start as the identity.
    #[default(8)]
    pub r: u32,
    /// Orthonormalises the reflected directions by Gram–Schmidt, and reflects their whole span at
    /// once. The adapter then does not start as the identity.
    pub apply_gs: bool,
    /// Linear modules to adapt: a list of name suffixes (`qkv_proj.q_proj` selects a part of a
    /// fused module), a regular expression that matches whole names, or `all-linear`.
    #[default(default_targets())]
    pub target_modules: Targets,
    /// Modules not to adapt although `target_modules` selects them: a list of name suffixes, or a
    /// regular expression that matches whole names.
    pub exclude_modules: Targets,
    /// Blocks of the model to adapt, counted from 0; all by default.
    #[schemars(extend("uniqueItems" = true))]
    pub layers_to_transform: Option<Vec<usize>>,
}

impl AdapterPlugin for Hra {
    fn build(self) -> Result<Box<dyn Adapter>> {
        rank(self.r)?;
        Ok(Box::new(self))
    }

    fn from_peft(json: &str) -> Result<Self> {
        let peft = PeftConfig::parse(json)?;
        Ok(Self {
            r: peft.need("r")?,
            apply_gs: peft.get("apply_GS")?.unwrap_or(false),
            target_modules: peft.need("target_modules")?,
            exclude_modules: peft.get("exclude_modules")?.unwrap_or_default(),
            layers_to_transform: peft_layers(&peft)?,
        })
    }
}

impl Adapter for Hra {
    fn attach(&self, site: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        let (r, inputs) = (rank(self.r)?, site.info.inputs);
        if self.apply_gs && r > inputs {
            return Err(Error::new(format!(
                "with `adapter.apply_gs`, `adapter.r` must be at most the module's input width, \
                    {inputs}, got {r}"
            )));
        }
        let u = if r % 2 == 0 && !self.apply_gs {
            equal_pairs(init, KEY, inputs, r)
        } else {
            init.kaiming_uniform(KEY, &[inputs, r], r)
        };
        Ok(Box::new(HraLinear { u, apply_gs: self.apply_gs }))
    }

    fn starts_as_identity(&self) -> bool {
        self.r.is_multiple_of(2) && !self.apply_gs
    }

    fn accepts_coefficient(&self) -> Result<()> {
        Err(no_multiple("hra", "reflections"))
    }

    fn peft_config(&self) -> String {
        json!({ "r": self.r, "apply_GS": self.apply_gs, "init_weights": true }).to_string()
    }
}

/// The reflections of one module.
struct HraLinear {
    /// Matrix `[in r]`. Each column is the direction of one reflection. The columns are nonzero and
    /// can have any length.
    u: Tensor,
    apply_gs: bool,
}

impl HraLinear {
    /// Reflects each row of `x`, `[n in]`: returns x·(I − 2ÛÛᵀ), where the columns of Û are the
    /// orthonormalised columns of `u`.
    fn reflected(&self, x: &Tensor) -> Result<Tensor> {
        // QR and Gram–Schmidt can give columns with different signs. ÛÛᵀ does not depend on the
        // signs.
        let columns = Tensor::f_linalg_qr(&self.u, "reduced")?.0.f_to_kind(x.kind())?;
        Ok(x - (x.f_matmul(&columns)? * 2.0).f_matmul(&columns.tr())?)
    }
}

impl AdaptedLinear for HraLinear {
    fn forward(&self, x: &Tensor, base: &Frozen, _: bool) -> Result<Tensor> {
        base.forward(&if self.apply_gs {
            self.reflected(x)?
        } else {
            Reflections::along(&self.u).transposed(x)
        })
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::new(KEY, &self.u).along(Axis::Input(0))]
    }

    fn merge(&self, base: &Frozen) -> Result<Frozen> {
        let weight = base.dense()?.to_kind(self.u.kind());
        Ok(base.with_weight(if self.apply_gs {
            self.reflected(&weight)?
        } else {
            Reflections::along(&self.u).forward(&weight)
        }))
    }
}
