//! Matrix shard sharing.

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::{Value, json};
use reprpo_plugin::tch;

use super::blocks::quotient;
use super::{check_dropout, default_targets, dropout, peft_layers, rank};

#[cfg(test)]
mod tests;

/// Name of the parameter in an adapter file.
const KEY: &str = "miss_block";

/// Matrix shard sharing (MiSS).
#[adapter(
    name = "miss",
    summary = "matrix shard sharing: one trainable block that is added to all blocks of a weight \
        matrix",
    reference = "Kang and Yin 2024, Balancing LoRA Performance and Efficiency with Simple Shard \
        Sharing (MiSS, earlier Bone), §3; same files as PEFT 0.21",
    explain = "\
balance: y = Wx + b + Mᵀ·Σⱼ xⱼ       xⱼ [r] are the blocks of drop(x), the last one padded with 0
mini:    the same, with the columns of M [r mini_r] repeated out/mini_r times
bat:     W'ᵢⱼ = Wᵢⱼ + Wᵢⱼ·Mᵢ + Mᵢ     Wᵢⱼ are the r×r blocks of W, and Mᵢ [r r] is that of row i

M (miss_block) is [r out], [r mini_r] or [out/r r r]. It starts at 0, so the model starts unchanged.
balance is a LoRA whose A is not trained: it sums the blocks of the input. It trains r·out numbers
per module, bat as many, and mini r·mini_r. bat builds the changed weight in each pass, and needs r
to divide both widths. Merged weight: Mᵀ added to each block of r columns of W, or W'.

When to use it: in place of LoRA if a step must be cheap, as there is one small product per module
instead of two. Evidence: the paper reports faster convergence and results above those of LoRA and
PiSSA after supervised fine-tuning of LLaMA-2-7B and similar models on arithmetic and code. It has
no results for preference data.

projgrad only projects the parameters of balance, which have one column per output. On parts of a
fused module (`qkv_proj.q_proj`), the file has one M for the whole module, which is 0 at the outputs
of other parts. mini cannot be saved like this, and bat only if the parts begin and end at multiples
of r; PEFT cannot read the file then.",
    example(variant = "bat", r = 8),
    peft_type = "MISS",
    learning_rate_factor = 1.0,
    adjustable = &["miss_dropout"],
)]
pub struct Miss {
    /// r: size of the blocks of the input, from 1 to the input width of each module. With the
    /// default, a square module has as many trained numbers as with LoRA's default; PEFT's is 64.
    #[default(32)]
    pub r: u32,
    /// How the trained block changes the weights.
    pub variant: Variant,
    /// Number of trained columns with `variant = "mini"`, a divisor of the output width of each
    /// module. The other variants ignore it.
    #[default(1)]
    pub mini_r: u32,
    /// Dropout probability of the adapter's input in training, at least 0 and less than 1. It must
    /// be 0 with `variant = "bat"`, which changes the weights and not the input.
    pub miss_dropout: f64,
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

/// The ways in which MiSS changes weights.
#[choice]
pub enum Variant {
    /// Adds the same block to all blocks of columns.
    #[default]
    Balance,
    /// Also multiplies each square block of W by the trained block of its rows.
    Bat,
    /// Like `balance`, with repeated columns of the trained block.
    Mini,
}

impl AdapterPlugin for Miss {
    fn build(self) -> Result<Box<dyn Adapter>> {
        rank(self.r)?;
        if self.mini_r == 0 {
            return Err(Error::new("`adapter.mini_r` must be at least 1, got 0"));
        }
        check_dropout("miss_dropout", self.miss_dropout)?;
        if self.variant == Variant::Bat && self.miss_dropout > 0.0 {
            return Err(Error::new(format!(
                "`adapter.miss_dropout` must be 0 with `adapter.variant = \"bat\"`, got {}",
                self.miss_dropout
            )));
        }
        Ok(Box::new(self))
    }

    fn from_peft(json: &str) -> Result<Self> {
        let peft = PeftConfig::parse(json)?;
        // Other values of this field choose the start of a new adapter and what it computes.
        let variant = match peft.get::<Value>("init_weights")? {
            None | Some(Value::Bool(_)) => Variant::Balance,
            Some(Value::String(s)) if s == "bat" => Variant::Bat,
            Some(Value::String(s)) if s == "mini" => Variant::Mini,
            Some(other) => {
                return Err(Error::new(format!(
                    "the adapter_config.json has `init_weights` = {other}, which is not supported"
                ))
                .hint("valid: true, false, \"bat\", \"mini\""));
            }
        };
        // PEFT does not apply the dropout in the variant bat.
        let dropout = peft.get("miss_dropout")?.filter(|_| variant != Variant::Bat);
        Ok(Self {
            r: peft.need("r")?,
            variant,
            mini_r: peft.get("mini_r")?.unwrap_or(1),
            miss_dropout: dropout.unwrap_or(0.0),
            target_modules: peft.need("target_modules")?,
            exclude_modules: peft.get("exclude_modules")?.unwrap_or_default(),
            layers_to_transform: peft_layers(&peft)?,
        })
    }
}

impl Adapter for Miss {
    fn attach(&self, site: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        let (inputs, outputs, r) = (site.info.inputs, site.info.outputs, rank(self.r)?);
        if r > inputs {
            return Err(Error::new(format!(
                "`adapter.r` is {r}, but the module only has {inputs} inputs"
            )));
        }
        let shape = match self.variant {
            Variant::Balance => vec![r, outputs],
            Variant::Mini => {
                quotient("mini_r", self.mini_r, outputs)?;
                vec![r, i64::from(self.mini_r)]
            }
            Variant::Bat => {
                quotient("r", self.r, inputs)?;
                vec![quotient("r", self.r, outputs)?, r, r]
            }
        };
        Ok(Box::new(MissLinear {
            block: init.zeros(&shape),
            variant: self.variant,
            outputs,
            dropout: self.miss_dropout,
        }))
    }

    // The block is 0 at the outputs of parts that are not adapted.
    fn fuse(&self, modules: &[FusedSite<'_>]) -> Result<Option<Fused>> {
        let _guard = tch::no_grad_guard();
        let r = rank(self.r)?;
        let mut fused: Vec<Box<dyn AdaptedLinear>> = Vec::new();
        for FusedSite { module, parts } in modules {
            let outputs = module.info.outputs;
            let aligned =
                |rows: &Rows| [rows.start, rows.len, rows.width].iter().all(|n| n % r == 0);
            let whole = match self.variant {
                Variant::Balance => vec![outputs, r],
                Variant::Bat if parts.iter().all(|p| aligned(&p.info.rows)) => {
                    vec![outputs / r, r, r]
                }
                Variant::Bat | Variant::Mini => return Ok(None),
            };
            let Some(first) = parts.first() else { return Ok(None) };
            let like = first.tensor(KEY)?;
            let block = Tensor::f_zeros(&whole, (like.kind(), like.device()))?;
            for part in parts {
                let (rows, own) = (part.info.rows, part.tensor(KEY)?);
                if self.variant == Variant::Bat {
                    let at = |n: i64| n / r;
                    Rows {
                        groups: rows.groups,
                        start: at(rows.start),
                        len: at(rows.len),
                        width: at(rows.width),
                    }
                    .put(&block, &own)?;
                } else {
                    rows.put(&block, &own.f_tr()?)?;
                }
            }
            let block =
                if self.variant == Variant::Bat { block } else { block.f_tr()?.f_contiguous()? };
            fused.push(Box::new(MissLinear {
                block: block.set_requires_grad(true),
                variant: self.variant,
                outputs,
                dropout: self.miss_dropout,
            }));
        }
        Ok(Some(Fused { adapter: Box::new(self.clone()), modules: fused }))
    }

    fn peft_config(&self) -> String {
        let init_weights = match self.variant {
            Variant::Balance => json!(true),
            Variant::Bat => json!("bat"),
            Variant::Mini => json!("mini"),
        };
        json!({
            "r": self.r,
            "mini_r": self.mini_r,
            "miss_dropout": self.miss_dropout,
            "init_weights": init_weights,
            "bias": "none",
        })
        .to_string()
    }
}

/// The trained block of one module.
struct MissLinear {
    /// Block M: `[r out]`, `[r mini_r]` or `[out/r r r]`.
    block: Tensor,
    variant: Variant,
    outputs: i64,
    dropout: f64,
}

impl MissLinear {
    /// Returns W' − W `[out in]` of the variant `bat` for the weights W, in the dtype of M.
    fn bat(&self, weight: &Tensor) -> Result<Tensor> {
        let r = self.block.size()[1];
        // [out/r r in/r r] → [out/r in/r r r]
        let blocks = weight
            .f_to_kind(self.block.kind())?
            .f_unflatten(0, [-1, r])?
            .f_unflatten(2, [-1, r])?
            .f_transpose(1, 2)?;
        let m = self.block.f_unsqueeze(1)?;
        let change = blocks.f_matmul(&m)? + m;
        Ok(change.f_transpose(1, 2)?.f_reshape(weight.size())?)
    }

    /// Repeats the columns of `t` `[n mini_r]`, so that there is one for each output.
    fn repeated(&self, t: Tensor) -> Result<Tensor> {
        Ok(match self.variant {
            Variant::Mini => t.f_repeat([1, self.outputs / self.block.size()[1]])?,
            Variant::Balance | Variant::Bat => t,
        })
    }
}

impl AdaptedLinear for MissLinear {
    fn forward(&self, x: &Tensor, base: &Frozen, train: bool) -> Result<Tensor> {
        let (y, kind) = (base.forward(x)?, x.kind());
        if self.variant == Variant::Bat {
            let change = self.bat(&base.dense()?)?.f_to_kind(kind)?;
            return Ok(y + x.f_linear(&change, None::<&Tensor>)?);
        }
        let (inputs, r) = (base.inputs(), self.block.size()[0]);
        let mut x = dropout(x, self.dropout, train)?;
        let padding = (r - inputs % r) % r;
        if padding > 0 {
            x = x.f_constant_pad_nd([0, padding])?;
        }
        let sums = x.f_unflatten(1, [-1, r])?.f_sum_dim_intlist([1].as_slice(), false, kind)?;
        Ok(y + self.repeated(sums.f_matmul(&self.block.f_to_kind(kind)?)?)?)
    }

    fn parameters(&self) -> Vec<Parameter> {
        let parameter = Parameter::new(KEY, &self.block);
        vec![match self.variant {
            Variant::Balance => parameter.along(Axis::Output(1)),
            Variant::Bat | Variant::Mini => parameter,
        }]
    }

    fn merge(&self, base: &Frozen) -> Result<Frozen> {
        let weight = base.dense()?;
        let change = if self.variant == Variant::Bat {
            self.bat(&weight)?
        } else {
            let (inputs, r) = (base.inputs(), self.block.size()[0]);
            let block = self.repeated(self.block.shallow_clone())?.f_tr()?;
            block.f_repeat([1, (inputs + r - 1) / r])?.f_narrow(1, 0, inputs)?
        };
        Ok(base.with_weight(weight.to_kind(change.kind()) + change))
    }
}
