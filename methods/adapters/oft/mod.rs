//! Orthogonal finetuning.

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::json;

use super::blocks::{cayley, quotient, rotate};
use super::{default_targets, no_multiple, peft_layers};

#[cfg(test)]
mod tests;

/// Name of the parameter in an adapter file.
const KEY: &str = "oft_R.weight";

/// Orthogonal finetuning.
#[adapter(
    name = "oft",
    aliases = &["ortho"],
    summary = "orthogonal finetuning: a trainable rotation of each block of a module's input",
    reference = "Qiu et al. 2023, Controlling Text-to-Image Diffusion by Orthogonal Finetuning, \
        §3; Qiu et al. 2025, OFTv2 (the series, and rotating the input); same files as PEFT 0.21",
    explain = "\
y = W·diag(R₀, …, R_{k−1})ᵀx + b    each row x of the input becomes x·diag(R₀, …, R_{k−1}), k = in/b
exact:                  R = (I − Q)(I + Q)⁻¹
use_cayley_neumann:     R = I + 2Q + 2Q² + … + 2Q^{t−2} + Q^{t−1}, t = num_cayley_neumann_terms, \
which rotates in the opposite direction

Q [b b] is skew-symmetric. The entries above its diagonal are trained (oft_R.weight), k·b(b − 1)/2
numbers per module. They start at 0, so the model starts unchanged. The exact form keeps the
angles between the rows of W. The series keeps them approximately while Q is small. The rotation
acts on blocks of the input, so no in×in matrix is built. Merged weight: W·diag(R)ᵀ. PEFT's
constrained form (coft) is not supported.",
    example(use_cayley_neumann = true),
    peft_type = "OFT",
    learning_rate_factor = 0.25,
)]
pub struct Oft {
    /// Number of blocks, which must divide the input width. Set it to 0 to use `oft_block_size`
    /// instead.
    pub r: u32,
    /// b: block size, which must divide the input width. Exactly one of `r` and `oft_block_size`
    /// must be 0.
    #[default(32)]
    pub oft_block_size: u32,
    /// Uses the same rotation for all blocks of a module.
    pub block_share: bool,
    /// Uses a power series instead of the exact Cayley map. The series needs no linear solve, but
    /// is only approximately orthogonal.
    #[default(true)]
    pub use_cayley_neumann: bool,
    /// Number of terms of the power series, at least 2. As in PEFT, 3 and 4 give the same series.
    #[default(5)]
    pub num_cayley_neumann_terms: u32,
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

impl AdapterPlugin for Oft {
    fn build(self) -> Result<Box<dyn Adapter>> {
        if (self.r == 0) == (self.oft_block_size == 0) {
            return Err(Error::new(format!(
                "`adapter.r` is {} and `adapter.oft_block_size` is {}, but exactly one of them \
                    must be 0",
                self.r, self.oft_block_size
            ))
            .hint("set only one of them: the other follows from the input width of each module"));
        }
        if self.use_cayley_neumann && self.num_cayley_neumann_terms < 2 {
            return Err(Error::new(format!(
                "`adapter.num_cayley_neumann_terms` must be at least 2, got {}",
                self.num_cayley_neumann_terms
            ))
            .hint("use at least 2: with fewer terms, the series is the identity"));
        }
        Ok(Box::new(self))
    }

    fn from_peft(json: &str) -> Result<Self> {
        let peft = PeftConfig::parse(json)?;
        // `module_dropout` may have any value: PEFT saves it, but does not apply it in linear
        // modules.
        peft.must_be_off(&["coft", "fan_in_fan_out"])?;
        Ok(Self {
            r: peft.need("r")?,
            oft_block_size: peft.need("oft_block_size")?,
            block_share: peft.get("block_share")?.unwrap_or(false),
            use_cayley_neumann: peft.get("use_cayley_neumann")?.unwrap_or(true),
            num_cayley_neumann_terms: peft.get("num_cayley_neumann_terms")?.unwrap_or(5),
            target_modules: peft.need("target_modules")?,
            exclude_modules: peft.get("exclude_modules")?.unwrap_or_default(),
            layers_to_transform: peft_layers(&peft)?,
        })
    }

    fn reconcile(&mut self, file: &PeftFile<'_>) -> Result<Vec<String>> {
        let version: Option<String> = PeftConfig::parse(file.json)?.get("peft_version")?;
        // With two terms, the minimum that `build` accepts, PEFT's old and new series are both I +
        // 2Q. With more terms, the series differ.
        if !self.use_cayley_neumann
            || self.num_cayley_neumann_terms <= 2
            || version.as_deref().is_some_and(has_current_series)
        {
            return Ok(Vec::new());
        }
        let by = version.map_or_else(
            || "the file has no `peft_version`, which PEFT has written since 0.18".to_owned(),
            |v| format!("the file was saved by PEFT {v}"),
        );
        let t = self.num_cayley_neumann_terms;
        let differs = if t == 3 {
            "ends with 2Q² instead of Q³"
        } else {
            "counts its last power of Q twice"
        };
        Ok(vec![format!(
            "{by}, and the Cayley-Neumann series of OFT changed in PEFT 0.18: the older series of \
                {t} terms {differs}, so the outputs can differ from those in training; the \
                adapter is read with the new series, as in PEFT; to be sure, train it again or \
                use PEFT 0.17"
        )])
    }
}

/// Returns true for PEFT 0.18 and later releases. PEFT 0.18 changed the series. Returns false if
/// the version cannot be parsed.
fn has_current_series(version: &str) -> bool {
    let release = version.split(['@', '+']).next().unwrap_or(version);
    let mut numbers = release.split('.');
    let mut next = || numbers.next().and_then(|n| n.trim().parse::<u32>().ok());
    let (Some(major), Some(minor), patch) = (next(), next(), next()) else { return false };
    if (major, minor) != (0, 18) {
        return (major, minor) > (0, 18);
    }
    // The pre-releases `0.18.0.dev0` and `0.18.0rc1` still have the older series.
    let early = patch.is_none_or(|p| p == 0)
        && release.bytes().any(|b| b.is_ascii_alphabetic())
        && !release.contains("post");
    !early
}

impl Adapter for Oft {
    fn attach(&self, site: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        let inputs = site.info.inputs;
        let (blocks, block) = if self.r == 0 {
            (
                quotient("oft_block_size", self.oft_block_size, inputs)?,
                i64::from(self.oft_block_size),
            )
        } else {
            (i64::from(self.r), quotient("r", self.r, inputs)?)
        };
        let weight =
            init.zeros(&[if self.block_share { 1 } else { blocks }, block * (block - 1) / 2]);
        let above = Tensor::ones([block, block], (Kind::Float, weight.device())).triu(1);
        Ok(Box::new(OftLinear {
            above: above.reshape([-1]).nonzero().squeeze_dim(1),
            weight,
            block,
            terms: self.use_cayley_neumann.then_some(self.num_cayley_neumann_terms),
        }))
    }

    fn accepts_coefficient(&self) -> Result<()> {
        Err(no_multiple("oft", "rotations"))
    }

    fn peft_config(&self) -> String {
        json!({
            "r": self.r,
            "oft_block_size": self.oft_block_size,
            "block_share": self.block_share,
            "use_cayley_neumann": self.use_cayley_neumann,
            "num_cayley_neumann_terms": self.num_cayley_neumann_terms,
            "module_dropout": 0.0,
            "coft": false,
            "eps": 6e-5,
            "fan_in_fan_out": false,
            "init_weights": true,
        })
        .to_string()
    }
}

/// The rotations of one module.
struct OftLinear {
    /// Entries of Q above the diagonal in row order, `[k b(b−1)/2]`. k is the number of blocks, or
    /// 1 if all blocks share one rotation.
    weight: Tensor,
    /// Block size b.
    block: i64,
    /// Indices of the entries above the diagonal in a flattened Q, `[b(b−1)/2]`, int64.
    above: Tensor,
    /// Number of terms of the power series; `None` for the exact Cayley map.
    terms: Option<u32>,
}

impl OftLinear {
    /// Returns R `[k b b]`.
    fn rotation(&self) -> Result<Tensor> {
        let (k, b) = (self.weight.size()[0], self.block);
        let options = (self.weight.kind(), self.weight.device());
        let upper = Tensor::f_zeros([k, b * b], options)?
            .f_index_copy(1, &self.above, &self.weight)?
            .f_view([k, b, b])?;
        let q = &upper - upper.f_transpose(1, 2)?;
        match self.terms {
            None => cayley(&q),
            Some(terms) => series(&q, terms),
        }
    }
}

/// Returns I + 2Q + 2Q² + … + 2Q^{t−2} + Q^{t−1}. As in PEFT, t = 2 gives I + 2Q, and t = 3 gives
/// the same series as t = 4.
fn series(q: &Tensor, terms: u32) -> Result<Tensor> {
    let mut sum = Tensor::f_eye(q.size()[1], (q.kind(), q.device()))? + q * 2.0;
    if terms > 2 {
        let mut power = q.f_bmm(q)?;
        sum += &power * 2.0;
        for _ in 3..terms - 1 {
            power = power.f_bmm(q)?;
            sum += &power * 2.0;
        }
        sum += power.f_bmm(q)?;
    }
    Ok(sum)
}

impl AdaptedLinear for OftLinear {
    fn forward(&self, x: &Tensor, base: &Frozen, _: bool) -> Result<Tensor> {
        base.forward(&rotate(x, &self.rotation()?)?)
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::new(KEY, &self.weight)]
    }

    fn merge(&self, base: &Frozen) -> Result<Frozen> {
        Ok(base.with_weight(rotate(
            &base.dense()?.to_kind(self.weight.kind()),
            &self.rotation()?.f_transpose(1, 2)?,
        )?))
    }
}
