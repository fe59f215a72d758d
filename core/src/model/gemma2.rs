//! The Gemma 2 architecture: norms before and after the attention and the MLP, sliding windows in
//! every other layer, capped scores and logits, and scaled embeddings.
//!
//! Reference: Gemma Team 2024 (Gemma 2) §2, and `modeling_gemma2.py` of transformers.

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
    final_logit_softcapping: Option<f64>,
    attn_logit_softcapping: Option<f64>,
    use_bidirectional_attention: Option<bool>,
}

/// Builds the model from its configuration and weights.
///
/// # Errors
/// Fails if the configuration is not supported, or if a tensor is missing or has the wrong shape.
pub fn build(config: &Value, weights: &Weights<'_>) -> Result<Decoder> {
    let defaults = json!({
        "head_dim": 256, "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": true, "attention_bias": false,
        "query_pre_attn_scalar": 256, "sliding_window": 4096, "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    });
    let config = &settings::with_defaults(config, &defaults);
    let sizes = Sizes::read(config)?;
    let rope = RopeParameters::whole(config)?;
    let config: Config = settings::read(config)?;
    settings::must_look_back(config.use_bidirectional_attention)?;
    let usual = |i: usize| if i.is_multiple_of(2) { LayerType::Sliding } else { LayerType::Full };
    let types = settings::layer_types(config.layer_types, sizes.num_hidden_layers, usual)?;
    let window = settings::window_of(&types, config.sliding_window)?;
    let kind = |window| {
        Ok::<_, Error>(LayerKind { window, rope: Some(Rope::new(sizes.head_dim(), &rope)?) })
    };
    let activation = Activation::named("hidden_activation", &config.hidden_activation)?;
    let scale =
        1.0 / settings::positive("query_pre_attn_scalar", config.query_pre_attn_scalar)?.sqrt();
    let logit_cap = settings::cap("final_logit_softcapping", config.final_logit_softcapping)?;
    let scores = Scores {
        cap: settings::cap("attn_logit_softcapping", config.attn_logit_softcapping)?,
        ..Scores::scaled_by(scale)
    };
    let (hidden, eps) = (sizes.hidden_size, config.rms_norm_eps);
    let vocabulary = Vocabulary::new(
        weights,
        ["model.embed_tokens", "lm_head"],
        [sizes.vocab_size, hidden],
        config.tie_word_embeddings,
    )?;
    let model = weights.at("model");
    let layers = sizes.layers(|i| {
        let at = model.at("layers").at(i);
        let self_attn = SelfAttention {
            scores,
            ..SelfAttention::separate(&at.at("self_attn"), &sizes, [config.attention_bias; 2])?
        };
        let mlp = Mlp::gated(&at.at("mlp"), [hidden, sizes.intermediate_size], false, activation)?;
        Ok((types[i].index(), Box::new(Gemma2Block::new(&at, self_attn, mlp, hidden, eps)?)))
    })?;
    let vocabulary = vocabulary.scaled_in_kind((hidden as f64).sqrt())?.capped(logit_cap);
    Ok(Decoder::new(
        "gemma2",
        &sizes,
        vocabulary,
        vec![kind(None)?, kind(window)?],
        layers,
        model.one_plus_rms_norm("norm", hidden, eps)?,
    ))
}

/// The block that Gemma 2 and Gemma 3 share.
#[derive(Debug)]
pub struct Gemma2Block {
    input_layernorm: Norm,
    self_attn: SelfAttention,
    post_attention_layernorm: Norm,
    pre_feedforward_layernorm: Norm,
    mlp: Mlp,
    post_feedforward_layernorm: Norm,
}

impl Gemma2Block {
    /// Builds a block from its attention and MLP, and loads its norms from `weights`.
    ///
    /// # Errors
    /// Fails if a tensor is missing or has the wrong shape.
    pub fn new(
        weights: &Weights<'_>,
        self_attn: SelfAttention,
        mlp: Mlp,
        hidden: i64,
        eps: f64,
    ) -> Result<Self> {
        let norm = |name| weights.one_plus_rms_norm(name, hidden, eps);
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            pre_feedforward_layernorm: norm("pre_feedforward_layernorm")?,
            mlp,
            post_feedforward_layernorm: norm("post_feedforward_layernorm")?,
        })
    }
}

impl Block for Gemma2Block {
    fn forward(&self, h: &Tensor, cx: &BlockCx<'_>) -> Result<Tensor> {
        let mixed = self.self_attn.forward(&cx.norm(&self.input_layernorm, h)?, cx)?;
        let h = h.f_add(&cx.norm(&self.post_attention_layernorm, &mixed)?)?;
        let mlp = self.mlp.forward(&cx.norm(&self.pre_feedforward_layernorm, &h)?, cx)?;
        Ok(h.f_add(&cx.norm(&self.post_feedforward_layernorm, &mlp)?)?)
    }

    fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a Linear)) {
        self.self_attn.visit(visit);
        self.mlp.visit(visit);
    }
}
