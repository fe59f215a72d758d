//! Converts llama.cpp's settings and tensors for rotary position embeddings to `rope_parameters` in
//! a Hugging Face configuration.

use serde_json::{Map, Value, json};

use super::Shape;
use super::settings::Settings;
use crate::error::{Error, Result};

/// Default base of the rotary frequencies in llama.cpp.
pub const USUAL_BASE: f64 = 10_000.0;

/// Factors by which the frequencies are divided, one for each pair of dimensions in a head.
/// llama.cpp stores them as tensors.
#[derive(Debug, Default)]
pub struct RopeFactors {
    all: Option<Vec<f64>>,
    long: Option<Vec<f64>>,
    short: Option<Vec<f64>>,
}

impl RopeFactors {
    /// Returns the field for the factors in `tensor`; `None` if the tensor with this name does not
    /// contain factors.
    pub fn of(&mut self, tensor: &str) -> Option<&mut Option<Vec<f64>>> {
        match tensor {
            "rope_freqs.weight" => Some(&mut self.all),
            "rope_factors_long.weight" => Some(&mut self.long),
            "rope_factors_short.weight" => Some(&mut self.short),
            _ => None,
        }
    }
}

impl Settings<'_> {
    /// Reads the base of the rotary frequencies (theta).
    ///
    /// # Errors
    /// Fails if the setting is not a finite number.
    pub fn rope_base(&self) -> Result<f64> {
        Ok(self.float("rope.freq_base")?.unwrap_or(USUAL_BASE))
    }

    /// Reads the factor by which positions are divided. Files from 2023 call it
    /// `rope.scale_linear`.
    ///
    /// # Errors
    /// Fails if the factor is negative.
    fn rope_factor(&self) -> Result<f64> {
        let key = if self.has("rope.scaling.factor") {
            "rope.scaling.factor"
        } else {
            "rope.scale_linear"
        };
        match self.float(key)?.unwrap_or(0.0) {
            // 0 means no scaling, as in llama.cpp.
            0.0 => Ok(1.0),
            factor if factor > 0.0 => Ok(factor),
            factor => {
                Err(Error::new(format!("`{}` must be greater than 0, got {factor}", self.key(key))))
            }
        }
    }

    /// Creates the `rope_parameters` of the Hugging Face configuration.
    ///
    /// # Errors
    /// Fails if a setting is out of range, or if the type of rotary scaling is not supported.
    pub fn rope(&self, factors: &RopeFactors, shape: &Shape) -> Result<Value> {
        let context = self.count("context_length")?;
        // As in llama.cpp, the default type is `linear`. The type `none` disables scaling.
        let kind = self.meta.text(&self.key("rope.scaling.type"))?.unwrap_or("linear");
        let (factor, attention) = (self.rope_factor()?, self.float("rope.scaling.attn_factor")?);
        let original =
            self.unsigned("rope.scaling.original_context_length")?.unwrap_or(context as u64);
        let plain = kind == "none" || (kind == "linear" && factor == 1.0);
        let mut rope = match factors {
            // This is Llama 3.1's scaling. The converter has already computed a factor for each
            // frequency.
            RopeFactors { all: Some(all), long: None, short: None } if plain => {
                json!({ "rope_type": "longrope", "short_factor": all, "long_factor": all,
                    "attention_factor": 1.0, "original_max_position_embeddings": context })
            }
            RopeFactors { all: None, long: Some(long), short: Some(short) }
                if plain || kind == "longrope" =>
            {
                json!({ "rope_type": "longrope", "short_factor": short, "long_factor": long,
                    "attention_factor": attention,
                    "original_max_position_embeddings": original })
            }
            RopeFactors { all: None, long: None, short: None } if plain => {
                json!({ "rope_type": "default" })
            }
            RopeFactors { all: None, long: None, short: None } if kind == "linear" => {
                json!({ "rope_type": "linear", "factor": factor })
            }
            RopeFactors { all: None, long: None, short: None } if kind == "yarn" => {
                self.yarn(factor, original)?
            }
            RopeFactors { all: None, long: None, short: None } => {
                return Err(unread(&format!("`{kind}`")));
            }
            _ => return Err(unread(&format!("`{kind}` with separate factors"))),
        };
        if kind != "yarn" {
            self.must_be("rope.scaling.yarn_attn_factor", |factor| factor == 1.0)?;
            self.must_be("rope.scaling.yarn_ext_factor", |factor| factor <= 0.0)?;
            if factors.long.is_none() && attention.is_some_and(|factor| factor != 1.0) {
                return Err(unread(&format!(
                    "`{kind}` with `{}`",
                    self.key("rope.scaling.attn_factor")
                )));
            }
        }
        rope["rope_theta"] = json!(self.rope_base()?);
        if self.architecture.partial {
            rope["partial_rotary_factor"] = json!(part(shape.rotated, shape.head));
        } else if shape.rotated != shape.head {
            // llama.cpp can rotate only a part of each head in any architecture. For this
            // architecture, transformers has no field for the number of rotated dimensions.
            rope["dimension_count"] = json!(shape.rotated);
        }
        Ok(rope)
    }

    /// Creates the `rope_parameters` for YaRN (Peng et al. 2023), without `rope_theta`.
    ///
    /// # Errors
    /// Fails if the value of a setting cannot be represented in Hugging Face's configuration.
    fn yarn(&self, factor: f64, original: u64) -> Result<Value> {
        // A negative factor means 1.
        self.must_be("rope.scaling.yarn_ext_factor", |factor| factor == 1.0 || factor < 0.0)?;
        self.must_be("rope.scaling.yarn_log_multiplier", |factor| factor == 0.0)?;
        // llama.cpp multiplies the default attention factor by `attn_factor`. In 2025, however,
        // llama.cpp's converter stored Hugging Face's `attention_factor` here. That factor replaces
        // the default. Only accept the value for which both give the same result.
        let usual = if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
        self.must_be("rope.scaling.attn_factor", |factor| (factor - usual).abs() < 1e-5)?;
        let mut rope = json!({ "rope_type": "yarn", "factor": factor,
            "original_max_position_embeddings": original });
        for (field, name) in [
            ("attention_factor", "rope.scaling.yarn_attn_factor"),
            ("beta_fast", "rope.scaling.yarn_beta_fast"),
            ("beta_slow", "rope.scaling.yarn_beta_slow"),
        ] {
            if let Some(value) = self.float(name)? {
                rope[field] = json!(value);
            }
        }
        Ok(rope)
    }

    /// Returns an error if the setting `name` is present and `is_valid` returns false for its
    /// value.
    fn must_be(&self, name: &str, is_valid: impl Fn(f64) -> bool) -> Result<()> {
        match self.float(name)? {
            Some(value) if !is_valid(value) => Err(self.unsupported(name)),
            _ => Ok(()),
        }
    }
}

/// Replaces `rope_parameters` with separate parameters for each layer type. Sliding-window layers
/// use the base `theta` and no scaling.
pub fn unscaled_in_windows(config: &mut Map<String, Value>, theta: f64) {
    let full = config.remove("rope_parameters").unwrap_or_default();
    let mut sliding = json!({ "rope_theta": theta, "rope_type": "default" });
    // llama.cpp rotates the same dimensions in all layers.
    if let Some(rotated) = full.get("dimension_count") {
        sliding["dimension_count"] = rotated.clone();
    }
    config.insert(
        "rope_parameters".to_owned(),
        json!({ "full_attention": full, "sliding_attention": sliding }),
    );
}

fn unread(which: &str) -> Error {
    Error::new(format!("the rotary scaling {which} is not supported in GGUF files"))
        .hint("use the model's Hugging Face folder")
}

/// Returns the `partial_rotary_factor` of a model that rotates `rotated` of the `head` dimensions
/// of each head.
///
/// transformers multiplies the factor by `head` and rounds down. If a rounding error would make the
/// result less than `rotated`, the next larger f64 is returned.
fn part(rotated: usize, head: usize) -> f64 {
    let part = rotated as f64 / head as f64;
    if ((head as f64 * part) as usize) < rotated { part.next_up() } else { part }
}
