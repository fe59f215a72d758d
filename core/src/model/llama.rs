//! The Llama architecture: pre-norm blocks, each with a gated MLP and grouped-query attention with
//! rotary positions.
//!
//! Reference: Touvron et al. 2023 (LLaMA, Llama 2). The names and the order of operations follow
//! `modeling_llama.py` of transformers. SmolLM2 and TinyLlama have this architecture. Several later
//! architectures use its [`Frame`] with a different attention or MLP.

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
    let frame: Frame = settings::read(config)?;
    let config: Config = settings::read(config)?;
    let activation = Activation::named("hidden_act", &config.hidden_act)?;
    frame.fill("llama", weights, &sizes, vec![kind], |at, _| {
        let self_attn =
            SelfAttention::separate(&at.at("self_attn"), &sizes, [config.attention_bias; 2])?;
        let mlp = Mlp::gated(
            &at.at("mlp"),
            [sizes.hidden_size, sizes.intermediate_size],
            config.mlp_bias,
            activation,
        )?;
        Ok((0, self_attn, mlp))
    })
}

/// Llama's block.
#[derive(Debug)]
struct LlamaBlock {
    input_layernorm: Norm,
    self_attn: SelfAttention,
    post_attention_layernorm: Norm,
    mlp: Mlp,
}

impl Block for LlamaBlock {
    fn forward(&self, h: &Tensor, cx: &BlockCx<'_>) -> Result<Tensor> {
        let h = h.f_add(&self.self_attn.forward(&cx.norm(&self.input_layernorm, h)?, cx)?)?;
        Ok(h.f_add(&self.mlp.forward(&cx.norm(&self.post_attention_layernorm, &h)?, cx)?)?)
    }

    fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a Linear)) {
        self.self_attn.visit(visit);
        self.mlp.visit(visit);
    }
}

/// The parts of Llama that later architectures reuse: the tensor names and the structure of a
/// block.
#[derive(Deserialize)]
pub struct Frame {
    rms_norm_eps: Option<f64>,
    tie_word_embeddings: Option<bool>,
}

impl Frame {
    /// ε of the RMS norms; 1e-6 if it is not set.
    pub fn eps(&self) -> f64 {
        self.rms_norm_eps.unwrap_or(1e-6)
    }

    /// Sets ε of the RMS norms to `eps` if config.json does not set it.
    #[must_use]
    pub fn or_eps(self, eps: f64) -> Self {
        Self { rms_norm_eps: self.rms_norm_eps.or(Some(eps)), ..self }
    }

    /// Ties the embedding and the output head if config.json does not say whether they are tied.
    #[must_use]
    pub fn or_tied(self) -> Self {
        Self { tie_word_embeddings: self.tie_word_embeddings.or(Some(true)), ..self }
    }

    /// Builds a model. Calls `halves` with the weights and the index of each layer. The closure
    /// returns the index of the layer's kind in `kinds`, the layer's attention and the layer's MLP.
    ///
    /// # Errors
    /// Fails if `halves` fails, or if a tensor is missing or has the wrong shape.
    pub fn fill(
        &self,
        model_type: &str,
        weights: &Weights<'_>,
        sizes: &Sizes,
        kinds: Vec<LayerKind>,
        halves: impl Fn(&Weights<'_>, usize) -> Result<(usize, SelfAttention, Mlp)>,
    ) -> Result<Decoder> {
        let (hidden, eps, tied) =
            (sizes.hidden_size, self.eps(), self.tie_word_embeddings.unwrap_or(false));
        let vocabulary = Vocabulary::new(
            weights,
            ["model.embed_tokens", "lm_head"],
            [sizes.vocab_size, hidden],
            tied,
        )?;
        let model = weights.at("model");
        let layers = sizes.layers(|i| {
            let at = model.at("layers").at(i);
            let (kind, self_attn, mlp) = halves(&at, i)?;
            let block = LlamaBlock {
                input_layernorm: at.rms_norm("input_layernorm", hidden, eps)?,
                self_attn,
                post_attention_layernorm: at.rms_norm("post_attention_layernorm", hidden, eps)?,
                mlp,
            };
            Ok((kind, Box::new(block)))
        })?;
        Ok(Decoder::new(
            model_type,
            sizes,
            vocabulary,
            kinds,
            layers,
            model.rms_norm("norm", hidden, eps)?,
        ))
    }
}
