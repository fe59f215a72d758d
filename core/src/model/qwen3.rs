//! The Qwen3 architecture: Llama's block, but the queries and keys of each head are normalised.
//! Later layers may have a sliding window.
//!
//! Reference: Yang et al. 2025 (Qwen3) §2, and `modeling_qwen3.py` of transformers.

use super::llama::Frame;
use super::prelude::*;
use super::qwen2::Windows;
use super::settings;

#[derive(Deserialize)]
struct Config {
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default)]
    attention_bias: bool,
}

/// Builds the model from its configuration and weights.
///
/// # Errors
/// Fails if the configuration is not supported, or if a tensor is missing or has the wrong shape.
pub fn build(config: &Value, weights: &Weights<'_>) -> Result<Decoder> {
    let sizes = Sizes::read(&settings::with_defaults(config, &json!({ "head_dim": 128 })))?;
    let rope = RopeParameters::whole(config)?;
    let frame: Frame = settings::read(config)?;
    let windows: Windows = settings::read(config)?;
    let config: Config = settings::read(config)?;
    let (kinds, kind_of) = windows.kinds(&sizes, &rope)?;
    let activation = Activation::named("hidden_act", &config.hidden_act)?;
    frame.fill("qwen3", weights, &sizes, kinds, |at, i| {
        let (attention, d) = (at.at("self_attn"), sizes.head_dim());
        let norms = [
            attention.rms_norm("q_norm", d, frame.eps())?,
            attention.rms_norm("k_norm", d, frame.eps())?,
        ];
        let self_attn = SelfAttention {
            qk_norm: QkNorm::PerHead(norms),
            ..SelfAttention::separate(&attention, &sizes, [config.attention_bias; 2])?
        };
        let mlp = Mlp::gated(
            &at.at("mlp"),
            [sizes.hidden_size, sizes.intermediate_size],
            false,
            activation,
        )?;
        Ok((kind_of[i], self_attn, mlp))
    })
}
