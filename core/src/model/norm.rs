//! Normalisation layers for the residual stream and for attention heads. Their statistics are
//! computed in float32, or in float64 if the model is in float64.

use tch::{Kind, Tensor};

use super::replacements::ReplacedModule;
use super::weights::Weights;
use crate::error::Result;
use crate::ffi::fused_norm;

/// A normalisation layer over the last axis. Its output has the same shape and dtype as its input.
#[derive(Debug)]
pub struct Norm {
    /// The name of the module in PyTorch's state dict.
    name: String,
    formula: Formula,
}

/// What a normalisation layer computes.
#[derive(Debug)]
enum Formula {
    /// w ⊙ x / √(mean(x²) + ε) (Zhang and Sennrich 2019). The quotient is rounded to the dtype of x
    /// before it is multiplied by w, as in Llama.
    Rms {
        /// w `[width]`.
        weight: Tensor,
        /// ε.
        eps: f64,
    },
    /// g ⊙ x / √(mean(x²) + ε). Only the final result is rounded to the dtype of x.
    RmsRoundedOnce {
        /// The gain g, of shape `[width]`, in float32 or float64.
        gain: Tensor,
        /// The difference between g and the module's weight: 1 for Gemma, else 0.
        offset: f64,
        /// ε.
        eps: f64,
    },
    /// w ⊙ (x − mean(x)) / √(var(x) + ε) + b (Ba et al. 2016).
    Layer {
        /// w `[width]`.
        weight: Tensor,
        /// b `[width]`.
        bias: Tensor,
        /// ε.
        eps: f64,
    },
}

impl Norm {
    /// The name of the module in PyTorch's state dict.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Normalises `x`, of shape `[... width]`, over the last axis. `replaced` has tensors that are
    /// used instead of the norm's own.
    ///
    /// # Errors
    /// Fails if shapes do not match, or if memory runs out.
    pub fn forward(&self, x: &Tensor, replaced: Option<&ReplacedModule>) -> Result<Tensor> {
        match replaced {
            Some(replaced) => self.formula.with(replaced)?.forward(x),
            None => self.formula.forward(x),
        }
    }
}

impl Formula {
    /// Returns the formula with other weights and biases.
    fn with(&self, replaced: &ReplacedModule) -> Result<Self> {
        let or = |new: &Option<Tensor>, own: &Tensor| new.as_ref().unwrap_or(own).shallow_clone();
        Ok(match self {
            Self::Rms { weight, eps } => {
                Self::Rms { weight: or(&replaced.weight, weight), eps: *eps }
            }
            Self::RmsRoundedOnce { gain, offset, eps } => match &replaced.weight {
                Some(weight) => Self::rounded_once(weight, *offset, *eps)?,
                None => {
                    Self::RmsRoundedOnce { gain: gain.shallow_clone(), offset: *offset, eps: *eps }
                }
            },
            Self::Layer { weight, bias, eps } => Self::Layer {
                weight: or(&replaced.weight, weight),
                bias: or(&replaced.bias, bias),
                eps: *eps,
            },
        })
    }

    fn rounded_once(weight: &Tensor, offset: f64, eps: f64) -> Result<Self> {
        let gain = weight.f_to_kind(widened(weight.kind()))?;
        let gain = if offset == 0.0 { gain } else { gain.f_add_scalar(offset)? };
        Ok(Self::RmsRoundedOnce { gain, offset, eps })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let fused = match self {
            Self::Rms { weight, eps } => fused_norm(x, weight, *eps, true)?,
            Self::RmsRoundedOnce { gain, eps, .. } => fused_norm(x, gain, *eps, false)?,
            Self::Layer { .. } => None,
        };
        fused.map_or_else(|| self.plain(x), Ok)
    }

    /// Computes the norm with libtorch's operations.
    fn plain(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Rms { weight, eps } => {
                scaled_to_one(x, *eps)?.f_to_kind(x.kind())?.f_mul(weight)?
            }
            Self::RmsRoundedOnce { gain, eps, .. } => {
                scaled_to_one(x, *eps)?.f_mul(gain)?.f_to_kind(x.kind())?
            }
            Self::Layer { weight, bias, eps } => {
                x.f_layer_norm(weight.size(), Some(weight), Some(bias), *eps, true)?
            }
        })
    }
}

/// Returns x / √(mean(x²) + ε) in float32, or in float64 if x is float64.
fn scaled_to_one(x: &Tensor, eps: f64) -> Result<Tensor> {
    let wide = x.f_to_kind(widened(x.kind()))?;
    let scale =
        wide.f_square()?.f_mean_dim(-1, true, None::<Kind>)?.f_add_scalar(eps)?.f_rsqrt()?;
    Ok(wide.f_mul(&scale)?)
}

fn widened(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

impl Weights<'_> {
    /// Builds Llama's RMS norm from the tensor `name.weight` of shape `[width]`.
    ///
    /// # Errors
    /// Fails if the tensor is missing or has the wrong shape.
    pub fn rms_norm(&self, name: &str, width: i64, eps: f64) -> Result<Norm> {
        let weight = self.at(name).tensor("weight", &[width])?;
        Ok(self.norm(name, Formula::Rms { weight, eps }))
    }

    /// Builds OLMo's RMS norm from the tensor `name.weight` of shape `[width]`. Unlike Llama's
    /// norm, this norm only rounds the final result.
    ///
    /// # Errors
    /// Fails if the tensor is missing or has the wrong shape.
    pub fn rms_norm_rounded_once(&self, name: &str, width: i64, eps: f64) -> Result<Norm> {
        let weight = self.at(name).tensor("weight", &[width])?;
        Ok(self.norm(name, Formula::rounded_once(&weight, 0.0, eps)?))
    }

    /// Builds Gemma's RMS norm from the tensor `name.weight` of shape `[width]`. Unlike Llama's
    /// norm, this norm multiplies by 1 + w instead of w, and only rounds the final result.
    ///
    /// # Errors
    /// Fails if the tensor is missing or has the wrong shape.
    pub fn one_plus_rms_norm(&self, name: &str, width: i64, eps: f64) -> Result<Norm> {
        let weight = self.at(name).tensor("weight", &[width])?;
        Ok(self.norm(name, Formula::rounded_once(&weight, 1.0, eps)?))
    }

    /// Builds a layer norm from the tensors `name.weight` and `name.bias`, each of shape `[width]`.
    ///
    /// # Errors
    /// Fails if a tensor is missing or has the wrong shape.
    pub fn layer_norm(&self, name: &str, width: i64, eps: f64) -> Result<Norm> {
        let at = self.at(name);
        let (weight, bias) = (at.tensor("weight", &[width])?, at.tensor("bias", &[width])?);
        Ok(self.norm(name, Formula::Layer { weight, bias, eps }))
    }

    fn norm(&self, name: &str, formula: Formula) -> Norm {
        Norm { name: self.name(name), formula }
    }
}
