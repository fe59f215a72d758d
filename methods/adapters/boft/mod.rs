//! Orthogonal finetuning through butterfly factors.

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::json;

use super::blocks::{cayley, quotient, rotate};
use super::{default_targets, no_multiple, peft_layers};

#[cfg(test)]
mod tests;

/// Name of the rotation parameter in an adapter file.
const KEY: &str = "boft_R";

/// Orthogonal finetuning through butterfly factors.
#[adapter(
    name = "boft",
    summary = "orthogonal finetuning through butterfly factors, and a trainable scale of each \
        output",
    reference = "Liu et al. 2024, Parameter-Efficient Orthogonal Finetuning via Butterfly \
        Factorization, §4; same files as PEFT 0.21",
    explain = "\
y = s ⊙ (W·(B_{m−1}⋯B₀)ᵀx) + b    each row x of the input becomes x·B_{m−1}⋯B₀
B_i = P_i·diag(R_{i,0}, …, R_{i,k−1})·P_iᵀ    R = (I − Q)(I + Q)⁻¹, Q = ½(A − Aᵀ)

P_i puts the even half blocks of every 2^i neighbouring blocks before the odd ones. Factor i then
mixes entries that are 2^i half blocks apart, and m factors mix 2^(m−1)·b entries. A [m k b b]
(boft_R) starts at 0 and s [out 1] (boft_s) at 1, so the model starts unchanged. The factors act
on blocks of the input, so no in×in matrix is built. Merged weight: s ⊙ (W·B₀ᵀ⋯B_{m−1}ᵀ).

If PEFT cannot build its CUDA extension, it trains one factor, whatever its configuration says.
Such a file, where the first size of boft_R is 1, is read with one factor and a warning.",
    example(boft_block_size = 8),
    peft_type = "BOFT",
    learning_rate_factor = 4.0
)]
pub struct Boft {
    /// b: block size, which must divide the input width. Set it to 0 to use `boft_block_num`
    /// instead.
    #[default(4)]
    pub boft_block_size: u32,
    /// k: number of blocks, which must divide the input width. Exactly one of `boft_block_size` and
    /// `boft_block_num` must be 0.
    pub boft_block_num: u32,
    /// m: number of butterfly factors, 1 to 32. If m > 1, b must be even and k must be divisible by
    /// 2^(m − 1).
    #[default(1)]
    pub boft_n_butterfly_factor: u32,
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

impl AdapterPlugin for Boft {
    fn build(self) -> Result<Box<dyn Adapter>> {
        if (self.boft_block_size == 0) == (self.boft_block_num == 0) {
            return Err(Error::new(format!(
                "`adapter.boft_block_size` is {} and `adapter.boft_block_num` is {}, but exactly \
                    one of them must be 0",
                self.boft_block_size, self.boft_block_num
            ))
            .hint("set only one of them: the other follows from the input width of each module"));
        }
        if !(1..=32).contains(&self.boft_n_butterfly_factor) {
            return Err(Error::new(format!(
                "`adapter.boft_n_butterfly_factor` must be from 1 to 32, got {}",
                self.boft_n_butterfly_factor
            )));
        }
        Ok(Box::new(self))
    }

    fn from_peft(json: &str) -> Result<Self> {
        let peft = PeftConfig::parse(json)?;
        peft.must_be_off(&["fan_in_fan_out"])?;
        Ok(Self {
            boft_block_size: peft.need("boft_block_size")?,
            boft_block_num: peft.need("boft_block_num")?,
            boft_n_butterfly_factor: peft.get("boft_n_butterfly_factor")?.unwrap_or(1),
            target_modules: peft.need("target_modules")?,
            exclude_modules: peft.get("exclude_modules")?.unwrap_or_default(),
            layers_to_transform: peft_layers(&peft)?,
        })
    }

    fn reconcile(&mut self, file: &PeftFile<'_>) -> Result<Vec<String>> {
        let configured = self.boft_n_butterfly_factor;
        let mut factors = file
            .shapes
            .iter()
            .filter(|(key, _)| key.ends_with(&format!(".{KEY}")))
            .map(|(_, shape)| shape.first().copied());
        let one = factors.next() == Some(Some(1)) && factors.all(|n| n == Some(1));
        if configured == 1 || !one {
            return Ok(Vec::new());
        }
        self.boft_n_butterfly_factor = 1;
        Ok(vec![format!(
            "`boft_n_butterfly_factor` is {configured}, but each `{KEY}` contains 1 factor: PEFT \
                only trains 1 if it cannot build its CUDA extension; the adapter is read with 1 \
                factor, as in PEFT"
        )])
    }
}

impl Adapter for Boft {
    fn attach(&self, site: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        let (inputs, factors) = (site.info.inputs, i64::from(self.boft_n_butterfly_factor));
        let (blocks, block) = if self.boft_block_num == 0 {
            (
                quotient("boft_block_size", self.boft_block_size, inputs)?,
                i64::from(self.boft_block_size),
            )
        } else {
            (
                i64::from(self.boft_block_num),
                quotient("boft_block_num", self.boft_block_num, inputs)?,
            )
        };
        if factors > 1 && (block % 2 != 0 || blocks % 2 != 0 || blocks % (1 << (factors - 1)) != 0)
        {
            return Err(Error::new(format!(
                "`adapter.boft_n_butterfly_factor` is {factors}, which \
                does not fit {blocks} blocks of {block} inputs"
            ))
            .hint(
                "use an even block size, and a number of blocks that is divisible by \
                    2^(boft_n_butterfly_factor − 1)",
            ));
        }
        Ok(Box::new(BoftLinear {
            r: init.zeros(&[factors, blocks, block, block]),
            scale: init.ones(&[site.info.outputs, 1]),
        }))
    }

    fn accepts_coefficient(&self) -> Result<()> {
        Err(no_multiple("boft", "rotations"))
    }

    fn peft_config(&self) -> String {
        json!({
            "boft_block_size": self.boft_block_size,
            "boft_block_num": self.boft_block_num,
            "boft_n_butterfly_factor": self.boft_n_butterfly_factor,
            "boft_dropout": 0.0,
            "fan_in_fan_out": false,
            "init_weights": true,
        })
        .to_string()
    }
}

/// The factors of one module.
struct BoftLinear {
    /// Parameter A `[m k b b]`.
    r: Tensor,
    /// Scale s `[out 1]`.
    scale: Tensor,
}

impl BoftLinear {
    /// Returns R `[m k b b]`.
    fn rotations(&self) -> Result<Tensor> {
        cayley(&((&self.r - self.r.f_transpose(2, 3)?) * 0.5))
    }
}

/// Permutes the columns of `x`, `[n in]`: returns x·P_i, or x·P_iᵀ if `back` is true. `b` is the
/// block size.
fn interleaved(x: &Tensor, i: i64, b: i64, back: bool) -> Result<Tensor> {
    if i == 0 {
        return Ok(x.shallow_clone());
    }
    let (halves, half) = (1 << i, b / 2);
    let shape = if back { [-1, halves, 2, half] } else { [-1, 2, halves, half] };
    Ok(x.f_unflatten(1, shape)?.f_transpose(2, 3)?.f_reshape(x.size())?)
}

/// Multiplies `x`, `[n in]`, by all butterfly factors: returns x·B_{m−1}⋯B₀. `r` contains the
/// rotations R, `[m k b b]`.
fn butterfly(x: &Tensor, r: &Tensor) -> Result<Tensor> {
    let (m, b) = (r.size()[0], r.size()[3]);
    (0..m).rev().try_fold(x.shallow_clone(), |x, i| factor(&x, &r.select(0, i), i, b))
}

/// Multiplies `x`, `[n in]`, by the butterfly factor B_i. `r` contains the factor's rotations,
/// `[k b b]`.
fn factor(x: &Tensor, r: &Tensor, i: i64, b: i64) -> Result<Tensor> {
    interleaved(&rotate(&interleaved(x, i, b, false)?, r)?, i, b, true)
}

impl AdaptedLinear for BoftLinear {
    fn forward(&self, x: &Tensor, base: &Frozen, _: bool) -> Result<Tensor> {
        let y = base.product(&butterfly(x, &self.rotations()?)?)?;
        // Multiply in the scale's dtype. Half precision would round scales near 1 to exactly 1.
        let y = (y * self.scale.f_squeeze_dim(1)?).f_to_kind(x.kind())?;
        Ok(match base.bias() {
            Some(bias) => y.f_add(bias)?,
            None => y,
        })
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![
            Parameter::new(KEY, &self.r),
            Parameter::new("boft_s", &self.scale).along(Axis::Output(0)),
        ]
    }

    fn merge(&self, base: &Frozen) -> Result<Frozen> {
        // The merged weight is s ⊙ (W·B₀ᵀ⋯B_{m−1}ᵀ). With transposed rotations, `factor` multiplies
        // by B_iᵀ.
        let (r, b) = (self.rotations()?.f_transpose(2, 3)?, self.r.size()[3]);
        let weight = (0..r.size()[0])
            .try_fold(base.dense()?.to_kind(r.kind()), |w, i| factor(&w, &r.select(0, i), i, b))?;
        Ok(base.with_weight(weight * &self.scale))
    }
}
