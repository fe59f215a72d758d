//! The OLMo 3 architecture: OLMo 2's block, with sliding windows in three out of four layers.
//! Layers with and without a window have different rotary parameters.
//!
//! Reference: OLMo Team 2025 (OLMo 3) §3.2, and `modeling_olmo3.py` of transformers.

use super::olmo2;
use super::prelude::*;
use super::settings;

#[derive(Deserialize)]
struct Config {
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
    // transformers only applies a top-level `rope_theta` to `full_attention`. `sliding_attention`
    // keeps the default.
    const FULL: RopeFields = RopeFields { default_theta: 500_000.0, ..RopeFields::COMMON };
    const SLIDING: RopeFields = RopeFields { theta: "", ..FULL };
    let sizes = Sizes::read(config)?;
    let [full, sliding] = RopeParameters::by_layer_type(config, &FULL, &SLIDING)?;
    let Config { sliding_window, layer_types } = settings::read(config)?;
    let usual =
        |i: usize| if (i + 1).is_multiple_of(4) { LayerType::Full } else { LayerType::Sliding };
    let types = settings::layer_types(layer_types, sizes.num_hidden_layers, usual)?;
    let window = settings::window_of(&types, sliding_window)?;
    let kind = |window, rope| {
        Ok::<_, Error>(LayerKind {
            window,
            rope: Some(Rope::new(sizes.head_dim(), rope)?.unrounded()),
        })
    };
    olmo2::fill(
        "olmo3",
        config,
        weights,
        &sizes,
        vec![kind(None, &full)?, kind(window, &sliding)?],
        |i| types[i].index(),
    )
}
