//! Vector-based random matrix adaptation.

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::json;

use super::{check_dropout, default_targets, dropped, peft_layers, rank};

#[cfg(test)]
mod tests;

/// Vector-based random matrix adaptation.
pub struct Vera;

/// Fields of `adapter` with `name = "vera"`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "reprpo_plugin::serde", deny_unknown_fields, default)]
#[schemars(crate = "reprpo_plugin::schemars")]
pub struct VeraConfig {
    /// r: rank of the change of each module, 1 or more; it costs few parameters, so it is larger than LoRA's.
    pub r: u32,
    /// What λ_d starts at, a finite number other than 0.
    pub d_initial: f64,
    /// Share of the adapter's inputs that is zeroed in training, 0 to below 1.
    pub vera_dropout: f64,
    /// The linear modules that are adapted: ends of names (`qkv_proj.q_proj`: a part of a fused one), a regular expression for whole names, or `all-linear`.
    pub target_modules: Targets,
    /// The blocks that are adapted, from 0; all where it is not given.
    #[schemars(extend("uniqueItems" = true))]
    pub layers_to_transform: Option<Vec<usize>>,
}

impl Default for VeraConfig {
    fn default() -> Self {
        Self { r: 256, d_initial: 0.1, vera_dropout: 0.0, target_modules: default_targets(), layers_to_transform: None }
    }
}

impl Plugin for Vera {
    const NAME: &'static str = "vera";
    const SUMMARY: &'static str = "vector-based random matrix adaptation: trainable scales of a random low-rank change that all modules share";
    const REFERENCE: &'static str = "Kopiczko et al. 2024, VeRA, §3.1; files as PEFT 0.21 has them";
    const EXPLAIN: &'static str = "\
y = Wx + b + λ_b ⊙ B(λ_d ⊙ A·drop(x))

A [r in] and B [out r] are random, frozen and shared by all modules, at the largest widths among them; a module takes the
first of A's columns and of B's rows. They start uniform in ±√6/√fan_in. λ_d [r] starts at d_initial and λ_b [out] at 0, so
the model starts unchanged. r + out trained numbers a module. A and B are saved with them (base_model.vera_A, vera_B): a
file without them (save_projection = false) needs PyTorch's random numbers and is refused. Merged: W + (λ_b ⊙ B)(λ_d ⊙ A).";
    const EXAMPLE: &'static [(&'static str, &'static str)] = &[("r", "64")];
    type Config = VeraConfig;
}

impl AdapterPlugin for Vera {
    const PEFT_TYPE: &'static str = "VERA";
    const ADJUSTABLE: &'static [&'static str] = &["vera_dropout"];
    const LEARNING_RATE_FACTOR: f64 = 40.0;

    fn build(config: VeraConfig) -> Result<Box<dyn Adapter>> {
        rank(config.r)?;
        check_dropout("vera_dropout", config.vera_dropout)?;
        if config.d_initial == 0.0 || !config.d_initial.is_finite() {
            return Err(Error::new(format!("`adapter.d_initial` is {}, but has to be a finite number other than 0", config.d_initial))
                .hint("at 0, neither λ would ever get a gradient"));
        }
        Ok(Box::new(config))
    }

    fn from_peft(json: &str) -> Result<VeraConfig> {
        let peft = PeftConfig::parse(json)?;
        if peft.get("save_projection")? == Some(false) {
            return Err(Error::new("the adapter_config.json has `save_projection` = false: the shared matrices are not in the file, and PyTorch's random numbers would be needed to make them again")
                .hint("load the adapter in PEFT, set `save_projection` to true, and save it again"));
        }
        Ok(VeraConfig {
            r: peft.need("r")?,
            d_initial: peft.get("d_initial")?.unwrap_or(0.1),
            vera_dropout: peft.get("vera_dropout")?.unwrap_or(0.0),
            target_modules: peft.need("target_modules")?,
            layers_to_transform: peft_layers(&peft)?,
        })
    }
}

impl Adapter for VeraConfig {
    fn targets(&self) -> Targets {
        self.target_modules.clone()
    }

    fn layers_to_transform(&self) -> Option<Vec<usize>> {
        self.layers_to_transform.clone()
    }

    fn shared(&self, targets: &[&LinearInfo], init: &mut Init) -> Result<Vec<Parameter>> {
        let r = rank(self.r)?;
        let widest = |width: fn(&LinearInfo) -> i64| targets.iter().map(|l| width(l)).max().unwrap_or(0);
        let (inputs, outputs) = (widest(|l| l.inputs), widest(|l| l.outputs));
        let frozen = |key: &str, matrix: Tensor| Parameter::new(key, &matrix.set_requires_grad(false));
        let bound = |fan_in: i64| (6.0 / fan_in as f64).sqrt();
        let (a, b) = (init.uniform("vera_A", &[r, inputs], bound(inputs)), init.uniform("vera_B", &[outputs, r], bound(r)));
        Ok(vec![frozen("vera_A", a), frozen("vera_B", b)])
    }

    fn attach(&self, site: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        let [a, b] = site.shared else {
            return Err(Error::internal(format!("`vera` got {} shared tensors instead of its two", site.shared.len())));
        };
        let d = init.ones(&[rank(self.r)?]);
        let _ = d.detach().fill_(self.d_initial);
        Ok(Box::new(VeraLinear {
            a: a.tensor.f_narrow(1, 0, site.info.inputs)?,
            b: b.tensor.f_narrow(0, 0, site.info.outputs)?,
            d,
            scale: init.zeros(&[site.info.outputs]),
            dropout: self.vera_dropout,
        }))
    }

    fn peft_has_conv1d(&self) -> bool {
        true
    }

    fn peft_config(&self) -> String {
        json!({
            "r": self.r,
            "d_initial": self.d_initial,
            "vera_dropout": self.vera_dropout,
            "save_projection": true,
            "projection_prng_key": 0,
            "fan_in_fan_out": false,
            "init_weights": true,
        })
        .to_string()
    }
}

/// One module's scales.
struct VeraLinear {
    /// The module's part of A `[r in]`, a view of what all share.
    a: Tensor,
    /// The module's part of B `[out r]`, a view of what all share.
    b: Tensor,
    /// λ_d `[r]`.
    d: Tensor,
    /// λ_b `[out]`.
    scale: Tensor,
    dropout: f64,
}

impl VeraLinear {
    /// λ_d ⊙ A `[r in]` and λ_b ⊙ B `[out r]`: scaled here, nothing as long as the tokens has to be kept for a gradient.
    fn factors(&self) -> Result<(Tensor, Tensor)> {
        Ok((&self.a * self.d.f_unsqueeze(1)?, &self.b * self.scale.f_unsqueeze(1)?))
    }
}

impl AdaptedLinear for VeraLinear {
    fn forward(&self, x: &Tensor, base: &Frozen, train: bool) -> Result<Tensor> {
        let (a, b) = self.factors()?;
        let low = dropped(x, self.dropout, train)?.f_linear(&a.to_kind(x.kind()), None::<&Tensor>)?;
        Ok(base.forward(x)? + low.f_linear(&b.to_kind(x.kind()), None::<&Tensor>)?)
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::new("vera_lambda_b", &self.scale).along(Axis::Output(0)), Parameter::new("vera_lambda_d", &self.d)]
    }

    fn merge(&self, base: &Frozen) -> Result<Frozen> {
        let (a, b) = self.factors()?;
        Ok(base.with_weight(base.dense()?.to_kind(a.kind()) + b.f_matmul(&a)?))
    }
}

register!(adapter: Vera);
