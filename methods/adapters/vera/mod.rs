//! Vector-based random matrix adaptation.

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::json;

use super::{check_dropout, default_targets, dropout, peft_layers, rank};

#[cfg(test)]
mod tests;

/// Vector-based random matrix adaptation.
#[adapter(
    name = "vera",
    summary = "vector-based random matrix adaptation: trainable scales of a random low-rank \
        change that all modules share",
    reference = "Kopiczko et al. 2024, VeRA, §3.1; same files as PEFT 0.21",
    explain = "\
y = Wx + b + λ_b ⊙ B(λ_d ⊙ A·drop(x))

A [r in] and B [out r] are random and frozen. All modules share them, so they have the largest
widths among the modules, and a module uses the first columns of A and the first rows of B. They
start uniform in ±√6/√fan_in. λ_d [r] starts at d_initial and λ_b [out] at 0, so the model starts
unchanged. The adapter trains r + out numbers per module. A and B are saved with them
(base_model.vera_A, vera_B). A file without them (save_projection = false) is refused, because it
needs PyTorch's random numbers. Merged weight: W + (λ_b ⊙ B)(λ_d ⊙ A).",
    example(r = 64),
    peft_type = "VERA",
    learning_rate_factor = 40.0,
    adjustable = &["vera_dropout"],
)]
pub struct Vera {
    /// r: rank of the change to each module, at least 1. Increasing r by 1 only adds one parameter
    /// per module, so the default is larger than LoRA's.
    #[default(256)]
    pub r: u32,
    /// Initial value of λ_d, a finite number other than 0.
    #[default(0.1)]
    pub d_initial: f64,
    /// Dropout probability of the adapter's input in training, at least 0 and less than 1.
    pub vera_dropout: f64,
    /// Linear modules to adapt: a list of name suffixes (`qkv_proj.q_proj` selects a part of a
    /// fused module), a regular expression that matches whole names, or `all-linear`.
    #[default(default_targets())]
    pub target_modules: Targets,
    /// Blocks of the model to adapt, counted from 0; all by default.
    #[schemars(extend("uniqueItems" = true))]
    pub layers_to_transform: Option<Vec<usize>>,
}

impl AdapterPlugin for Vera {
    fn build(self) -> Result<Box<dyn Adapter>> {
        rank(self.r)?;
        check_dropout("vera_dropout", self.vera_dropout)?;
        if self.d_initial == 0.0 || !self.d_initial.is_finite() {
            return Err(Error::new(format!(
                "`adapter.d_initial` must be a finite number other than 0, got {}",
                self.d_initial
            ))
            .hint("use another value, e.g. 0.1: at 0, neither λ_d nor λ_b gets a gradient"));
        }
        Ok(Box::new(self))
    }

    fn from_peft(json: &str) -> Result<Self> {
        let peft = PeftConfig::parse(json)?;
        if peft.get("save_projection")? == Some(false) {
            return Err(Error::new(
                "the adapter_config.json has `save_projection` = false: the \
                shared matrices are not in the file, and only PyTorch's random numbers could \
                reproduce them",
            )
            .hint(
                "load the adapter in PEFT, set `save_projection` to true, and save it \
                    again",
            ));
        }
        Ok(Self {
            r: peft.need("r")?,
            d_initial: peft.get("d_initial")?.unwrap_or(0.1),
            vera_dropout: peft.get("vera_dropout")?.unwrap_or(0.0),
            target_modules: peft.need("target_modules")?,
            layers_to_transform: peft_layers(&peft)?,
        })
    }
}

impl Adapter for Vera {
    fn shared(&self, targets: &[&LinearInfo], init: &mut Init) -> Result<Vec<Parameter>> {
        let r = rank(self.r)?;
        let widest =
            |width: fn(&LinearInfo) -> i64| targets.iter().map(|l| width(l)).max().unwrap_or(0);
        let (inputs, outputs) = (widest(|l| l.inputs), widest(|l| l.outputs));
        let frozen =
            |key: &str, matrix: Tensor| Parameter::new(key, &matrix.set_requires_grad(false));
        let bound = |fan_in: i64| (6.0 / fan_in as f64).sqrt();
        let (a, b) = (
            init.uniform("vera_A", &[r, inputs], bound(inputs)),
            init.uniform("vera_B", &[outputs, r], bound(r)),
        );
        Ok(vec![frozen("vera_A", a), frozen("vera_B", b)])
    }

    fn attach(&self, site: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        let [a, b] = site.shared else {
            return Err(Error::internal(format!(
                "`vera` needs 2 shared tensors, got {}",
                site.shared.len()
            )));
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

/// The scales of one module.
struct VeraLinear {
    /// The part of A that this module uses: a view of the shared matrix, of shape `[r in]`.
    a: Tensor,
    /// The part of B that this module uses: a view of the shared matrix, of shape `[out r]`.
    b: Tensor,
    /// Scale λ_d `[r]`.
    d: Tensor,
    /// Scale λ_b `[out]`.
    scale: Tensor,
    dropout: f64,
}

impl VeraLinear {
    /// Returns λ_d ⊙ A, of shape `[r in]`, and λ_b ⊙ B, of shape `[out r]`. Scaling the matrices
    /// instead of the activations avoids storing more activations for the backward pass.
    fn factors(&self) -> Result<(Tensor, Tensor)> {
        Ok((&self.a * self.d.f_unsqueeze(1)?, &self.b * self.scale.f_unsqueeze(1)?))
    }
}

impl AdaptedLinear for VeraLinear {
    fn forward(&self, x: &Tensor, base: &Frozen, train: bool) -> Result<Tensor> {
        let (a, b) = self.factors()?;
        let low =
            dropout(x, self.dropout, train)?.f_linear(&a.to_kind(x.kind()), None::<&Tensor>)?;
        Ok(base.forward(x)? + low.f_linear(&b.to_kind(x.kind()), None::<&Tensor>)?)
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![
            Parameter::new("vera_lambda_b", &self.scale).along(Axis::Output(0)),
            Parameter::new("vera_lambda_d", &self.d),
        ]
    }

    fn merge(&self, base: &Frozen) -> Result<Frozen> {
        let (a, b) = self.factors()?;
        Ok(base.with_weight(base.dense()?.to_kind(a.kind()) + b.f_matmul(&a)?))
    }
}
