//! The architecture of Qwen2 and Qwen2.5: Llama's block with biases on queries, keys and values.
//! Later layers may have a sliding window.
//!
//! Reference: Yang et al. 2024 (Qwen2) §2.2, and `modeling_qwen2.py` of transformers.

use super::llama::Frame;
use super::prelude::*;
use super::settings;

#[derive(Deserialize)]
struct Config {
    #[serde(default = "silu")]
    hidden_act: String,
}

/// Builds the model from its configuration and weights.
///
/// # Errors
/// Fails if the configuration is not supported, or if a tensor is missing or has the wrong shape.
pub fn build(config: &Value, weights: &Weights<'_>) -> Result<Decoder> {
    let sizes = Sizes::read(config)?;
    let rope = RopeParameters::whole(config)?;
    let frame: Frame = settings::read(config)?;
    let windows: Windows = settings::read(config)?;
    let config: Config = settings::read(config)?;
    let (kinds, kind_of) = windows.kinds(&sizes, &rope)?;
    let activation = Activation::named("hidden_act", &config.hidden_act)?;
    frame.fill("qwen2", weights, &sizes, kinds, |at, i| {
        let self_attn = SelfAttention::separate(&at.at("self_attn"), &sizes, [true, false])?;
        let mlp = Mlp::gated(
            &at.at("mlp"),
            [sizes.hidden_size, sizes.intermediate_size],
            false,
            activation,
        )?;
        Ok((kind_of[i], self_attn, mlp))
    })
}

/// The fields that select the layers with a sliding window. If `use_sliding_window` is true, the
/// default is every layer from `max_window_layers` on.
#[derive(Deserialize)]
pub struct Windows {
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default = "tokens")]
    sliding_window: Option<i64>,
    #[serde(default = "most")]
    max_window_layers: usize,
    layer_types: Option<Vec<LayerType>>,
}

#[expect(clippy::unnecessary_wraps, reason = "null stands for no window")]
fn tokens() -> Option<i64> {
    Some(4096)
}

fn most() -> usize {
    28
}

impl Windows {
    /// Returns the kinds of layers, and the index of each layer's kind.
    ///
    /// # Errors
    /// Fails if `layer_types` contains `sliding_attention`, but no window is enabled.
    pub fn kinds(
        &self,
        sizes: &Sizes,
        rope: &RopeParameters,
    ) -> Result<(Vec<LayerKind>, Vec<usize>)> {
        let window = self
            .sliding_window
            .filter(|_| self.use_sliding_window)
            .map(settings::window)
            .transpose()?;
        let usual = |i| {
            if window.is_some() && i >= self.max_window_layers {
                LayerType::Sliding
            } else {
                LayerType::Full
            }
        };
        let types =
            settings::layer_types(self.layer_types.clone(), sizes.num_hidden_layers, usual)?;
        if window.is_none() && types.contains(&LayerType::Sliding) {
            return Err(Error::new(
                "the model's config.json contains `sliding_attention` in \
                `layer_types`, but does not enable a window",
            )
            .hint("set `sliding_window`, and set `use_sliding_window` to true"));
        }
        let kind = |window| -> Result<LayerKind> {
            Ok(LayerKind { window, rope: Some(Rope::new(sizes.head_dim(), rope)?) })
        };
        Ok((vec![kind(None)?, kind(window)?], types.into_iter().map(LayerType::index).collect()))
    }
}
