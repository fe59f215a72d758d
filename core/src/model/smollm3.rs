//! The SmolLM3 architecture: Llama's block, but every fourth layer does not rotate queries and
//! keys. In some models, the layers without rotation have a sliding window.
//!
//! Reference: Yang et al. 2025 (RoPE to NoPE and Back Again) §3, and `modeling_smollm3.py` of
//! transformers.

use super::llama::Frame;
use super::prelude::*;
use super::settings;

#[derive(Deserialize)]
struct Config {
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    /// For each layer, 1 if it rotates queries and keys, and 0 if it does not.
    no_rope_layers: Option<Vec<i64>>,
    #[serde(default = "fourth")]
    no_rope_layer_interval: usize,
    #[serde(default)]
    use_sliding_window: bool,
    sliding_window: Option<i64>,
    layer_types: Option<Vec<LayerType>>,
}

fn fourth() -> usize {
    4
}

/// Builds the model from its configuration and weights.
///
/// # Errors
/// Fails if the configuration is not supported, or if a tensor is missing or has the wrong shape.
pub fn build(config: &Value, weights: &Weights<'_>) -> Result<Decoder> {
    let sizes =
        Sizes::read(&settings::with_defaults(config, &json!({ "num_key_value_heads": 4 })))?;
    let rope = RopeParameters::partial(
        config,
        &RopeFields { default_theta: 2_000_000.0, ..RopeFields::COMMON },
    )?
    .must_be_whole()?;
    let frame: Frame = settings::read(config)?;
    let config: Config = settings::read(config)?;
    let (count, interval) = (sizes.num_hidden_layers, config.no_rope_layer_interval);
    if interval == 0 {
        return Err(Error::new(
            "`no_rope_layer_interval` in the model's config.json must be greater than 0, got 0",
        ));
    }
    let rotates: Vec<bool> = match config.no_rope_layers {
        None => (0..count).map(|i| !(i + 1).is_multiple_of(interval)).collect(),
        Some(list) if list.len() == count => list.iter().map(|r| *r != 0).collect(),
        Some(list) => {
            return Err(Error::new(format!(
                "`no_rope_layers` in the model's config.json must have one entry for each of \
                    {count} layers, got {}",
                list.len()
            )));
        }
    };
    let slides = config.use_sliding_window && config.sliding_window.is_some();
    let usual = |i: usize| if slides && !rotates[i] { LayerType::Sliding } else { LayerType::Full };
    let types = settings::layer_types(config.layer_types, count, usual)?;
    let window = settings::window_of(&types, config.sliding_window)?;
    let kind = |window, rope: Option<&RopeParameters>| -> Result<LayerKind> {
        Ok(LayerKind {
            window,
            rope: rope.map(|rope| Rope::new(sizes.head_dim(), rope)).transpose()?,
        })
    };
    let kinds = vec![
        kind(None, Some(&rope))?,
        kind(window, Some(&rope))?,
        kind(None, None)?,
        kind(window, None)?,
    ];
    let kind_of = |i: usize| types[i].index() + if rotates[i] { 0 } else { 2 };

    let activation = Activation::named("hidden_act", &config.hidden_act)?;
    frame.or_tied().fill("smollm3", weights, &sizes, kinds, |at, i| {
        let self_attn =
            SelfAttention::separate(&at.at("self_attn"), &sizes, [config.attention_bias; 2])?;
        let mlp = Mlp::gated(
            &at.at("mlp"),
            [sizes.hidden_size, sizes.intermediate_size],
            config.mlp_bias,
            activation,
        )?;
        Ok((kind_of(i), self_attn, mlp))
    })
}
