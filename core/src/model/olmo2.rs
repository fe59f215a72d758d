//! The OLMo 2 architecture: Llama's block, but with the norms after the attention and the MLP
//! instead of before them. Queries and keys each have a single norm over all heads.
//!
//! Reference: OLMo Team 2024 (2 OLMo 2 Furious) §2.1, and `modeling_olmo2.py` of transformers.

use super::prelude::*;
use super::settings;

#[derive(Deserialize)]
struct Config {
    rms_norm_eps: Option<f64>,
    #[serde(default)]
    tie_word_embeddings: bool,
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
    let sizes = Sizes::read(config)?;
    let rope = Rope::new(sizes.head_dim(), &RopeParameters::whole(config)?)?.unrounded();
    fill(
        "olmo2",
        config,
        weights,
        &sizes,
        vec![LayerKind { window: None, rope: Some(rope) }],
        |_| 0,
    )
}

/// Builds a model from its configuration and weights. `kind_of` maps the index of a layer to the
/// index of its kind in `kinds`.
///
/// # Errors
/// Fails in the same cases as [`build`].
pub fn fill(
    model_type: &str,
    config: &Value,
    weights: &Weights<'_>,
    sizes: &Sizes,
    kinds: Vec<LayerKind>,
    kind_of: impl Fn(usize) -> usize,
) -> Result<Decoder> {
    let config: Config = settings::read(config)?;
    let activation = Activation::named("hidden_act", &config.hidden_act)?;
    let (hidden, eps) = (sizes.hidden_size, config.rms_norm_eps.unwrap_or(1e-5));
    let vocabulary = Vocabulary::new(
        weights,
        ["model.embed_tokens", "lm_head"],
        [sizes.vocab_size, hidden],
        config.tie_word_embeddings,
    )?;
    let model = weights.at("model");
    let layers = sizes.layers(|i| {
        let at = model.at("layers").at(i);
        let attention = at.at("self_attn");
        let q_norm = attention.rms_norm_rounded_once("q_norm", sizes.q_width(), eps)?;
        let k_norm = attention.rms_norm_rounded_once("k_norm", sizes.kv_width(), eps)?;
        let block = Olmo2Block {
            self_attn: SelfAttention {
                qk_norm: QkNorm::AllHeads([q_norm, k_norm]),
                ..SelfAttention::separate(&attention, sizes, [config.attention_bias; 2])?
            },
            post_attention_layernorm: at.rms_norm_rounded_once(
                "post_attention_layernorm",
                hidden,
                eps,
            )?,
            mlp: Mlp::gated(&at.at("mlp"), [hidden, sizes.intermediate_size], false, activation)?,
            post_feedforward_layernorm: at.rms_norm_rounded_once(
                "post_feedforward_layernorm",
                hidden,
                eps,
            )?,
        };
        Ok((kind_of(i), Box::new(block)))
    })?;
    Ok(Decoder::new(
        model_type,
        sizes,
        vocabulary,
        kinds,
        layers,
        model.rms_norm_rounded_once("norm", hidden, eps)?,
    ))
}

/// The block that OLMo 2 and OLMo 3 share.
#[derive(Debug)]
struct Olmo2Block {
    self_attn: SelfAttention,
    post_attention_layernorm: Norm,
    mlp: Mlp,
    post_feedforward_layernorm: Norm,
}

impl Block for Olmo2Block {
    fn forward(&self, h: &Tensor, cx: &BlockCx<'_>) -> Result<Tensor> {
        let h =
            h.f_add(&cx.norm(&self.post_attention_layernorm, &self.self_attn.forward(h, cx)?)?)?;
        Ok(h.f_add(&cx.norm(&self.post_feedforward_layernorm, &self.mlp.forward(&h, cx)?)?)?)
    }

    fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a Linear)) {
        self.self_attn.visit(visit);
        self.mlp.visit(visit);
    }
}
