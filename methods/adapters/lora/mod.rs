//! Low-rank adaptation.

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::{Value, json};
use reprpo_plugin::tch;

use self::start::{LoraInit, Start};
use super::{check_dropout, default_targets, dropout, peft_layers, rank};

mod start;
#[cfg(test)]
mod tests;

/// Names of the tensors in an adapter file.
const A: &str = "lora_A.weight";
const B: &str = "lora_B.weight";
const M: &str = "lora_magnitude_vector";
const C: &str = "lora_B.bias";
/// Names of the tensors of an adapter of the embedding.
const EMBEDDING_A: &str = "lora_embedding_A";
const EMBEDDING_B: &str = "lora_embedding_B";

/// Low-rank adaptation.
#[adapter(
    name = "lora",
    summary = "low-rank adaptation: adds a trainable matrix of rank r to each frozen weight matrix",
    reference = "Hu et al. 2021, LoRA, §4.1; Kalajdzievski 2023 for use_rslora; Liu et al. 2024, \
        DoRA, §4 for use_dora; Meng et al. 2024, PiSSA, §3 and Büyükakyüz 2024, OLoRA, §3 for \
        init; same files as PEFT 0.21",
    explain = "\
y = Wx + b + s·B(A·drop(x))    s = α/r, or α/√r with use_rslora

A [r in] starts uniform in ±1/√in and B [out r] starts at 0, so the model starts unchanged. The
adapter trains r(in + out) parameters per module. Merged weight: W + s·BA.

On parts of a fused module (`qkv_proj.q_proj`), each part has its own A and B. PEFT only adapts
whole modules, so the file has one adapter of rank Σr for all parts of a module: their A are
stacked, and B is made of blocks that are 0 at the rows of other parts.

use_dora: y = m ⊙ (W + s·BA)x/‖W + s·BA‖ + b. The row norms ‖·‖ count as constants in the backward
pass. m [out] starts as the row norms of W. The norms are computed from products of rank r: W +
s·BA is never built. With dropout, the zeroed x is used everywhere except in Wx + b itself, so Wx
is computed twice. Merged weight: m ⊙ (W + s·BA)/‖W + s·BA‖.

lora_bias: y = Wx + b + s·(B·A·drop(x) + c). c [out] starts at 0. Merged bias: b + s·c.

init: y = Wx + b + s·(BA − B₀A₀)·drop(x), where A and B start as A₀ and B₀:
pissa: B₀ = V_r·√(S_r/s), A₀ = √(S_r/s)·U_rᵀ, the r largest singular values S of W = V·S·Uᵀ
olora: B₀ = Q_r, A₀ = R_r, the first r columns and rows of W = QR
PEFT trains s·BA next to W − s·B₀A₀. This is the same, with the same gradients, but W is not
changed: the model starts unchanged, and without the adapter it is the base model, which is the
reference. With dropout, the zeroed x is used in both products; in PEFT, only in BA. The adapter is
saved as a LoRA of rank 2r without init: A above A₀, and B beside −B₀, as PEFT converts such
adapters. If training continues from it, all 2r rows are trained. A file of PEFT that was not
converted is read too, if W has the same values.
When to use them: for faster convergence at the same rank. Evidence: the PiSSA paper reports 72.9 %
instead of LoRA's 67.7 % on GSM8K for Mistral-7B, and gains for all 12 models that it compares; the
OLoRA paper reports faster convergence than LoRA in instruction tuning of five models of up to 7B.
Neither has results for preference data.",
    example(r = 16, target_modules = "all-linear"),
    peft_type = "LORA",
    adjustable = &["lora_dropout"],
)]
pub struct Lora {
    /// r: rank of the change to each module, at least 1.
    #[default(16)]
    pub r: u32,
    /// α: the change is scaled by α/r; greater than 0.
    #[default(32.0)]
    pub lora_alpha: f64,
    /// Dropout probability of the adapter's input in training, at least 0 and less than 1.
    pub lora_dropout: f64,
    /// Scales by α/√r instead of α/r, so that the change does not shrink as r grows.
    pub use_rslora: bool,
    /// Initial values of A and B.
    pub init: LoraInit,
    /// Uses weight decomposition (DoRA), which trains the norm of each row of W + s·BA separately
    /// from its direction.
    pub use_dora: bool,
    /// Trains a bias in addition to A and B, which is scaled like their product. It cannot be
    /// combined with `use_dora` or with another `init` than `zero`.
    pub lora_bias: bool,
    /// Values of r for individual modules, at least 1. Each key is a regular expression for the end
    /// of a module name; the first matching key applies.
    pub rank_pattern: Patterns<u32>,
    /// Values of α for individual modules, greater than 0. Each key is a regular expression for the
    /// end of a module name; the first matching key applies.
    pub alpha_pattern: Patterns<f64>,
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

impl AdapterPlugin for Lora {
    fn build(self) -> Result<Box<dyn Adapter>> {
        rank(self.r)?;
        if self.rank_pattern.values().any(|r| *r == 0) {
            return Err(Error::new(
                "every rank in `adapter.rank_pattern` must be at least 1, got 0",
            ));
        }
        let alpha = |field: &str, a: f64| {
            if a > 0.0 && a.is_finite() {
                Ok(())
            } else {
                Err(Error::new(format!("`adapter.{field}` must be greater than 0, got {a}")))
            }
        };
        alpha("lora_alpha", self.lora_alpha)?;
        self.alpha_pattern.values().try_for_each(|a| alpha("alpha_pattern", *a))?;
        check_dropout("lora_dropout", self.lora_dropout)?;
        if self.lora_bias && (self.use_dora || self.init != LoraInit::Zero) {
            let other = if self.use_dora { "use_dora" } else { "init" };
            return Err(Error::new(format!(
                "`adapter.lora_bias` cannot be combined with `adapter.{other}`"
            )));
        }
        Ok(Box::new(self))
    }

    fn from_peft(json: &str) -> Result<Self> {
        let peft = PeftConfig::parse(json)?;
        peft.must_be_off(&[
            "layer_replication",
            "use_qalora",
            "use_bdlora",
            "alora_invocation_tokens",
            "arrow_config",
            "kasa_config",
            "velora_config",
            "monteclora_config",
        ])?;
        let init = match peft.get("init_lora_weights")? {
            None | Some(Value::Bool(_)) => LoraInit::Zero,
            Some(Value::String(s)) => match s.as_str() {
                // These initialisations do not change the frozen weights.
                "gaussian" | "eva" | "orthogonal" => LoraInit::Zero,
                "pissa" => LoraInit::Pissa,
                "olora" => LoraInit::Olora,
                // Others do, such as corda and pissa_niter_16. They depend on data or on random
                // numbers, so the change cannot be computed again.
                _ => return Err(unsupported_start(&Value::String(s))),
            },
            Some(other) => return Err(unsupported_start(&other)),
        };
        Ok(Self {
            r: peft.need("r")?,
            lora_alpha: peft.need("lora_alpha")?,
            lora_dropout: peft.get("lora_dropout")?.unwrap_or(0.0),
            use_rslora: peft.get("use_rslora")?.unwrap_or(false),
            init,
            use_dora: peft.get("use_dora")?.unwrap_or(false),
            lora_bias: peft.get("lora_bias")?.unwrap_or(false),
            rank_pattern: peft.get("rank_pattern")?.unwrap_or_default(),
            alpha_pattern: peft.get("alpha_pattern")?.unwrap_or_default(),
            target_modules: peft.need("target_modules")?,
            exclude_modules: peft.get("exclude_modules")?.unwrap_or_default(),
            layers_to_transform: peft_layers(&peft)?,
        })
    }
}

/// The error for a value of `init_lora_weights` that is not supported.
fn unsupported_start(value: &Value) -> Error {
    Error::new(format!(
        "the adapter_config.json has `init_lora_weights` = {value}, which changes the base model \
            and is not supported"
    ))
    .hint("convert it with PEFT's `path_initial_model_for_weight_conversion`")
}

impl Adapter for Lora {
    fn selections(&self) -> Vec<Selection> {
        vec![
            Selection::patterns("rank_pattern", &self.rank_pattern),
            Selection::patterns("alpha_pattern", &self.alpha_pattern),
        ]
    }

    fn attach(&self, site: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        let (inputs, outputs) = (site.info.inputs, site.info.outputs);
        let (r, scale) = self.rank_and_scale(&site.info.name)?;
        let (a, b) = (init.kaiming_uniform(A, &[r, inputs], inputs), init.zeros(&[outputs, r]));
        let start = self.init.of(site.frozen, r, scale, a.kind())?;
        if let Some(Start { a: a0, b: b0 }) = &start {
            let _guard = tch::no_grad_guard();
            a.shallow_clone().f_copy_(a0)?;
            b.shallow_clone().f_copy_(b0)?;
        }
        let magnitude =
            if self.use_dora { Some(Magnitude::of(site.frozen, a.kind())?) } else { None };
        let bias = self.lora_bias.then(|| init.zeros(&[outputs]));
        Ok(Box::new(LoraLinear {
            a,
            b,
            bias,
            start,
            scale,
            dropout: self.lora_dropout,
            magnitude,
            names: [A, B],
        }))
    }

    fn attach_embedding(
        &self,
        site: &LinearSite<'_>,
        init: &mut Init,
    ) -> Result<Box<dyn AdaptedLinear>> {
        if self.use_dora || self.lora_bias || self.init != LoraInit::Zero {
            return Err(Error::new(
                "an adapter of the embedding is not supported together with `use_dora`, \
                    `lora_bias` or `init_lora_weights` = \"pissa\" or \"olora\"",
            ));
        }
        let (r, scale) = self.rank_and_scale(&site.info.name)?;
        Ok(Box::new(LoraLinear {
            a: init.zeros(&[r, site.info.inputs]),
            b: init.zeros(&[site.info.outputs, r]),
            bias: None,
            start: None,
            scale,
            dropout: 0.0,
            magnitude: None,
            names: [EMBEDDING_A, EMBEDDING_B],
        }))
    }

    fn saved_form(&self) -> Option<Box<dyn Adapter>> {
        if self.init == LoraInit::Zero {
            return None;
        }
        // With twice the rank, this factor keeps s.
        let factor = if self.use_rslora { std::f64::consts::SQRT_2 } else { 2.0 };
        let mut config = Self {
            r: self.r.saturating_mul(2),
            lora_alpha: factor * self.lora_alpha,
            init: LoraInit::Zero,
            ..self.clone()
        };
        config.rank_pattern.0.values_mut().for_each(|r| *r = r.saturating_mul(2));
        config.alpha_pattern.0.values_mut().for_each(|alpha| *alpha *= factor);
        Some(Box::new(config))
    }

    // The adapter was trained on separate modules, but this model fuses them. As in PEFT, the A
    // matrices of the separate modules are stacked, and their B matrices are arranged in blocks.
    fn fuse(&self, modules: &[FusedSite<'_>]) -> Result<Option<Fused>> {
        // The saved form has no start, so that its parameters are the whole adapter.
        if self.init != LoraInit::Zero {
            return Ok(None);
        }
        let _guard = tch::no_grad_guard();
        let mut config = self.clone();
        let mut fused: Vec<Box<dyn AdaptedLinear>> = Vec::new();
        for (i, site) in modules.iter().enumerate() {
            let linear = self.fused(site)?;
            let (name, r) = (&site.module.info.name, linear.a.size()[0]);
            config.rank_pattern.0.shift_insert(i, name.clone(), r as u32);
            config.alpha_pattern.0.shift_insert(i, name.clone(), linear.scale * self.divisor(r));
            fused.push(Box::new(linear));
        }
        Ok(Some(Fused { adapter: Box::new(config), modules: fused }))
    }

    fn peft_has_conv1d(&self) -> bool {
        true
    }

    fn peft_config(&self) -> String {
        json!({
            "r": self.r,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "use_rslora": self.use_rslora,
            "fan_in_fan_out": false,
            "init_lora_weights": true,
            "use_dora": self.use_dora,
            "rank_pattern": self.rank_pattern,
            "alpha_pattern": self.alpha_pattern,
            "lora_bias": self.lora_bias,
        })
        .to_string()
    }
}

impl Lora {
    /// Returns the divisor of α: r, or √r with `use_rslora`.
    fn divisor(&self, r: i64) -> f64 {
        if self.use_rslora { (r as f64).sqrt() } else { r as f64 }
    }

    fn rank_and_scale(&self, name: &str) -> Result<(i64, f64)> {
        let r = rank(self.rank_pattern.get(name)?.copied().unwrap_or(self.r))?;
        let alpha = self.alpha_pattern.get(name)?.copied().unwrap_or(self.lora_alpha);
        Ok((r, alpha / self.divisor(r)))
    }

    /// Combines the changes to the parts of a fused module into one change to the whole module.
    ///
    /// The new A, `[Σr in]`, stacks the A matrices of the parts. The new B, `[out Σr]`, contains
    /// the B of each part as a block, at the rows and columns of the part. All other entries are 0.
    fn fused(&self, FusedSite { module, parts }: &FusedSite<'_>) -> Result<LoraLinear> {
        let scales = parts
            .iter()
            .map(|part| Ok(self.rank_and_scale(&part.info.linear.name)?.1))
            .collect::<Result<Vec<f64>>>()?;
        let scale = scales.first().copied().unwrap_or(1.0);
        let a = Tensor::f_cat(
            &parts.iter().map(|part| part.tensor(A)).collect::<Result<Vec<_>>>()?,
            0,
        )?;
        let b = a.f_new_zeros([module.info.outputs, a.size()[0]], (a.kind(), a.device()))?;
        let mut magnitude =
            if self.use_dora { Some(Magnitude::of(module.frozen, a.kind())?) } else { None };
        let bias = if self.lora_bias { Some(b.f_select(1, 0)?.f_zeros_like()?) } else { None };
        let mut at = 0;
        for (part, own) in parts.iter().zip(scales) {
            let block = part.tensor(B)?;
            // The fused module uses the s of the first part. Each B is therefore multiplied by the
            // ratio of the scales.
            part.info.rows.put(&b.f_narrow(1, at, block.size()[1])?, &(&block * (own / scale)))?;
            at += block.size()[1];
            if let Some(bias) = &bias {
                part.info.rows.put(bias, &(part.tensor(C)? * (own / scale)))?;
            }
            if let Some(Magnitude { m, .. }) = &mut magnitude {
                part.info.rows.put(m, &part.tensor(M)?)?;
            }
        }
        Ok(LoraLinear {
            a: a.set_requires_grad(true),
            b: b.set_requires_grad(true),
            bias: bias.map(|bias| bias.set_requires_grad(true)),
            start: None,
            scale,
            dropout: self.lora_dropout,
            magnitude,
            names: [A, B],
        })
    }
}

/// The low-rank change of one module.
struct LoraLinear {
    /// Matrix A `[r in]`.
    a: Tensor,
    /// Matrix B `[out r]`.
    b: Tensor,
    /// Bias c `[out]`; `None` without `lora_bias`.
    bias: Option<Tensor>,
    /// Initial values of A and B, whose product is subtracted; `None` if B starts at 0.
    start: Option<Start>,
    /// Scale s.
    scale: f64,
    dropout: f64,
    /// The magnitude that DoRA trains; `None` without `use_dora`.
    magnitude: Option<Magnitude>,
    /// Names of A and B in the file.
    names: [&'static str; 2],
}

/// Parameter that DoRA trains in addition to A and B.
struct Magnitude {
    /// Magnitude m `[out]`.
    m: Tensor,
    /// Squared norm of each row of the frozen W, `[out]`.
    squares: Tensor,
}

impl Magnitude {
    /// Returns the initial magnitude of a module in the dtype `kind`.
    fn of(frozen: &Frozen, kind: Kind) -> Result<Self> {
        Ok(Self {
            m: frozen.row_norms(kind)?.set_requires_grad(true),
            squares: frozen.squared_row_norms(kind)?,
        })
    }
}

impl LoraLinear {
    /// Returns matrices A `[k in]` and B `[out k]` whose product is the change, divided by s.
    fn factors(&self) -> Result<(Tensor, Tensor)> {
        match &self.start {
            None => Ok((self.a.shallow_clone(), self.b.shallow_clone())),
            Some(start) => start.difference(&self.a, &self.b),
        }
    }

    /// Returns the norm of each row of W + s·BA, `[out]`, detached from the graph. To save memory,
    /// W + s·BA is not computed. Instead, the squared norms are computed as ‖W‖² + 2s·Σ B ⊙ (WAᵀ) +
    /// s²·Σ B ⊙ (B(AAᵀ)).
    fn lengths(&self, squares: &Tensor, base: &Frozen) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let ((a, b), s, weight) = (self.factors()?, self.scale, base.dense()?);
        let cross = weight.f_matmul(&a.tr().f_to_kind(weight.kind())?)?.f_to_kind(a.kind())?;
        let change = (cross * (2.0 * s) + b.f_matmul(&a.f_matmul(&a.tr())?)? * (s * s)) * b;
        // The lower bound prevents 0/0 if all entries of a row are 0. The row then stays 0.
        Ok((squares + change.f_sum_dim_intlist([1].as_slice(), false, None::<Kind>)?)
            .f_clamp_min(1e-30)?
            .f_sqrt()?)
    }
}

impl AdaptedLinear for LoraLinear {
    fn forward(&self, x: &Tensor, base: &Frozen, train: bool) -> Result<Tensor> {
        let kind = x.kind();
        let input = dropout(x, self.dropout, train)?;
        let (a, b) = self.factors()?;
        let low = input.f_linear(&a.to_kind(kind), None::<&Tensor>)?;
        // Scale before multiplying by B, because there are only r values per token at this point.
        let bias = self.bias.as_ref().map(|bias| (bias * self.scale).to_kind(kind));
        let change = (low * self.scale).f_linear(&b.to_kind(kind), bias.as_ref())?;
        let y = base.forward(x)?;
        let Some(Magnitude { m, squares }) = &self.magnitude else { return Ok(y + change) };
        let plain = match base.bias() {
            _ if train && self.dropout > 0.0 => base.product(&input)?,
            Some(bias) => &y - bias,
            None => y.shallow_clone(),
        };
        let ratio = m / self.lengths(squares, base)?;
        // Cast ratio − 1 instead of the ratio, because half precision would round away small
        // differences from 1.
        Ok(y + plain * (&ratio - 1.0).f_to_kind(kind)? + change * ratio.f_to_kind(kind)?)
    }

    fn parameters(&self) -> Vec<Parameter> {
        let mut list = vec![
            Parameter::new(self.names[0], &self.a).along(Axis::Input(1)),
            Parameter::new(self.names[1], &self.b).along(Axis::Output(0)),
        ];
        list.extend(self.bias.iter().map(|c| Parameter::new(C, c).along(Axis::Output(0))));
        list.extend(self.magnitude.iter().map(|d| Parameter::new(M, &d.m).along(Axis::Output(0))));
        list
    }

    fn saved_form(&self) -> Result<Option<Box<dyn AdaptedLinear>>> {
        let Some(start) = &self.start else { return Ok(None) };
        let _guard = tch::no_grad_guard();
        let (a, b) = start.stacked(&self.a, &self.b)?;
        Ok(Some(Box::new(Self {
            a: a.set_requires_grad(true),
            b: b.set_requires_grad(true),
            bias: None,
            start: None,
            names: self.names,
            scale: self.scale,
            dropout: self.dropout,
            magnitude: self.magnitude.as_ref().map(|Magnitude { m, squares }| Magnitude {
                m: m.shallow_clone(),
                squares: squares.shallow_clone(),
            }),
        })))
    }

    fn merge(&self, base: &Frozen) -> Result<Frozen> {
        let (a, b) = self.factors()?;
        let change = b.f_matmul(&a)? * self.scale;
        let mut weight = base.dense()?.to_kind(change.kind()).f_add(&change)?;
        if let Some(Magnitude { m, squares }) = &self.magnitude {
            weight *= (m / self.lengths(squares, base)?).f_unsqueeze(1)?;
        }
        let merged = base.with_weight(weight);
        Ok(match (&self.bias, base.bias()) {
            (None, _) => merged,
            (Some(c), Some(bias)) => merged.with_bias(&(bias.to_kind(c.kind()) + c * self.scale)),
            (Some(_), None) => {
                return Err(Error::new(
                    "the bias of `lora_bias` cannot be merged into a module without a bias",
                ));
            }
        })
    }
}
