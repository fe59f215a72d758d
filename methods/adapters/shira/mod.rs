//! Sparse high-rank adaptation.

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::json;
use reprpo_plugin::tch::{self, Device};

use super::{default_targets, peft_layers, rank};

#[cfg(test)]
mod tests;

/// Names of the tensors in an adapter file.
const WEIGHT: &str = "shira_weight";
const INDICES: &str = "shira_indices";

/// Sparse high-rank adaptation.
#[adapter(
    name = "shira",
    summary = "sparse high-rank adaptation: trains some entries of each frozen weight matrix",
    reference = "Bhardwaj et al. 2024, Sparse High Rank Adapters, §3 (the random mask, \
        SHiRA-Rand); same files as PEFT 0.21",
    explain = "\
y = (W + S)x + b    S [out in] has n = r(in + out) trained entries, and is 0 elsewhere

The places of the entries are drawn at random from train.seed and the name of the module, and stay
the same. The values (shira_weight [n]) start at 0, so the model starts unchanged. n is the number
of parameters of LoRA with the same r, but the rank of S is not limited. The places are saved with
the values, as rows and columns (shira_indices [2 n]). Merged weight: W + S.

When to use it: to change few weights, so that adapters can be exchanged in place or added with
little overlap. r = 8 trains 0.8 % of the entries of a square matrix of size 2048. A step costs one
more product of full size per module, and a dense S in memory. Evidence: the paper reports up to
2.7 points more accuracy than LoRA on commonsense reasoning with LLaMA-7B with 1 to 2 % of the
weights trained, and less interference between added adapters. Its best results choose the places
by the size of the weights or gradients, not at random. It has no results for preference data.

The entries do not lie along an axis of the module, so projgrad does not change their gradient.
Adapters on parts of a fused module are saved under the names of the parts, which PEFT cannot read:
there, the number of entries follows from r and the widths of the whole module.",
    example(r = 4),
    peft_type = "SHIRA",
    learning_rate_factor = 1.0,
    peft_has_layers = false
)]
pub struct Shira {
    /// r: r(in + out) entries are trained per module, at least 1 and at most all of them. PEFT's
    /// default is 32, with which more than 20 % of a small model's entries are trained.
    #[default(8)]
    pub r: u32,
    /// Linear modules to adapt: a list of name suffixes (`qkv_proj.q_proj` selects a part of a
    /// fused module), a regular expression that matches whole names, or `all-linear`.
    #[default(default_targets())]
    pub target_modules: Targets,
    /// Blocks of the model to adapt, counted from 0; all by default. PEFT's SHiRA does not have
    /// this field, so a saved adapter lists its modules by name.
    #[schemars(extend("uniqueItems" = true))]
    pub layers_to_transform: Option<Vec<usize>>,
}

impl AdapterPlugin for Shira {
    fn build(self) -> Result<Box<dyn Adapter>> {
        rank(self.r)?;
        Ok(Box::new(self))
    }

    fn from_peft(json: &str) -> Result<Self> {
        let peft = PeftConfig::parse(json)?;
        // `mask_type` and `random_seed` may have any value: they only choose the places, which are
        // in the file.
        Ok(Self {
            r: peft.need("r")?,
            target_modules: peft.need("target_modules")?,
            layers_to_transform: peft_layers(&peft)?,
        })
    }
}

impl Adapter for Shira {
    fn attach(&self, site: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        let (inputs, outputs, r) = (site.info.inputs, site.info.outputs, rank(self.r)?);
        let (count, all) = (r * (inputs + outputs), inputs * outputs);
        if count > all {
            return Err(Error::new(format!(
                "`adapter.r` is {r}, so r(in + out) = {count} entries would be trained, but the \
                    module only has {all}"
            ))
            .hint(match all / (inputs + outputs) {
                0 => "remove the module from `adapter.target_modules`".to_owned(),
                most => format!("the largest valid value for this module is {most}"),
            }));
        }
        let weight = init.zeros(&[count]);
        let indices = places(init, count, inputs, outputs)?.to_device(weight.device());
        Ok(Box::new(ShiraLinear { weight, indices, inputs, outputs }))
    }

    fn peft_config(&self) -> String {
        json!({
            "r": self.r,
            "mask_type": "random",
            "random_seed": null,
            "fan_in_fan_out": false,
            "init_weights": true,
        })
        .to_string()
    }
}

/// Draws `count` different places of a matrix `[outputs inputs]`. Returns their rows and columns,
/// int32 `[2 count]`, in the order of the rows and, within a row, of the columns.
fn places(init: &mut Init, count: i64, inputs: i64, outputs: i64) -> Result<Tensor> {
    let _guard = tch::no_grad_guard();
    // The places of the largest of independent random numbers are a uniform sample without
    // repetitions. They are found on the CPU, so that they do not depend on the device.
    let keys = init.uniform(INDICES, &[outputs * inputs], 1.0).f_to_device(Device::Cpu)?;
    let (_, chosen) = keys.f_topk(count, 0, true, false)?;
    let (flat, _) = chosen.f_sort(0, false)?;
    let rows = flat.f_floor_divide_scalar(inputs)?;
    Ok(Tensor::f_stack(&[&rows, &(&flat - &rows * inputs)], 0)?.f_to_kind(Kind::Int)?)
}

/// The sparse change of one module.
struct ShiraLinear {
    /// Values of the trained entries `[n]`.
    weight: Tensor,
    /// Rows and columns of the trained entries, int32 `[2 n]`.
    indices: Tensor,
    inputs: i64,
    outputs: i64,
}

impl ShiraLinear {
    /// Returns S `[out in]`. As in PEFT, values at equal places are added up.
    fn dense(&self) -> Result<Tensor> {
        let places = self.indices.f_to_kind(Kind::Int64)?;
        let zeros = self
            .weight
            .f_new_zeros([self.outputs, self.inputs], (self.weight.kind(), self.weight.device()))?;
        let at = [Some(places.f_get(0)?), Some(places.f_get(1)?)];
        Ok(zeros.f_index_put(&at, &self.weight, true)?)
    }
}

impl AdaptedLinear for ShiraLinear {
    // A separate product with S keeps small changes, which would be rounded away in W + S if the
    // model is in half precision.
    fn forward(&self, x: &Tensor, base: &Frozen, _: bool) -> Result<Tensor> {
        let change = x.f_linear(&self.dense()?.f_to_kind(x.kind())?, None::<&Tensor>)?;
        Ok(base.forward(x)? + change)
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::new(WEIGHT, &self.weight), Parameter::new(INDICES, &self.indices)]
    }

    fn validate(&self) -> Result<()> {
        for (i, name, size) in [(0, "row", self.outputs), (1, "column", self.inputs)] {
            let places = self.indices.f_get(i)?;
            for bound in [places.f_min()?, places.f_max()?] {
                let place = bound.f_int64_value(&[])?;
                if !(0..size).contains(&place) {
                    return Err(Error::new(format!(
                        "`{INDICES}` contains the {name} {place}, but the module only has {name}s \
                            0 to {}",
                        size - 1
                    )));
                }
            }
        }
        Ok(())
    }

    fn merge(&self, base: &Frozen) -> Result<Frozen> {
        Ok(base.with_weight(base.dense()?.to_kind(self.weight.kind()) + self.dense()?))
    }
}
