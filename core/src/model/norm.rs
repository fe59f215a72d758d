//! Normalisation layers for the residual stream and for attention heads. Their statistics are
//! computed in float32, or in float64 if the model is in float64.

use tch::{Kind, Tensor};

use super::weights::Weights;
use crate::error::Result;
use crate::ffi::fused_norm;

/// A normalisation layer over the last axis. Its output has the same shape and dtype as its input.
#[derive(Debug)]
pub enum Norm {
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
    /// Normalises `x`, of shape `[... width]`, over the last axis.
    ///
    /// # Errors
    /// Fails if shapes do not match, or if memory runs out.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let fused = match self {
            Self::Rms { weight, eps } => fused_norm(x, weight, *eps, true)?,
            Self::RmsRoundedOnce { gain, eps } => fused_norm(x, gain, *eps, false)?,
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
            Self::RmsRoundedOnce { gain, eps } => {
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
        Ok(Norm::Rms { weight: self.at(name).tensor("weight", &[width])?, eps })
    }

    /// Builds OLMo's RMS norm from the tensor `name.weight` of shape `[width]`. Unlike Llama's
    /// norm, this norm only rounds the final result.
    ///
    /// # Errors
    /// Fails if the tensor is missing or has the wrong shape.
    pub fn rms_norm_rounded_once(&self, name: &str, width: i64, eps: f64) -> Result<Norm> {
        let weight = self.at(name).tensor("weight", &[width])?;
        Ok(Norm::RmsRoundedOnce { gain: weight.f_to_kind(widened(weight.kind()))?, eps })
    }

    /// Builds Gemma's RMS norm from the tensor `name.weight` of shape `[width]`. Unlike Llama's
    /// norm, this norm multiplies by 1 + w instead of w, and only rounds the final result.
    ///
    /// # Errors
    /// Fails if the tensor is missing or has the wrong shape.
    pub fn one_plus_rms_norm(&self, name: &str, width: i64, eps: f64) -> Result<Norm> {
        let weight = self.at(name).tensor("weight", &[width])?;
        Ok(Norm::RmsRoundedOnce {
            gain: weight.f_to_kind(widened(weight.kind()))?.f_add_scalar(1.0)?,
            eps,
        })
    }

    /// Builds a layer norm from the tensors `name.weight` and `name.bias`, each of shape `[width]`.
    ///
    /// # Errors
    /// Fails if a tensor is missing or has the wrong shape.
    pub fn layer_norm(&self, name: &str, width: i64, eps: f64) -> Result<Norm> {
        let at = self.at(name);
        Ok(Norm::Layer {
            weight: at.tensor("weight", &[width])?,
            bias: at.tensor("bias", &[width])?,
            eps,
        })
    }
}
