//! Contrastive weight steering: a change of the weights that is made of the adapters of other runs.

use std::path::PathBuf;

use reprpo_plugin::prelude::*;

use super::peft_layers;

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod tests;

/// Names of the tensors in an adapter file.
const WEIGHT: &str = "weight_delta";
const BIAS: &str = "bias_delta";

/// Contrastive weight steering.
#[adapter(
    name = "weight-steering",
    summary = "weight arithmetic: adds the difference between the weight changes of two finished \
        runs",
    reference = "Fierro and Roger 2025, Steering Language Models with Weight Arithmetic, arXiv \
        2511.05408; Ilharco et al. 2022, Editing Models with Task Arithmetic, for a single run",
    explain = "\
y = (W + c·(W⁺ − W⁻))x + b + c·(b⁺ − b⁻)

W⁺ and b⁺ are the weights and the bias of the module after the adapter of the run `plus` is merged
into it, and W⁻ and b⁻ those of `minus`. Without `minus`, W⁻ = W and b⁻ = b: task arithmetic with
one run, so c = 1 gives the model of that run, and a negative c the opposite change. The change is
computed in float32. The two adapters may be of different methods and change different modules;
both must be trained on this base model. `loreft` edits states, so it cannot be used.

Nothing is trained, so the intervention must be `none`. Towards the chosen completions, away from
the rejected ones:

  reprpo run --intervention sft --out runs/plus
  reprpo run --intervention sft --set train.swap_labels=1 --out runs/minus
  reprpo run --intervention none --adapter weight-steering --set adapter.plus=runs/plus \\
      --set adapter.minus=runs/minus --out runs/steered

The saved adapter has the dense change of each module (4 bytes per weight), so it does not need
the two runs any more. Its keys and peft_type WEIGHT_STEERING are specific to this project: PEFT
cannot read it, but `reprpo export --merge` writes a model that every program can read.

When to use it: as a baseline that changes behaviour without a preference loss, and whose strength
is chosen after training, with c. Evidence: the authors report that it often generalises further
than activation steering for sycophancy and misalignment before general capabilities suffer, and
that it partly undoes unwanted changes of task-specific fine-tuning; see the paper for numbers.",
    example(plus = "runs/plus", minus = "runs/minus", coefficient = 2.0),
    peft_type = "WEIGHT_STEERING"
)]
pub struct WeightSteering {
    /// Folder of the run, or of the adapter, whose weight change is added. Required for a new
    /// adapter; a saved one contains the change.
    #[schemars(extend("format" = "path"))]
    pub plus: Option<PathBuf>,
    /// Folder of the run, or of the adapter, whose weight change is subtracted; none = only `plus`.
    #[schemars(extend("format" = "path"))]
    pub minus: Option<PathBuf>,
    /// c: factor on the change. It may be negative. A saved adapter contains it, and then has 1.
    #[default(1.0)]
    pub coefficient: f64,
    /// Linear modules to change: a list of name suffixes (`qkv_proj.q_proj` selects a part of a
    /// fused module), a regular expression that matches whole names, or `all-linear`. An empty list
    /// selects every module that `plus` or `minus` changes.
    #[default([].into())]
    pub target_modules: Targets,
    /// Blocks of the model to change, counted from 0; all by default.
    #[schemars(extend("uniqueItems" = true))]
    pub layers_to_transform: Option<Vec<usize>>,
}

impl AdapterPlugin for WeightSteering {
    fn build(self) -> Result<Box<dyn Adapter>> {
        if !self.coefficient.is_finite() {
            return Err(Error::new(format!(
                "`adapter.coefficient` must be a finite number, got {}",
                self.coefficient
            )));
        }
        if let (Some(plus), Some(minus)) = (&self.plus, &self.minus)
            && plus == minus
        {
            return Err(Error::new(format!(
                "`adapter.plus` and `adapter.minus` are both `{}`, so the weights would not change",
                plus.display()
            ))
            .hint("choose two different runs, or leave out `adapter.minus`"));
        }
        Ok(Box::new(self))
    }

    fn from_peft(json: &str) -> Result<Self> {
        let peft = PeftConfig::parse(json)?;
        Ok(Self {
            target_modules: peft.need("target_modules")?,
            layers_to_transform: peft_layers(&peft)?,
            ..Self::default()
        })
    }
}

impl Adapter for WeightSteering {
    fn sources(&self) -> Vec<AdapterSource> {
        let source = |field: &str, path: &Option<PathBuf>, required| AdapterSource {
            field: field.to_owned(),
            path: path.clone(),
            required,
        };
        vec![source("plus", &self.plus, true), source("minus", &self.minus, false)]
    }

    fn is_trainable(&self) -> bool {
        false
    }

    fn attach(&self, site: &LinearSite<'_>, _: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        let kind = if site.frozen.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        // In bf16, the rounding of the merged weights could be larger than the change.
        let base = site.frozen.to_kind(kind)?;
        let merged = |i: usize| -> Result<Option<Frozen>> {
            let source = site.sources.get(i).copied().flatten();
            source.map(|source| source.merge(&base)).transpose()
        };
        let (plus, minus) = (merged(0)?, merged(1)?);
        let [plus, minus] = [&plus, &minus].map(|merged| merged.as_ref().unwrap_or(&base));
        let change = |plus: &Tensor, minus: &Tensor| -> Result<Tensor> {
            Ok(plus.f_sub(minus)?.f_mul_scalar(self.coefficient)?.detach())
        };
        let bias = match (base.bias(), plus.bias(), minus.bias()) {
            (None, None, None) => None,
            (Some(_), Some(plus), Some(minus)) => Some(change(plus, minus)?),
            _ => {
                return Err(Error::new(format!(
                    "an adapter adds a bias to `{}` or removes it, which cannot be expressed as a \
                        change of its weights",
                    site.info.name
                )));
            }
        };
        Ok(Box::new(Change { weight: change(&plus.dense()?, &minus.dense()?)?, bias }))
    }

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn peft_config(&self) -> String {
        "{}".to_owned()
    }
}

/// The change of one module.
struct Change {
    /// c·(W⁺ − W⁻) `[out in]`.
    weight: Tensor,
    /// c·(b⁺ − b⁻) `[out]`; `None` if the module has no bias.
    bias: Option<Tensor>,
}

impl AdaptedLinear for Change {
    fn forward(&self, x: &Tensor, base: &Frozen, _: bool) -> Result<Tensor> {
        let bias = self.bias.as_ref().map(|b| b.f_to_kind(x.kind())).transpose()?;
        Ok(base.forward(x)? + x.f_linear(&self.weight.f_to_kind(x.kind())?, bias.as_ref())?)
    }

    fn parameters(&self) -> Vec<Parameter> {
        let weight = Parameter::new(WEIGHT, &self.weight).along(Axis::Output(0));
        let bias = self.bias.as_ref().map(|b| Parameter::new(BIAS, b).along(Axis::Output(0)));
        std::iter::once(weight).chain(bias).collect()
    }

    fn merge(&self, base: &Frozen) -> Result<Frozen> {
        let changed = |frozen: &Tensor, change: &Tensor| -> Result<Tensor> {
            Ok(frozen.f_to_kind(change.kind())?.f_add(change)?)
        };
        let merged = base.with_weight(changed(&base.dense()?, &self.weight)?);
        Ok(match (base.bias(), &self.bias) {
            (Some(bias), Some(change)) => merged.with_bias(&changed(bias, change)?),
            _ => merged,
        })
    }
}
