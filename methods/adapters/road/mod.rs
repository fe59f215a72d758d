//! 2D rotary adaptation.

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::json;
use reprpo_plugin::tch;

use super::blocks::quotient;
use super::{default_targets, peft_layers};

#[cfg(test)]
mod tests;

/// Names of the tensors in an adapter file.
const THETA: &str = "road_theta";
const ALPHA: &str = "road_alpha";

/// 2D rotary adaptation (RoAd).
#[adapter(
    name = "road",
    summary = "2D rotary adaptation: rotates and scales pairs of a module's outputs",
    reference = "Liao and Monz 2024, 3-in-1: 2D Rotary Adaptation for Efficient Finetuning, \
        Efficient Batching and Composability, eq. 3 and 4; same files as PEFT 0.21",
    explain = "\
y = R(Wx + b)    R(u₁, u₂) = (c₁ ⊙ u₁ − c₂ ⊙ u₂, c₁' ⊙ u₂ + c₂' ⊙ u₁)
c₁ = α cos θ, c₂ = α sin θ, and c₁', c₂' likewise

u₁ and u₂ are the two halves of a group of group_size outputs, so output j of a group is paired
with output j + group_size/2. The variants differ in what is trained (road_theta, road_alpha):
road_1: one θ and one α for each pair, so c₁ = c₁' and c₂ = c₂'; out/2 of each per module
road_2: one θ and one α for each output, so c₁ and c₂ of a pair differ from c₁' and c₂'; out of each
road_4: separate θ and α for c₁ and c₂ of each output; 2·out of each
θ starts at 0 and α at 1, so the model starts unchanged. Merged: RW and Rb.

When to use it: for adapters of few numbers (road_1 has as many as ia3) that can also turn pairs of
outputs. Evidence: the paper reports results at or above those of LoRA on GLUE, commonsense
reasoning and arithmetic with less than 0.1 % of the parameters, and twice LoRA's throughput when
the requests of a batch use different adapters. It has no results for preference data.

projgrad only projects the parameters of road_2, which have one entry per output; those of road_1
and road_4 keep their gradient. On parts of a fused module (`qkv_proj.v_proj`), the file has θ and α
for the whole module, with θ = 0 and α = 1 at the outputs of other parts, if the parts begin and end
at multiples of group_size.",
    example(variant = "road_2"),
    peft_type = "ROAD",
    learning_rate_factor = 10.0,
    peft_has_layers = false
)]
pub struct Road {
    /// What is trained for each pair of outputs.
    pub variant: Variant,
    /// Number of outputs in a group, an even number that divides the output width of each module.
    /// It only decides which outputs form a pair. PEFT's default, 64, does not divide all widths.
    #[default(16)]
    pub group_size: u32,
    /// Linear modules to adapt: a list of name suffixes (`qkv_proj.q_proj` selects a part of a
    /// fused module), a regular expression that matches whole names, or `all-linear`.
    #[default(default_targets())]
    pub target_modules: Targets,
    /// Blocks of the model to adapt, counted from 0; all by default. PEFT's RoAd does not have this
    /// field, so a saved adapter lists its modules by name.
    #[schemars(extend("uniqueItems" = true))]
    pub layers_to_transform: Option<Vec<usize>>,
}

/// The parameters that RoAd trains for each pair of outputs.
#[choice]
pub enum Variant {
    /// One angle and one scale for each pair.
    #[default]
    #[serde(rename = "road_1")]
    Road1,
    /// One angle and one scale for each output.
    #[serde(rename = "road_2")]
    Road2,
    /// Two angles and two scales for each output.
    #[serde(rename = "road_4")]
    Road4,
}

impl Variant {
    /// The number of entries of θ and of α is `outputs` times the first number, divided by the
    /// second.
    fn ratio(self) -> (i64, i64) {
        match self {
            Self::Road1 => (1, 2),
            Self::Road2 => (1, 1),
            Self::Road4 => (2, 1),
        }
    }

    /// Returns the number of entries of θ that belong to `outputs` outputs. `outputs` must be even.
    fn entries(self, outputs: i64) -> i64 {
        let (times, per) = self.ratio();
        outputs * times / per
    }
}

impl AdapterPlugin for Road {
    fn build(self) -> Result<Box<dyn Adapter>> {
        if self.group_size == 0 || !self.group_size.is_multiple_of(2) {
            return Err(Error::new(format!(
                "`adapter.group_size` must be an even number greater than 0, got {}",
                self.group_size
            )));
        }
        Ok(Box::new(self))
    }

    fn from_peft(json: &str) -> Result<Self> {
        let peft = PeftConfig::parse(json)?;
        Ok(Self {
            variant: peft.get("variant")?.unwrap_or(Variant::Road1),
            group_size: peft.get("group_size")?.unwrap_or(64),
            target_modules: peft.need("target_modules")?,
            layers_to_transform: peft_layers(&peft)?,
        })
    }
}

impl Adapter for Road {
    fn attach(&self, site: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        let outputs = site.info.outputs;
        quotient("group_size", self.group_size, outputs)?;
        let entries = self.variant.entries(outputs);
        Ok(Box::new(RoadLinear {
            theta: init.zeros(&[entries]),
            alpha: init.ones(&[entries]),
            variant: self.variant,
            group_size: i64::from(self.group_size),
        }))
    }

    // At outputs of parts that are not adapted, θ is 0 and α is 1. The groups of a part must also
    // be groups of the whole module.
    fn fuse(&self, modules: &[FusedSite<'_>]) -> Result<Option<Fused>> {
        let _guard = tch::no_grad_guard();
        let group_size = i64::from(self.group_size);
        let mut fused: Vec<Box<dyn AdaptedLinear>> = Vec::new();
        for FusedSite { module, parts } in modules {
            let aligned = |rows: &Rows| {
                [rows.start, rows.len, rows.width].iter().all(|n| n % group_size == 0)
            };
            let Some(first) = parts.first().filter(|_| parts.iter().all(|p| aligned(&p.info.rows)))
            else {
                return Ok(None);
            };
            let like = first.tensor(THETA)?;
            let options = (like.kind(), like.device());
            let entries = self.variant.entries(module.info.outputs);
            let theta = Tensor::f_zeros([entries], options)?;
            let alpha = Tensor::f_ones([entries], options)?;
            for part in parts {
                let rows = part.info.rows;
                let at = Rows {
                    groups: rows.groups,
                    start: self.variant.entries(rows.start),
                    len: self.variant.entries(rows.len),
                    width: self.variant.entries(rows.width),
                };
                at.put(&theta, &part.tensor(THETA)?)?;
                at.put(&alpha, &part.tensor(ALPHA)?)?;
            }
            fused.push(Box::new(RoadLinear {
                theta: theta.set_requires_grad(true),
                alpha: alpha.set_requires_grad(true),
                variant: self.variant,
                group_size,
            }));
        }
        Ok(Some(Fused { adapter: Box::new(self.clone()), modules: fused }))
    }

    fn peft_config(&self) -> String {
        json!({ "variant": self.variant, "group_size": self.group_size, "init_weights": true })
            .to_string()
    }
}

/// The rotations of one module.
struct RoadLinear {
    /// Angles θ, in radians; the variant determines their number.
    theta: Tensor,
    /// Scales α, as many as θ.
    alpha: Tensor,
    variant: Variant,
    group_size: i64,
}

impl RoadLinear {
    /// Returns c₁ and c₂ for each output, `[groups 2 group_size/2]`. For `road_1`, the middle
    /// dimension has the size 1.
    fn factors(&self) -> Result<(Tensor, Tensor)> {
        let half = self.group_size / 2;
        let grouped = |t: &Tensor| match self.variant {
            Variant::Road1 => t.f_view([-1, 1, 1, half]),
            Variant::Road2 => t.f_view([-1, 1, 2, half]),
            Variant::Road4 => t.f_view([-1, 2, 2, half]),
        };
        let (theta, alpha) = (grouped(&self.theta)?, grouped(&self.alpha)?);
        let last = theta.size()[1] - 1;
        let of = |t: &Tensor, i: i64| t.f_select(1, i);
        Ok((
            of(&alpha, 0)? * of(&theta, 0)?.f_cos()?,
            of(&alpha, last)? * of(&theta, last)?.f_sin()?,
        ))
    }

    /// Returns R u for each row u of `rows`, `[n out]`, in the dtype of the parameters.
    fn rotate(&self, rows: &Tensor) -> Result<Tensor> {
        let (c1, c2) = self.factors()?;
        let u = rows.f_to_kind(c1.kind())?.f_unflatten(1, [-1, 2, self.group_size / 2])?;
        let (first, second) = (u.f_select(2, 0)?, u.f_select(2, 1)?);
        let turned = Tensor::f_stack(&[&-second, &first], 2)?;
        Ok((u * c1 + turned * c2).f_flatten(1, 3)?)
    }
}

impl AdaptedLinear for RoadLinear {
    // Compute in the dtype of the parameters: half precision would round away small rotations.
    fn forward(&self, x: &Tensor, base: &Frozen, _: bool) -> Result<Tensor> {
        Ok(self.rotate(&base.forward(x)?)?.f_to_kind(x.kind())?)
    }

    fn parameters(&self) -> Vec<Parameter> {
        [(THETA, &self.theta), (ALPHA, &self.alpha)]
            .map(|(key, tensor)| {
                let parameter = Parameter::new(key, tensor);
                match self.variant {
                    Variant::Road2 => parameter.along(Axis::Output(0)),
                    Variant::Road1 | Variant::Road4 => parameter,
                }
            })
            .into()
    }

    fn merge(&self, base: &Frozen) -> Result<Frozen> {
        let merged = base.with_weight(self.rotate(&base.dense()?.f_tr()?)?.f_tr()?.f_contiguous()?);
        Ok(match base.bias() {
            Some(bias) => merged.with_bias(&self.rotate(&bias.f_unsqueeze(0)?)?.f_squeeze_dim(0)?),
            None => merged,
        })
    }
}
