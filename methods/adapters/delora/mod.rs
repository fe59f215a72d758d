//! Low-rank adaptation with decoupled angles and strength.

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::json;
use reprpo_plugin::tch;

use super::{check_dropout, default_targets, dropout, peft_layers, rank};

#[cfg(test)]
mod tests;

/// Names of the tensors in an adapter file.
const A: &str = "delora_A";
const B: &str = "delora_B";
const LAMBDA: &str = "delora_lambda";
const NORMS: &str = "delora_w_norm";

/// Smaller norms count as this one.
const SMALLEST_NORM: f64 = 1e-4;

/// Low-rank adaptation with decoupled angles and strength (DeLoRA).
#[adapter(
    name = "delora",
    summary = "DeLoRA: a low-rank change of bounded size whose directions and strength are \
        trained separately",
    reference = "Bini, Girrbach and Akata 2025, DeLoRA: Decoupling Angles and Strength in Low-rank \
        Adaptation, §3; same files as PEFT 0.21",
    explain = "\
y = Wx + b + B·D·A(w ⊙ drop(x))    D = diag(λ/(r·max(‖Aᵢ‖, 1e-4)·max(‖Bⁱ‖, 1e-4)))

Aᵢ are the rows of A [r in] and Bⁱ the columns of B [out r], so their lengths do not matter. λ [1]
is trained and starts at delora_lambda; the Frobenius norm of B·D·A is at most λ. w [in] are the
norms of the columns of W when the adapter is created, and are saved with it (delora_w_norm). A
starts uniform in ±1/√in and B at 0, so the model starts unchanged. Merged: W + B·D·A·diag(w).

While a column of B is shorter than 1e-4, the change grows with it. After that, it has the full
length λ/r, however small the learning rate is, so the model moves a lot in the first steps. A
smaller delora_lambda limits this.

When to use it: if training must not move far from the base model, for long training, or if the
learning rate cannot be tuned. Evidence: the paper reports results at or above those of other
adapters on subject-driven image generation, language understanding and instruction tuning, and
less harm from large learning rates and long training. It has no results for preference data.

Adapters on parts of a fused module are saved under the names of the parts, which PEFT cannot read:
λ and w belong to the whole module there.",
    example(r = 16, delora_lambda = 8),
    peft_type = "DELORA",
    learning_rate_factor = 0.2,
    adjustable = &["module_dropout"],
)]
pub struct Delora {
    /// r: rank of the change to each module, at least 1.
    #[default(8)]
    pub r: u32,
    /// Initial value of λ, the bound on the change; greater than 0. With PEFT's default, 15, the
    /// change is larger than W.
    #[default(1.0)]
    pub delora_lambda: f64,
    /// Dropout probability of the adapter's input in training, at least 0 and less than 1.
    pub module_dropout: f64,
    /// Values of r for individual modules, at least 1. Each key is a regular expression for the end
    /// of a module name; the first matching key applies.
    pub rank_pattern: Patterns<u32>,
    /// Initial values of λ for individual modules, greater than 0. Each key is a regular expression
    /// for the end of a module name; the first matching key applies.
    pub lambda_pattern: Patterns<f64>,
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

impl AdapterPlugin for Delora {
    fn build(self) -> Result<Box<dyn Adapter>> {
        rank(self.r)?;
        if self.rank_pattern.values().any(|r| *r == 0) {
            return Err(Error::new(
                "every rank in `adapter.rank_pattern` must be at least 1, got 0",
            ));
        }
        let bounds = [("delora_lambda", self.delora_lambda)]
            .into_iter()
            .chain(self.lambda_pattern.values().map(|l| ("lambda_pattern", *l)));
        for (field, lambda) in bounds {
            if !(lambda > 0.0 && lambda.is_finite()) {
                return Err(Error::new(format!(
                    "`adapter.{field}` must be greater than 0, got {lambda}"
                )));
            }
        }
        check_dropout("module_dropout", self.module_dropout)?;
        Ok(Box::new(self))
    }

    fn from_peft(json: &str) -> Result<Self> {
        let peft = PeftConfig::parse(json)?;
        Ok(Self {
            r: peft.need("r")?,
            delora_lambda: peft.get("delora_lambda")?.unwrap_or(15.0),
            module_dropout: peft.get("module_dropout")?.unwrap_or(0.0),
            rank_pattern: peft.get("rank_pattern")?.unwrap_or_default(),
            lambda_pattern: peft.get("lambda_pattern")?.unwrap_or_default(),
            target_modules: peft.need("target_modules")?,
            exclude_modules: peft.get("exclude_modules")?.unwrap_or_default(),
            layers_to_transform: peft_layers(&peft)?,
        })
    }
}

impl Adapter for Delora {
    fn selections(&self) -> Vec<Selection> {
        vec![
            Selection::patterns("rank_pattern", &self.rank_pattern),
            Selection::patterns("lambda_pattern", &self.lambda_pattern),
        ]
    }

    fn attach(&self, site: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        let (inputs, name) = (site.info.inputs, &site.info.name);
        let r = rank(self.rank_pattern.get(name)?.copied().unwrap_or(self.r))?;
        let bound = self.lambda_pattern.get(name)?.copied().unwrap_or(self.delora_lambda);
        let a = init.kaiming_uniform(A, &[r, inputs], inputs);
        let lambda = init.ones(&[1]);
        let _ = lambda.detach().f_fill_(bound)?;
        let norms = {
            let _guard = tch::no_grad_guard();
            norms(&site.frozen.dense()?.f_to_kind(a.kind())?, 0)?
        };
        Ok(Box::new(DeloraLinear {
            a,
            b: init.zeros(&[site.info.outputs, r]),
            lambda,
            norms,
            dropout: self.module_dropout,
        }))
    }

    fn peft_config(&self) -> String {
        json!({
            "r": self.r,
            "delora_lambda": self.delora_lambda,
            "module_dropout": self.module_dropout,
            "rank_pattern": self.rank_pattern,
            "lambda_pattern": self.lambda_pattern,
            "bias": "none",
            "init_weights": true,
        })
        .to_string()
    }
}

/// Returns the Euclidean norms of a matrix over dimension `dim`.
fn norms(matrix: &Tensor, dim: i64) -> Result<Tensor> {
    Ok(matrix.f_norm_scalaropt_dim(2.0, [dim].as_slice(), false)?)
}

/// The change of one module.
struct DeloraLinear {
    /// Matrix A `[r in]`.
    a: Tensor,
    /// Matrix B `[out r]`.
    b: Tensor,
    /// The bound λ `[1]`.
    lambda: Tensor,
    /// Norms w of the columns of W, `[in]`. They are not trained.
    norms: Tensor,
    dropout: f64,
}

impl DeloraLinear {
    /// Returns D·A·diag(w), `[r in]`.
    fn scaled(&self) -> Result<Tensor> {
        let lengths = norms(&self.a, 1)?.f_clamp_min(SMALLEST_NORM)?
            * norms(&self.b, 0)?.f_clamp_min(SMALLEST_NORM)?;
        let strengths = &self.lambda / self.a.size()[0] as f64 / lengths;
        Ok(&self.a * &self.norms * strengths.f_unsqueeze(1)?)
    }
}

impl AdaptedLinear for DeloraLinear {
    fn forward(&self, x: &Tensor, base: &Frozen, train: bool) -> Result<Tensor> {
        let kind = x.kind();
        let low = dropout(x, self.dropout, train)?
            .f_linear(&self.scaled()?.f_to_kind(kind)?, None::<&Tensor>)?;
        Ok(base.forward(x)? + low.f_linear(&self.b.f_to_kind(kind)?, None::<&Tensor>)?)
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![
            Parameter::new(A, &self.a).along(Axis::Input(1)),
            Parameter::new(B, &self.b).along(Axis::Output(0)),
            Parameter::new(LAMBDA, &self.lambda),
            Parameter::new(NORMS, &self.norms),
        ]
    }

    fn merge(&self, base: &Frozen) -> Result<Frozen> {
        let change = self.b.f_matmul(&self.scaled()?)?;
        Ok(base.with_weight(base.dense()?.to_kind(change.kind()) + change))
    }
}
