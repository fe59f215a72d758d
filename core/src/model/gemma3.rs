//! The text model of the Gemma 3 architecture: Gemma 2's block with an additional norm on each
//! query and key head. Layers with a sliding window have a different rotary base from the others.
//!
//! Reference: Gemma Team 2025 (Gemma 3) §2, Gemma Team 2024 (Gemma 2) §2 for the soft caps, and
//! `modeling_gemma3.py` of transformers. `attn_logit_softcapping` caps the attention scores, as its
//! documentation says. transformers 5.23 ignores the field, but no released model sets it.

use super::gemma2::Gemma2Block;
use super::prelude::*;
use super::settings;

#[derive(Deserialize)]
struct Config {
    rms_norm_eps: f64,
    hidden_activation: String,
    tie_word_embeddings: bool,
    attention_bias: bool,
    query_pre_attn_scalar: f64,
    sliding_window: Option<i64>,
    layer_types: Option<Vec<LayerType>>,
    /// If `layer_types` is not set, every layer whose number (from 1) is a multiple of this value
    /// has full attention.
    sliding_window_pattern: usize,
    final_logit_softcapping: Option<f64>,
    attn_logit_softcapping: Option<f64>,
    use_bidirectional_attention: Option<bool>,
}

/// Adds the default values of missing fields. The `text_config` of a multimodal model omits most
/// fields.
fn complete(config: &Value) -> Value {
    let defaults = json!({
        "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": true,
        "attention_bias": false, "query_pre_attn_scalar": 256,
        "sliding_window": 4096, "sliding_window_pattern": 6,
    });
    settings::with_defaults(config, &defaults)
}

/// Builds a text-only model.
///
/// # Errors
/// Fails if the configuration is not supported, or if a tensor is missing or has the wrong shape.
pub fn build_text(config: &Value, weights: &Weights<'_>) -> Result<Decoder> {
    build("gemma3_text", "model", config, weights)
}

/// Builds the text model of a multimodal model. The tensors of the image encoder are dropped,
/// because text does not pass through it.
///
/// # Errors
/// Fails in the same cases as [`build_text`].
pub fn build_multimodal(config: &Value, weights: &Weights<'_>) -> Result<Decoder> {
    let text = config.get("text_config").filter(|text| text.is_object());
    let text =
        text.ok_or_else(|| Error::new("a Gemma 3 model's config.json must set `text_config`"))?;
    let mut text = text.clone();
    if let (Some(tied), Some(fields)) = (config.get("tie_word_embeddings"), text.as_object_mut()) {
        fields.insert("tie_word_embeddings".to_owned(), tied.clone());
    }
    // Published checkpoints use older tensor names. transformers renames these tensors in the same
    // way.
    let checkpoint = weights.checkpoint();
    checkpoint.rename("language_model.model.", "model.language_model.");
    checkpoint.rename("language_model.lm_head.", "lm_head.");
    for part in ["vision_tower.", "multi_modal_projector."] {
        checkpoint.forget_all(part);
        checkpoint.forget_all(&format!("model.{part}"));
    }
    let at = if weights.has("model.language_model.embed_tokens.weight") {
        "model.language_model"
    } else {
        "model"
    };
    build("gemma3", at, &text, weights)
}

fn build(model_type: &str, at: &str, config: &Value, weights: &Weights<'_>) -> Result<Decoder> {
    let config = &complete(config);
    let sizes = Sizes::read(config)?;
    let usual = |theta, default_theta| RopeFields { theta, default_theta, ..RopeFields::COMMON };
    let [full, sliding] = RopeParameters::by_layer_type(
        config,
        &usual("rope_theta", 1_000_000.0),
        &usual("rope_local_base_freq", 10_000.0),
    )?;
    let config: Config = settings::read(config)?;
    settings::must_look_back(config.use_bidirectional_attention)?;
    let pattern = config.sliding_window_pattern.max(1);
    let usual = |i: usize| {
        if (i + 1).is_multiple_of(pattern) { LayerType::Full } else { LayerType::Sliding }
    };
    let types = settings::layer_types(config.layer_types, sizes.num_hidden_layers, usual)?;
    let window = settings::window_of(&types, config.sliding_window)?;
    let kind = |window, rope| {
        Ok::<_, Error>(LayerKind { window, rope: Some(Rope::new(sizes.head_dim(), rope)?) })
    };
    let kinds = vec![kind(None, &full)?, kind(window, &sliding)?];

    let activation = Activation::named("hidden_activation", &config.hidden_activation)?;
    let score_cap = settings::cap("attn_logit_softcapping", config.attn_logit_softcapping)?;
    let logit_cap = settings::cap("final_logit_softcapping", config.final_logit_softcapping)?;
    let scale =
        1.0 / settings::positive("query_pre_attn_scalar", config.query_pre_attn_scalar)?.sqrt();
    let (hidden, eps, d) = (sizes.hidden_size, config.rms_norm_eps, sizes.head_dim());
    let vocabulary = Vocabulary::new(
        weights,
        [&format!("{at}.embed_tokens"), "lm_head"],
        [sizes.vocab_size, hidden],
        config.tie_word_embeddings,
    )?;
    let model = weights.at(at);
    let layers = sizes.layers(|i| {
        let at = model.at("layers").at(i);
        let attention = at.at("self_attn");
        let norms = [
            attention.one_plus_rms_norm("q_norm", d, eps)?,
            attention.one_plus_rms_norm("k_norm", d, eps)?,
        ];
        let self_attn = SelfAttention {
            qk_norm: QkNorm::PerHead(norms),
            scores: Scores { cap: score_cap, ..Scores::scaled_by(scale) },
            ..SelfAttention::separate(&attention, &sizes, [config.attention_bias; 2])?
        };
        let mlp = Mlp::gated(&at.at("mlp"), [hidden, sizes.intermediate_size], false, activation)?;
        Ok((types[i].index(), Box::new(Gemma2Block::new(&at, self_attn, mlp, hidden, eps)?)))
    })?;
    let vocabulary = vocabulary.scaled_in_kind((hidden as f64).sqrt())?.capped(logit_cap);
    Ok(Decoder::new(
        model_type,
        &sizes,
        vocabulary,
        kinds,
        layers,
        model.one_plus_rms_norm("norm", hidden, eps)?,
    ))
}
