//! The Granite architecture. It is Llama's block with multipliers for the embeddings, the attention
//! scores, and the outputs of the attention and the MLP. The logits are divided by a constant.
//!
//! Reference: Granite Team 2024 (Granite 3.0) §2.1, and `modeling_granite.py` of transformers.

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
    #[serde(default)]
    mlp_bias: bool,
    embedding_multiplier: Option<f64>,
    attention_multiplier: Option<f64>,
    residual_multiplier: Option<f64>,
    logits_scaling: Option<f64>,
}

/// Builds the model from its configuration and weights.
///
/// # Errors
/// Fails if the configuration is not supported, or if a tensor is missing or has the wrong shape.
pub fn build(config: &Value, weights: &Weights<'_>) -> Result<Decoder> {
    let sizes = Sizes::read(config)?;
    let kind = LayerKind {
        window: None,
        rope: Some(Rope::new(sizes.head_dim(), &RopeParameters::whole(config)?)?),
    };
    let config: Config = settings::read(config)?;
    let multiplier = |field, value: Option<f64>| settings::positive(field, value.unwrap_or(1.0));
    let scores =
        Scores::scaled_by(multiplier("attention_multiplier", config.attention_multiplier)?);
    let residual_multiplier = multiplier("residual_multiplier", config.residual_multiplier)?;
    let embedding_multiplier = multiplier("embedding_multiplier", config.embedding_multiplier)?;
    let logits_scaling = multiplier("logits_scaling", config.logits_scaling)?;

    let activation = Activation::named("hidden_act", &config.hidden_act)?;
    let (hidden, eps) = (sizes.hidden_size, config.rms_norm_eps.unwrap_or(1e-6));
    let vocabulary = Vocabulary::new(
        weights,
        ["model.embed_tokens", "lm_head"],
        [sizes.vocab_size, hidden],
        config.tie_word_embeddings,
    )?
    .scaled(embedding_multiplier)
    .divided(logits_scaling);
    let model = weights.at("model");
    let layers = sizes.layers(|i| {
        let at = model.at("layers").at(i);
        let block = GraniteBlock {
            input_layernorm: at.rms_norm("input_layernorm", hidden, eps)?,
            self_attn: SelfAttention {
                scores,
                ..SelfAttention::separate(&at.at("self_attn"), &sizes, [config.attention_bias; 2])?
            },
            post_attention_layernorm: at.rms_norm("post_attention_layernorm", hidden, eps)?,
            mlp: Mlp::gated(
                &at.at("mlp"),
                [hidden, sizes.intermediate_size],
                config.mlp_bias,
                activation,
            )?,
            residual_multiplier,
        };
        Ok((0, Box::new(block)))
    })?;
    Ok(Decoder::new(
        "granite",
        &sizes,
        vocabulary,
        vec![kind],
        layers,
        model.rms_norm("norm", hidden, eps)?,
    ))
}

/// Granite's block.
#[derive(Debug)]
struct GraniteBlock {
    input_layernorm: Norm,
    self_attn: SelfAttention,
    post_attention_layernorm: Norm,
    mlp: Mlp,
    residual_multiplier: f64,
}

impl Block for GraniteBlock {
    fn forward(&self, h: &Tensor, cx: &BlockCx<'_>) -> Result<Tensor> {
        let mixed = self.self_attn.forward(&cx.norm(&self.input_layernorm, h)?, cx)?;
        let h = h.f_add(&mixed.f_mul_scalar(self.residual_multiplier)?)?;
        let mlp = self.mlp.forward(&cx.norm(&self.post_attention_layernorm, &h)?, cx)?;
        Ok(h.f_add(&mlp.f_mul_scalar(self.residual_multiplier)?)?)
    }

    fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a Linear)) {
        self.self_attn.visit(visit);
        self.mlp.visit(visit);
    }
}
