//! Rotary position embeddings, as transformers computes them.
//!
//! Reference: Su et al. 2021 (RoFormer) §3.4; the llama3 scaling is that of Llama 3.1.

use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::error::{Error, Result};

/// `rope_parameters` of a Hugging Face configuration (`rope_scaling` and `rope_theta` in older ones).
#[derive(Clone, Debug, Deserialize)]
pub struct RopeParameters {
    /// Base of the frequencies.
    pub rope_theta: Option<f64>,
    /// `default`, `linear` or `llama3`.
    #[serde(alias = "type")]
    pub rope_type: Option<String>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

/// The angles' frequencies of one model.
#[derive(Debug)]
pub struct Rope {
    inverse_frequencies: Vec<f64>,
}

impl Rope {
    /// Frequencies for heads of `dim` numbers.
    ///
    /// # Errors
    /// A type that is not known, or one whose factors are missing.
    pub fn new(dim: i64, theta: f64, parameters: Option<&RopeParameters>) -> Result<Self> {
        // transformers computes the powers in float32; taking the same road keeps long positions in step.
        let plain: Vec<f64> = (0..dim / 2).map(|i| f64::from(1.0f32 / (theta as f32).powf((2 * i) as f32 / dim as f32))).collect();
        let kind = parameters.and_then(|p| p.rope_type.as_deref()).unwrap_or("default");
        let need = |value: Option<f64>, field: &str| {
            value.ok_or_else(|| Error::new(format!("rope type `{kind}` needs `{field}`, which the model's config.json does not give")))
        };
        let inverse_frequencies = match (kind, parameters) {
            ("default", _) | (_, None) => plain,
            ("linear", Some(p)) => {
                let factor = need(p.factor, "factor")?;
                plain.into_iter().map(|f| f / factor).collect()
            }
            ("llama3", Some(p)) => {
                let factor = need(p.factor, "factor")?;
                let low = need(p.low_freq_factor, "low_freq_factor")?;
                let high = need(p.high_freq_factor, "high_freq_factor")?;
                let context = need(p.original_max_position_embeddings, "original_max_position_embeddings")?;
                plain
                    .into_iter()
                    .map(|f| {
                        let wavelength = std::f64::consts::TAU / f;
                        if wavelength < context / high {
                            f
                        } else if wavelength > context / low {
                            f / factor
                        } else {
                            let smooth = (context / wavelength - low) / (high - low);
                            (1.0 - smooth) * f / factor + smooth * f
                        }
                    })
                    .collect()
            }
            (other, _) => return Err(Error::unknown("rope type", other, ["default", "linear", "llama3"])),
        };
        Ok(Self { inverse_frequencies })
    }

    /// cos and sin of every position `[n]`, each `[n 1 dim]` in `kind`; the angles are float32 as in transformers
    /// (float64 in a float64 model).
    ///
    /// # Errors
    /// Where the device runs out of memory.
    pub fn tables(&self, positions: &Tensor, kind: Kind) -> Result<(Tensor, Tensor)> {
        let wide = if kind == Kind::Double { Kind::Double } else { Kind::Float };
        let frequencies = Tensor::from_slice(&self.inverse_frequencies).f_to_kind(wide)?.f_to_device(positions.device())?;
        let angles = positions.f_to_kind(wide)?.f_outer(&frequencies)?;
        let angles = Tensor::f_cat(&[&angles, &angles], -1)?.f_unsqueeze(1)?;
        Ok((angles.f_cos()?.f_to_kind(kind)?, angles.f_sin()?.f_to_kind(kind)?))
    }
}

/// x turned by its position: x `[n heads d]`, cos and sin `[n 1 d]`. The two halves of a head are the pairs' parts.
///
/// # Errors
/// Where shapes do not fit.
pub fn rotate(x: &Tensor, (cos, sin): &(Tensor, Tensor)) -> Result<Tensor> {
    let half = x.size()[2] / 2;
    let turned = Tensor::f_cat(&[x.f_narrow(2, half, half)?.f_neg()?, x.f_narrow(2, 0, half)?], -1)?;
    Ok(x.f_mul(cos)?.f_add(&turned.f_mul(sin)?)?)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn a_rope_type_we_do_not_know_is_named() {
        let p: RopeParameters = serde_json::from_str(r#"{"rope_type": "lama3"}"#).unwrap();
        let e = Rope::new(8, 1e4, Some(&p)).unwrap_err();
        assert_eq!(format!("{e:?}"), "unknown rope type `lama3`\n  hint: did you mean `llama3`?\n  hint: valid: default, linear, llama3");
    }

    #[test]
    fn turning_keeps_lengths_and_depends_on_the_distance_alone() {
        let rope = Rope::new(8, 1e4, None).unwrap();
        let at = |p: i64, x: &Tensor| rotate(x, &rope.tables(&Tensor::from_slice(&[p]).to_device(Device::Cpu), Kind::Double).unwrap()).unwrap();
        tch::manual_seed(1);
        let (a, b) = (Tensor::randn([1, 1, 8], (Kind::Double, Device::Cpu)), Tensor::randn([1, 1, 8], (Kind::Double, Device::Cpu)));
        let product = |p, q| (at(p, &a) * at(q, &b)).sum(Kind::Double).double_value(&[]);
        assert!((product(3, 7) - product(103, 107)).abs() < 1e-9);
        assert!((at(9, &a).norm() - a.norm()).abs().double_value(&[]) < 1e-12);
    }
}
