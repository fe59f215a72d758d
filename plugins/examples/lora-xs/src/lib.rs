//! LoRA-XS: trains a small matrix between the frozen singular vectors of each weight.

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::json;

/// The adapter LoRA-XS.
#[adapter(
    name = "lora-xs",
    summary = "LoRA-XS: a trainable r×r core between the frozen singular vectors of each weight",
    reference = "Bałazy et al. 2024, LoRA-XS: Low-Rank Adaptation with Extremely Small Number of \
        Parameters, §3 (arXiv:2405.17604)",
    explain = "\
y = (W + A R B)x + b    W ≈ U_r Σ_r V_rᵀ    A = U_r Σ_r [out r]    B = V_rᵀ [r in]    R [r r]

A and B are made from the r largest singular triples of W and are frozen. Only R is trained: r²
parameters per module, independent of its widths. R starts at 0, so the model is unchanged at first.
Its gradient AᵀGBᵀ is not 0 there. (The paper draws entries of about 1e-5 instead.) A and B are
saved with R, because the signs of singular vectors depend on the library. The merged weight is
W + A R B.",
    peft_type = "LORA_XS"
)]
pub struct LoraXs {
    /// r: number of singular vectors, from 1 to the smallest width of any adapted module.
    #[default(16)]
    pub r: i64,
    /// The linear modules to adapt: a list of ends of names (`qkv_proj.q_proj` selects a part of a
    /// fused module), a regular expression for whole names, or `all-linear`.
    #[default(["q_proj", "k_proj", "v_proj", "o_proj"].into())]
    pub target_modules: Targets,
    /// The blocks to adapt, counted from 0. By default, all blocks are adapted.
    pub layers_to_transform: Option<Vec<usize>>,
}

impl AdapterPlugin for LoraXs {
    fn build(self) -> Result<Box<dyn Adapter>> {
        if self.r < 1 {
            return Err(Error::new(format!("`adapter.r` must be 1 or more, got {}", self.r)));
        }
        Ok(Box::new(self))
    }

    fn from_peft(json: &str) -> Result<Self> {
        let peft = PeftConfig::parse(json)?;
        Ok(Self {
            r: peft.need("r")?,
            target_modules: peft.need("target_modules")?,
            layers_to_transform: peft.get("layers_to_transform")?,
        })
    }
}

impl Adapter for LoraXs {
    fn attach(&self, site: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        let most = site.info.inputs.min(site.info.outputs);
        if self.r > most {
            return Err(Error::new(format!(
                "`adapter.r` must be at most {most}, the smaller width of `{}`, got {}",
                site.info.name, self.r
            )));
        }
        let core = init.zeros(&[self.r, self.r]);
        let (u, sigma, v) = site.frozen.dense()?.f_to_kind(core.kind())?.f_svd(true, true)?;
        let first = |columns: &Tensor| columns.f_narrow(1, 0, self.r);
        Ok(Box::new(Core {
            left: first(&(u * sigma))?.f_contiguous()?,
            core,
            right: first(&v)?.f_tr()?.f_contiguous()?,
        }))
    }

    fn peft_config(&self) -> String {
        json!({ "r": self.r }).to_string()
    }
}

/// The change to one module.
struct Core {
    /// A `[out r]`, frozen.
    left: Tensor,
    /// R `[r r]`.
    core: Tensor,
    /// B `[r in]`, frozen.
    right: Tensor,
}

impl AdaptedLinear for Core {
    fn forward(&self, x: &Tensor, base: &Frozen, _train: bool) -> Result<Tensor> {
        let through = |x: &Tensor, w: &Tensor| x.f_linear(&w.f_to_kind(x.kind())?, None::<&Tensor>);
        let change = through(&through(&through(x, &self.right)?, &self.core)?, &self.left)?;
        Ok(base.forward(x)? + change)
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![
            Parameter::new("lora_xs_A", &self.left),
            Parameter::new("lora_xs_R", &self.core),
            Parameter::new("lora_xs_B", &self.right),
        ]
    }

    fn merge(&self, base: &Frozen) -> Result<Frozen> {
        let change = self.left.f_matmul(&self.core)?.f_matmul(&self.right)?;
        Ok(base.with_weight(base.dense()?.f_to_kind(change.kind())?.f_add(&change)?))
    }
}

#[cfg(feature = "plugin")]
reprpo_plugin::export_plugin!();

#[cfg(test)]
mod tests {
    use reprpo_plugin::tch::Device;
    use reprpo_plugin::testkit::{near, registered, tensor};

    use super::*;

    #[test]
    fn it_passes_the_conformance_tests() {
        registered();
    }

    #[test]
    fn the_core_acts_between_the_largest_singular_vectors() {
        // W has diag(3, 2) for the first two inputs and 0 for the third. So A = (3, 0)ᵀ and
        // B = (1, 0, 0), up to a common sign that cancels in A R B.
        let info = LinearInfo {
            name: "model.layers.0.self_attn.q_proj".to_owned(),
            layer: Some(0),
            inputs: 3,
            outputs: 2,
        };
        let frozen = Frozen::new(tensor(&[3.0, 0.0, 0.0, 0.0, 2.0, 0.0], &[2, 3]), None);
        let attach = |r| {
            let adapter = LoraXs { r, ..LoraXs::default() }.build().unwrap();
            adapter.attach(
                &LinearSite { info: &info, frozen: &frozen, shared: &[], sources: &[] },
                &mut Init::new(0, "", Kind::Double, Device::Cpu),
            )
        };
        let adapted = attach(1).unwrap();
        let x = tensor(&[1.0, 10.0, 100.0], &[1, 3]);
        let values = |t: &Tensor| Vec::<f64>::try_from(t.reshape([-1])).unwrap();
        // The gradient of the sum is AᵀGBᵀ = 3, and R = 0.5 adds 0.5·3·x₁ to y₁.
        adapted.forward(&x, &frozen, true).unwrap().sum(Kind::Double).backward();
        let core = &adapted.parameters()[1].tensor;
        near(core.grad().double_value(&[0, 0]), 3.0);
        let _ = core.detach().fill_(0.5);
        for y in [
            adapted.forward(&x, &frozen, false).unwrap(),
            adapted.merge(&frozen).unwrap().forward(&x).unwrap(),
        ] {
            near(values(&y)[0], 4.5);
            near(values(&y)[1], 20.0);
        }
        assert!(attach(3).err().unwrap().to_string().contains("`adapter.r` must be at most 2"));
    }
}
