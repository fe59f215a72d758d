//! The GPT-NeoX architecture. Attention and MLP read the same residual stream in parallel, and both
//! outputs are added to the stream. Only a part of each head is rotated. Norms and projections have
//! biases.
//!
//! Reference: Black et al. 2022 (GPT-NeoX-20B) §2.1, and `modeling_gpt_neox.py` of transformers.
//! The Pythia models have this architecture. If `use_parallel_residual` is false, the MLP reads the
//! stream after the attention.

use super::prelude::*;
use super::settings;

const FIELDS: RopeFields = RopeFields {
    theta: "rotary_emb_base",
    partial: "rotary_pct",
    default_partial: 0.25,
    ..RopeFields::COMMON
};

#[derive(Deserialize)]
struct Config {
    #[serde(default = "eps")]
    layer_norm_eps: f64,
    #[serde(default = "gelu")]
    hidden_act: String,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default = "yes")]
    attention_bias: bool,
    #[serde(default = "yes")]
    use_parallel_residual: bool,
}

fn eps() -> f64 {
    1e-5
}

fn gelu() -> String {
    "gelu".to_owned()
}

/// Builds the model from its configuration and weights.
///
/// # Errors
/// Fails if the configuration is not supported, or if a tensor is missing or has the wrong shape.
pub fn build(config: &Value, weights: &Weights<'_>) -> Result<Decoder> {
    let sizes = Sizes::read(config)?;
    if sizes.kv_heads() != sizes.num_attention_heads || sizes.q_width() != sizes.hidden_size {
        return Err(Error::new(
            "a GPT-NeoX model's config.json must set as many key-value heads as query heads, and \
                the width of all heads must be the hidden size",
        ));
    }
    let kind = LayerKind {
        window: None,
        rope: Some(Rope::new(sizes.head_dim(), &RopeParameters::partial(config, &FIELDS)?)?),
    };
    let config: Config = settings::read(config)?;
    let activation = Activation::named("hidden_act", &config.hidden_act)?;
    let (hidden, inner, eps, bias) =
        (sizes.hidden_size, sizes.intermediate_size, config.layer_norm_eps, config.attention_bias);
    // As in transformers, the checkpoint may use either name for the head.
    let head = if !weights.has("embed_out.weight") && weights.has("lm_head.weight") {
        "lm_head"
    } else {
        "embed_out"
    };
    let vocabulary = Vocabulary::new(
        weights,
        ["gpt_neox.embed_in", head],
        [sizes.vocab_size, hidden],
        config.tie_word_embeddings,
    )?;
    let model = weights.at("gpt_neox");
    let layers = sizes.layers(|i| {
        let at = model.at("layers").at(i);
        let (attention, mlp) = (at.at("attention"), at.at("mlp"));
        // Old checkpoints store causal masks under these names.
        attention.forget("bias");
        attention.forget("masked_bias");
        let qkv = Projections::fused_by_head(
            attention.linear("query_key_value", hidden, 3 * hidden, bias)?,
            &sizes,
        );
        let block = GptNeoxBlock {
            input_layernorm: at.layer_norm("input_layernorm", hidden, eps)?,
            attention: SelfAttention::new(
                qkv,
                attention.linear("dense", hidden, hidden, bias)?,
                &sizes,
            ),
            post_attention_layernorm: at.layer_norm("post_attention_layernorm", hidden, eps)?,
            mlp: Mlp {
                input: InputProjection::Plain(mlp.linear("dense_h_to_4h", hidden, inner, true)?),
                output: mlp.linear("dense_4h_to_h", inner, hidden, true)?,
                activation,
            },
            parallel: config.use_parallel_residual,
        };
        Ok((0, Box::new(block)))
    })?;
    Ok(Decoder::new(
        "gpt_neox",
        &sizes,
        vocabulary,
        vec![kind],
        layers,
        model.layer_norm("final_layer_norm", hidden, eps)?,
    ))
}

/// GPT-NeoX's block. If `parallel` is true, both the attention and the MLP read the input of the
/// block (Wang and Komatsuzaki 2021, GPT-J).
#[derive(Debug)]
struct GptNeoxBlock {
    input_layernorm: Norm,
    attention: SelfAttention,
    post_attention_layernorm: Norm,
    mlp: Mlp,
    parallel: bool,
}

impl Block for GptNeoxBlock {
    fn forward(&self, h: &Tensor, cx: &BlockCx<'_>) -> Result<Tensor> {
        let mixed = self.attention.forward(&cx.norm(&self.input_layernorm, h)?, cx)?;
        if self.parallel {
            let mlp = self.mlp.forward(&cx.norm(&self.post_attention_layernorm, h)?, cx)?;
            return Ok(mlp.f_add(&mixed)?.f_add(h)?);
        }
        let h = h.f_add(&mixed)?;
        Ok(h.f_add(&self.mlp.forward(&cx.norm(&self.post_attention_layernorm, &h)?, cx)?)?)
    }

    fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a Linear)) {
        self.attention.visit(visit);
        self.mlp.visit(visit);
    }
}
