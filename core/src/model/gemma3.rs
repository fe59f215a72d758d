//! The Gemma 3 architecture, its text half: each half of a block stands between two norms, layers with a window and a
//! rotation of their own alternate with layers that see everything, and embeddings are scaled.
//!
//! Reference: Gemma Team 2025 (Gemma 3) §2, Gemma Team 2024 (Gemma 2) §2 for the soft caps, and `modeling_gemma3.py` of
//! transformers. A cap of the attention's scores, which no released model has, is honoured as the configuration's
//! documentation says; transformers 5.23 reads the field and leaves it unused.

use serde::Deserialize;
use serde_json::{Value, json};
use tch::Tensor;

use super::activation::Activation;
use super::decoder::{Decoder, Layer, Sight, View};
use super::linear::Linear;
use super::mlp::GatedMlp;
use super::module::Module;
use super::norm::{Norm, OnePlusRmsNorm};
use super::pass::Pass;
use super::rope::{Rope, RopeParameters, Spelling};
use super::self_attention::{Normed, SelfAttention, Separate};
use super::settings::{self, LayerType, Sizes};
use super::vocabulary::Vocabulary;
use super::weights::Weights;
use crate::error::{Error, Result};

#[derive(Deserialize)]
struct Config {
    rms_norm_eps: f64,
    hidden_activation: String,
    tie_word_embeddings: bool,
    attention_bias: bool,
    query_pre_attn_scalar: f64,
    sliding_window: Option<i64>,
    layer_types: Option<Vec<LayerType>>,
    /// Every layer of that number sees everything, where `layer_types` is not given.
    sliding_window_pattern: usize,
    final_logit_softcapping: Option<f64>,
    attn_logit_softcapping: Option<f64>,
    use_bidirectional_attention: Option<bool>,
}

/// What the configuration leaves out, as those inside a configuration of both halves do.
fn complete(config: &Value) -> Value {
    settings::with_defaults(
        config,
        &[
            ("vocab_size", json!(262_208)),
            ("hidden_size", json!(2304)),
            ("intermediate_size", json!(9216)),
            ("num_hidden_layers", json!(26)),
            ("num_attention_heads", json!(8)),
            ("num_key_value_heads", json!(4)),
            ("head_dim", json!(256)),
            ("max_position_embeddings", json!(131_072)),
            ("rms_norm_eps", json!(1e-6)),
            ("hidden_activation", json!("gelu_pytorch_tanh")),
            ("tie_word_embeddings", json!(true)),
            ("attention_bias", json!(false)),
            ("query_pre_attn_scalar", json!(256)),
            ("sliding_window", json!(4096)),
            ("sliding_window_pattern", json!(6)),
        ],
    )
}

/// The model of a configuration of text alone.
///
/// # Errors
/// A configuration that does not fit together or is not honoured, and a tensor that is missing or of another shape.
pub fn of_text(config: &Value, weights: &mut Weights) -> Result<Decoder> {
    build("gemma3_text", "model", config, weights)
}

/// The text half of a configuration of text and images. What sees images is left out: text alone does not pass it.
///
/// # Errors
/// As [`of_text`].
pub fn of_both(config: &Value, weights: &mut Weights) -> Result<Decoder> {
    let text = config.get("text_config").filter(|text| text.is_object());
    let text = text.ok_or_else(|| Error::new("the model's config.json has no `text_config`, which `model_type` gemma3 needs"))?;
    let mut text = text.clone();
    if let (Some(tied), Some(fields)) = (config.get("tie_word_embeddings"), text.as_object_mut()) {
        fields.insert("tie_word_embeddings".to_owned(), tied.clone());
    }
    // As transformers has the names in memory, and as releases had them on disk.
    weights.rename("language_model.model.", "model.language_model.");
    weights.rename("language_model.lm_head.", "lm_head.");
    for part in ["vision_tower.", "multi_modal_projector."] {
        weights.forget_all(part);
        weights.forget_all(&format!("model.{part}"));
    }
    let at = if weights.has("model.language_model.embed_tokens.weight") { "model.language_model" } else { "model" };
    build("gemma3", at, &text, weights)
}

fn build(model_type: &str, at: &str, config: &Value, weights: &mut Weights) -> Result<Decoder> {
    let config = &complete(config);
    let sizes = Sizes::read(config)?;
    let [global, local] = rotations(config)?;
    let config: Config = settings::read(config)?;
    if config.use_bidirectional_attention == Some(true) {
        return Err(Error::new("the model's config.json sets `use_bidirectional_attention`, but this program's attention never looks ahead")
            .hint("such a model embeds texts; it is no language model"));
    }
    let window = config.sliding_window.map(settings::window).transpose()?;
    let pattern = config.sliding_window_pattern.max(1);
    let usual = |i: usize| if (i + 1).is_multiple_of(pattern) { LayerType::Full } else { LayerType::Sliding };
    let types = settings::layer_types(config.layer_types, sizes.num_hidden_layers, usual)?;
    if window.is_none() && types.contains(&LayerType::Sliding) {
        return Err(Error::new("the model's config.json has layers of `sliding_attention`, but no `sliding_window`"));
    }
    let sights = vec![Sight { window: None, rope: Rope::new(sizes.head_dim(), &global)? }, Sight { window, rope: Rope::new(sizes.head_dim(), &local)? }];

    let activation = Activation::named("hidden_activation", &config.hidden_activation)?;
    let cap = |field: &str, cap: Option<f64>| cap.map(|c| settings::positive(field, c)).transpose();
    let (score_cap, logit_cap) =
        (cap("attn_logit_softcapping", config.attn_logit_softcapping)?, cap("final_logit_softcapping", config.final_logit_softcapping)?);
    let scale = 1.0 / settings::positive("query_pre_attn_scalar", config.query_pre_attn_scalar)?.sqrt();
    let (hidden, bias, eps) = (sizes.hidden_size, config.attention_bias, config.rms_norm_eps);
    let vocabulary = Vocabulary::new(weights, [&format!("{at}.embed_tokens"), "lm_head"], [sizes.vocab_size, hidden], config.tie_word_embeddings)?;
    let layer = |i: usize| -> Result<Layer> {
        let at = format!("{at}.layers.{i}");
        let attention = format!("{at}.self_attn");
        let block = Block {
            attention: SelfAttention {
                projections: Normed {
                    separate: Separate::new(weights, &attention, &sizes, bias)?,
                    q_norm: OnePlusRmsNorm::new(weights, &format!("{attention}.q_norm"), sizes.head_dim(), eps)?,
                    k_norm: OnePlusRmsNorm::new(weights, &format!("{attention}.k_norm"), sizes.head_dim(), eps)?,
                },
                output: weights.linear(&format!("{attention}.o_proj"), sizes.q_width(), hidden, bias)?,
                scale,
                cap: score_cap,
            },
            mlp: GatedMlp::new(weights, &format!("{at}.mlp"), [hidden, sizes.intermediate_size], false, activation)?,
            input_layernorm: OnePlusRmsNorm::new(weights, &format!("{at}.input_layernorm"), hidden, eps)?,
            post_attention_layernorm: OnePlusRmsNorm::new(weights, &format!("{at}.post_attention_layernorm"), hidden, eps)?,
            pre_feedforward_layernorm: OnePlusRmsNorm::new(weights, &format!("{at}.pre_feedforward_layernorm"), hidden, eps)?,
            post_feedforward_layernorm: OnePlusRmsNorm::new(weights, &format!("{at}.post_feedforward_layernorm"), hidden, eps)?,
        };
        Ok((usize::from(types[i] == LayerType::Sliding), Box::new(block)))
    };
    let layers = (0..sizes.num_hidden_layers).map(layer).collect::<Result<_>>()?;
    let norm = OnePlusRmsNorm::new(weights, &format!("{at}.norm"), hidden, eps)?;
    let vocabulary = vocabulary.scaled((hidden as f64).sqrt())?.capped(logit_cap);
    Ok(Decoder::new(model_type, &sizes, vocabulary, sights, layers, norm))
}

/// The rotations of layers that see everything, and of those with a window. Older configurations scale the first alone.
fn rotations(config: &Value) -> Result<[RopeParameters; 2]> {
    let nested = config.get("rope_parameters").filter(|p| !p.is_null());
    if let Some(stray) = nested.and_then(Value::as_object).and_then(|p| p.keys().find(|k| !["full_attention", "sliding_attention"].contains(&k.as_str()))) {
        return Err(Error::new(format!("the model's config.json has no valid `rope_parameters.{stray}`"))
            .hint("Gemma 3 has a set each for `full_attention` and `sliding_attention`"));
    }
    let written = |kind: &str| nested.and_then(|p| p.get(kind));
    let (global, place) = match config.get("rope_scaling").filter(|s| !s.is_null()) {
        Some(scaling) => (Some(scaling), "rope_scaling"),
        None => (written("full_attention"), "rope_parameters.full_attention"),
    };
    let usual = |theta, usual_theta| Spelling { theta, usual_theta, ..Spelling::USUAL };
    Ok([
        RopeParameters::at(global, place, config, &usual("rope_theta", 1_000_000.0))?.must_be_whole()?,
        RopeParameters::at(written("sliding_attention"), "rope_parameters.sliding_attention", config, &usual("rope_local_base_freq", 10_000.0))?
            .must_be_whole()?,
    ])
}

#[derive(Debug)]
struct Block {
    input_layernorm: OnePlusRmsNorm,
    attention: SelfAttention<Normed<OnePlusRmsNorm>>,
    post_attention_layernorm: OnePlusRmsNorm,
    pre_feedforward_layernorm: OnePlusRmsNorm,
    mlp: GatedMlp,
    post_feedforward_layernorm: OnePlusRmsNorm,
}

impl Module for Block {
    fn forward(&self, h: &Tensor, view: &View, pass: &mut Pass<'_>) -> Result<Tensor> {
        let mixed = self.attention.forward(&self.input_layernorm.forward(h)?, view, pass)?;
        let h = h.f_add(&self.post_attention_layernorm.forward(&mixed)?)?;
        let mlp = self.mlp.forward(&self.pre_feedforward_layernorm.forward(&h)?, view, pass)?;
        Ok(h.f_add(&self.post_feedforward_layernorm.forward(&mlp)?)?)
    }

    fn linears(&self) -> Vec<&Linear> {
        [self.attention.linears(), self.mlp.linears()].concat()
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        self.attention.linears_mut().into_iter().chain(self.mlp.linears_mut()).collect()
    }
}
