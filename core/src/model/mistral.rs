//! The Mistral architecture: Llama's block with sliding-window attention.
//!
//! Reference: Jiang et al. 2023 (Mistral 7B) §2, and `modeling_mistral.py` of transformers. Models
//! since v0.2 set the window to null, which makes them identical to Llama.

use super::llama::Frame;
use super::prelude::*;
use super::settings;

#[derive(Deserialize)]
struct Config {
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default = "tokens")]
    sliding_window: Option<i64>,
    layer_types: Option<Vec<LayerType>>,
}

#[expect(clippy::unnecessary_wraps, reason = "null stands for no window")]
fn tokens() -> Option<i64> {
    Some(4096)
}

/// Builds the model from its configuration and weights.
///
/// # Errors
/// Fails if the configuration is not supported, or if a tensor is missing or has the wrong shape.
pub fn build(config: &Value, weights: &Weights<'_>) -> Result<Decoder> {
    let sizes = Sizes::read(config)?;
    let rope = Some(Rope::new(sizes.head_dim(), &RopeParameters::whole(config)?)?);
    let frame: Frame = settings::read(config)?;
    let config: Config = settings::read(config)?;
    let window = config.sliding_window.map(settings::window).transpose()?;
    let usual = if window.is_some() { LayerType::Sliding } else { LayerType::Full };
    if config.layer_types.iter().flatten().any(|t| *t != usual) {
        return Err(Error::new(
            "every entry of `layer_types` in a Mistral model's config.json must be \
                `sliding_attention` if it has a `sliding_window`, and `full_attention` otherwise",
        ));
    }
    let activation = Activation::named("hidden_act", &config.hidden_act)?;
    frame.fill("mistral", weights, &sizes, vec![LayerKind { window, rope }], |at, _| {
        let self_attn = SelfAttention::separate(&at.at("self_attn"), &sizes, [false; 2])?;
        let mlp = Mlp::gated(
            &at.at("mlp"),
            [sizes.hidden_size, sizes.intermediate_size],
            false,
            activation,
        )?;
        Ok((0, self_attn, mlp))
    })
}
