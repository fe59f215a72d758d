//! Low-rank linear subspace representation finetuning.

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::json;

use super::rank;

#[cfg(test)]
mod tests;

/// Low-rank linear subspace representation finetuning.
#[adapter(
    name = "loreft",
    summary = "LoReFT: a trainable edit of the residual stream, in a subspace of rank r, at \
        chosen blocks and tokens",
    reference = "Wu et al. 2024, ReFT: Representation Finetuning for Language Models, §3.2, eq. \
        2; positions in the notation of pyreft",
    explain = "\
h ← h + (Wh + b − hRᵀ)R    for the output h of each chosen block, at the chosen tokens; R [r \
hidden] has orthonormal rows

In the subspace spanned by the rows of R, the state is replaced by Wh + b; the part orthogonal to
it stays. R is computed by Gram–Schmidt from the rows of a free matrix (loreft_R [r hidden]), so
that its rows stay orthonormal in training. loreft_W starts equal to R and loreft_b at 0, so the
model starts unchanged (in pyreft, W starts at random, which changes the model). The adapter
trains r(2·hidden + 1) numbers per block. No frozen weight has the same effect, so the adapter
cannot be merged. The keys of the file, under blocks.<block>, and peft_type LOREFT are specific to
this project: PEFT cannot read them.

Positions count the tokens of a prompt. A prompt with fewer than N tokens is edited at all of
them, and no token is edited twice.",
    example(layers = "-2,-1", positions = "all"),
    peft_type = "LOREFT",
    learning_rate_factor = 4.0
)]
pub struct LoReft {
    /// r: dimension of the edited subspace, from 1 to the width of the residual stream.
    #[default(4)]
    pub r: u32,
    /// Blocks whose output is edited, e.g. `10,20`, `-2,-1`, `0.33,0.66`, `range(.3,-2)` or
    /// `range(.3,.9,2)`; 0 is the first block.
    #[default("0.33,0.66")]
    pub layers: Layers,
    /// Tokens to edit: `fN` for the first N of each prompt, `lN` for the last N, `fN+lN` for both,
    /// or `all` for every token, including completions.
    #[default("f4+l4")]
    pub positions: String,
}

impl AdapterPlugin for LoReft {
    fn build(self) -> Result<Box<dyn Adapter>> {
        rank(self.r)?;
        Positions::parse(&self.positions)?;
        Ok(Box::new(self))
    }

    fn from_peft(json: &str) -> Result<Self> {
        let peft = PeftConfig::parse(json)?;
        let changed: Option<Vec<usize>> = peft.get("layers_to_transform")?;
        let layers = match changed {
            Some(blocks) => {
                Layers(blocks.iter().map(usize::to_string).collect::<Vec<_>>().join(","))
            }
            None => peft.need("layers")?,
        };
        Ok(Self { r: peft.need("r")?, layers, positions: peft.need("positions")? })
    }
}

/// The adapter edits the output of blocks, so it has no target modules.
impl TargetModules for LoReft {}

impl Adapter for LoReft {
    fn attach(&self, site: &LinearSite<'_>, _: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        Err(Error::internal(format!(
            "`loreft` edits blocks, and cannot be attached to the linear module `{}`",
            site.info.name
        )))
    }

    fn blocks(&self, model: &ModelInfo) -> Result<Vec<usize>> {
        self.layers.resolve(model.layers)
    }

    fn attach_block(
        &self,
        _: usize,
        model: &ModelInfo,
        init: &mut Init,
    ) -> Result<Box<dyn AdaptedResidual>> {
        let (r, hidden) = (rank(self.r)?, model.hidden);
        if r > hidden {
            return Err(Error::new(format!(
                "`adapter.r` must be at most the width of the residual stream, {hidden}, got {r}"
            )));
        }
        // Start with orthonormal rows, so that the matrix is as far from singular as possible.
        let r = orthonormal(&init.normal("loreft_R", &[r, hidden], 1.0))?.detach();
        Ok(Box::new(Edit {
            w: r.copy().set_requires_grad(true),
            b: init.zeros(&[r.size()[0]]),
            r: r.set_requires_grad(true),
            positions: Positions::parse(&self.positions)?,
        }))
    }

    fn peft_config(&self) -> String {
        json!({ "r": self.r, "layers": self.layers, "positions": self.positions }).to_string()
    }
}

/// Tokens to edit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Positions {
    /// Every token, including completions.
    All,
    /// The first `first` and the last `last` tokens of each prompt.
    Ends { first: i64, last: i64 },
}

impl Positions {
    fn parse(text: &str) -> Result<Self> {
        let malformed = || {
            Error::new(format!("`{text}` is not a valid value of `adapter.positions`")).hint(
                "write `all`, or `f4` for the first 4 tokens of each prompt, `l4` for the \
                    last 4, `f4+l4` for both",
            )
        };
        if text.trim() == "all" {
            return Ok(Self::All);
        }
        let (mut first, mut last) = (None, None);
        for part in text.split('+').map(str::trim) {
            let (end, count) = match part.split_at_checked(1) {
                Some(("f", count)) => (&mut first, count),
                Some(("l", count)) => (&mut last, count),
                _ => return Err(malformed()),
            };
            let count = count.parse::<u32>().ok().filter(|n| *n > 0).ok_or_else(malformed)?;
            if end.replace(i64::from(count)).is_some() {
                return Err(malformed());
            }
        }
        Ok(Self::Ends { first: first.unwrap_or(0), last: last.unwrap_or(0) })
    }

    /// Returns a bool mask `[n]` of the rows to edit, or `None` if all rows are edited.
    fn of(self, places: &PromptPlaces) -> Result<Option<Tensor>> {
        let Self::Ends { first, last } = self else { return Ok(None) };
        let among = |distance: &Tensor, count: i64| -> Result<Tensor> {
            Ok(distance.f_ge(0)?.f_logical_and(&distance.f_lt(count)?)?)
        };
        Ok(Some(among(&places.from_start, first)?.f_logical_or(&among(&places.from_end, last)?)?))
    }
}

/// Computes R by orthonormalising the rows of `v` with the Gram–Schmidt process. Both matrices are
/// `[r h]`.
fn orthonormal(v: &Tensor) -> Result<Tensor> {
    let (q, t) = Tensor::f_linalg_qr(&v.tr(), "reduced")?;
    // A small change of v can flip the sign of a row from QR. Gram–Schmidt makes the diagonal of
    // `t` positive, so that R is a smooth function of v.
    let signs = t.f_detach()?.f_diagonal(0, 0, 1)?.f_sign()?;
    Ok((q * signs).tr())
}

/// Edits the output of one block.
struct Edit {
    /// Unconstrained matrix from which R is computed, `[r h]`.
    r: Tensor,
    /// Matrix W `[r h]`.
    w: Tensor,
    /// Bias b `[r]`.
    b: Tensor,
    positions: Positions,
}

impl AdaptedResidual for Edit {
    fn forward(&self, h: &Tensor, places: &PromptPlaces) -> Result<Tensor> {
        let kind = h.kind();
        let r = orthonormal(&self.r)?;
        // hWᵀ + b − hRᵀ = h(W − R)ᵀ + b. W − R is computed before the cast, because rounding W and
        // R to a lower precision first would lose their difference.
        let change = h.f_linear(&(&self.w - &r).f_to_kind(kind)?, Some(&self.b.to_kind(kind)))?;
        let change = match self.positions.of(places)? {
            Some(chosen) => change * chosen.f_unsqueeze(1)?.f_to_kind(kind)?,
            None => change,
        };
        Ok(h + change.f_matmul(&r.f_to_kind(kind)?)?)
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![
            // Axis 1 of R is an output axis, because the edit adds a combination of the rows of R
            // to the state. Axis 1 of W is an input axis, because the state is multiplied by the
            // rows of W.
            Parameter::new("loreft_R", &self.r).along(Axis::Output(1)),
            Parameter::new("loreft_W", &self.w).along(Axis::Input(1)),
            Parameter::new("loreft_b", &self.b),
        ]
    }
}
