//! Low-rank adaptation.

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::{Value, json};

use super::{default_targets, rank};

#[cfg(test)]
mod tests;

/// Low-rank adaptation.
pub struct Lora;

/// Fields of `adapter` with `name = "lora"`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "reprpo_plugin::serde", deny_unknown_fields, default)]
#[schemars(crate = "reprpo_plugin::schemars")]
pub struct LoraConfig {
    /// r: rank of the change of each module, 1 or more.
    pub r: u32,
    /// α: the change is scaled by α/r, above 0.
    pub lora_alpha: f64,
    /// Share of the adapter's inputs that is zeroed in training, 0 to below 1.
    pub lora_dropout: f64,
    /// Scales by α/√r instead, which keeps the size of the change as r grows.
    pub use_rslora: bool,
    /// The linear modules that are adapted: ends of names, a regular expression for whole names, or `all-linear`.
    pub target_modules: Targets,
    /// The blocks that are adapted, from 0; all where it is not given.
    pub layers_to_transform: Option<Vec<usize>>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { r: 16, lora_alpha: 32.0, lora_dropout: 0.0, use_rslora: false, target_modules: default_targets(), layers_to_transform: None }
    }
}

impl Plugin for Lora {
    const NAME: &'static str = "lora";
    const SUMMARY: &'static str = "low-rank adaptation: adds a trainable matrix of rank r to each frozen one";
    const REFERENCE: &'static str = "Hu et al. 2021, LoRA, §4.1; Kalajdzievski 2023 for use_rslora; files as PEFT 0.21 has them";
    const EXPLAIN: &'static str = "\
y = Wx + b + s·B(A·drop(x))    s = α/r, or α/√r with use_rslora

A [r in] starts uniform in ±1/√in and B [out r] at 0, so the model starts unchanged. r(in + out) parameters a module.
Merged: W + s·BA.";
    type Config = LoraConfig;
}

impl AdapterPlugin for Lora {
    const PEFT_TYPE: &'static str = "LORA";

    fn build(config: LoraConfig) -> Result<Box<dyn Adapter>> {
        rank(config.r)?;
        if !(config.lora_alpha > 0.0 && config.lora_alpha.is_finite()) {
            return Err(Error::new(format!("`adapter.lora_alpha` is {}, but has to be above 0", config.lora_alpha)));
        }
        if !(0.0..1.0).contains(&config.lora_dropout) {
            return Err(Error::new(format!("`adapter.lora_dropout` is {}, but has to be 0 or more and below 1", config.lora_dropout)));
        }
        Ok(Box::new(config))
    }

    fn from_peft(json: &str) -> Result<LoraConfig> {
        let peft = PeftConfig::parse(json)?;
        peft.must_be_off(&[
            "use_dora",
            "lora_bias",
            "rank_pattern",
            "alpha_pattern",
            "fan_in_fan_out",
            "layer_replication",
            "use_qalora",
            "use_bdlora",
            "alora_invocation_tokens",
            "arrow_config",
            "kasa_config",
            "velora_config",
            "monteclora_config",
        ])?;
        // The other ways to start (pissa, olora, corda, …) take something away from the frozen weights, so that the
        // tensors on disk mean a change of another base model than the one that is loaded here.
        let start: Option<Value> = peft.get("init_lora_weights")?;
        if let Some(start) = start.filter(|s| !(s.is_boolean() || matches!(s.as_str(), Some("gaussian" | "eva" | "orthogonal")))) {
            return Err(Error::new(format!("the adapter_config.json has `init_lora_weights` = {start}, which changes the base model and is not supported"))
                .hint("convert it with PEFT's `path_initial_model_for_weight_conversion`"));
        }
        Ok(LoraConfig {
            r: peft.need("r")?,
            lora_alpha: peft.need("lora_alpha")?,
            lora_dropout: peft.get("lora_dropout")?.unwrap_or(0.0),
            use_rslora: peft.get("use_rslora")?.unwrap_or(false),
            target_modules: peft.need("target_modules")?,
            layers_to_transform: peft.get("layers_to_transform")?,
        })
    }
}

impl Adapter for LoraConfig {
    fn targets(&self) -> Targets {
        self.target_modules.clone()
    }

    fn layers_to_transform(&self) -> Option<Vec<usize>> {
        self.layers_to_transform.clone()
    }

    fn attach(&self, site: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        let (r, inputs, outputs) = (rank(self.r)?, site.info.inputs, site.info.outputs);
        let width = f64::from(self.r);
        Ok(Box::new(LoraLinear {
            a: init.kaiming_uniform("lora_A.weight", &[r, inputs], inputs),
            b: init.zeros(&[outputs, r]),
            scale: self.lora_alpha / if self.use_rslora { width.sqrt() } else { width },
            dropout: self.lora_dropout,
        }))
    }

    fn peft_config(&self) -> String {
        json!({
            "r": self.r,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "use_rslora": self.use_rslora,
            "fan_in_fan_out": false,
            "init_lora_weights": true,
            "use_dora": false,
            "rank_pattern": {},
            "alpha_pattern": {},
            "lora_bias": false,
        })
        .to_string()
    }
}

/// One module's change.
struct LoraLinear {
    /// A `[r in]`.
    a: Tensor,
    /// B `[out r]`.
    b: Tensor,
    /// s.
    scale: f64,
    dropout: f64,
}

impl AdaptedLinear for LoraLinear {
    fn forward(&self, x: &Tensor, base: &Frozen, train: bool) -> Result<Tensor> {
        let kind = x.kind();
        let dropped = if train && self.dropout > 0.0 { x.f_dropout(self.dropout, true)? } else { x.shallow_clone() };
        let low = dropped.f_linear(&self.a.to_kind(kind), None::<&Tensor>)?;
        // s stands at the narrow side, where it costs r numbers a token.
        Ok(base.forward(x)? + (low * self.scale).f_linear(&self.b.to_kind(kind), None::<&Tensor>)?)
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::new("lora_A.weight", &self.a).along(Axis::Input(1)), Parameter::new("lora_B.weight", &self.b).along(Axis::Output(0))]
    }

    fn merge(&self, base: &Frozen) -> Result<Frozen> {
        let change = self.b.f_matmul(&self.a)? * self.scale;
        Ok(base.with_weight(base.weight.to_kind(change.kind()).f_add(&change)?))
    }
}

register!(adapter: Lora);
