//! The GPT-2 architecture: pre-norm blocks with layer norms, one fused module for queries, keys and
//! values, learned positions, and an MLP without a gate. Its linear modules are `Conv1D` in
//! transformers, which stores weights as `[in out]`.
//!
//! Reference: Radford et al. 2019 (GPT-2) §2.3, and `modeling_gpt2.py` of transformers.

use super::prelude::*;
use super::settings;

#[derive(Deserialize)]
struct Config {
    activation_function: String,
    layer_norm_epsilon: f64,
    tie_word_embeddings: bool,
    scale_attn_weights: bool,
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
    #[serde(default)]
    reorder_and_upcast_attn: bool,
}

/// Reads the sizes of the model and the number of positions. As in transformers, each size has a
/// common name, such as `hidden_size`, and GPT-2's own name, such as `n_embd`. If both are set, the
/// common name takes precedence.
fn sizes(config: &Value) -> Result<(Sizes, i64)> {
    let of = |names: [&str; 2], usual: i64| {
        names.iter().find_map(|name| config.get(name)).cloned().unwrap_or_else(|| usual.into())
    };
    let hidden = of(["hidden_size", "n_embd"], 768);
    let inner = config
        .get("n_inner")
        .filter(|n| !n.is_null())
        .cloned()
        .unwrap_or_else(|| json!(4 * hidden.as_i64().unwrap_or_default()));
    let sizes = Sizes::read(&json!({
        "vocab_size": of(["vocab_size"; 2], 50257), "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": of(["num_hidden_layers", "n_layer"], 12),
        "num_attention_heads": of(["num_attention_heads", "n_head"], 12),
    }))?;
    if sizes.q_width() != sizes.hidden_size {
        let (width, heads) = (sizes.hidden_size, sizes.num_attention_heads);
        return Err(Error::new(format!(
            "the hidden size in the model's config.json must be a multiple of the number of heads, \
                got {width} and {heads}"
        )));
    }
    Ok((
        sizes,
        settings::read_at("n_positions", &of(["max_position_embeddings", "n_positions"], 1024))?,
    ))
}

/// Builds the model from its configuration and weights.
///
/// # Errors
/// Fails if the configuration is not supported, or if a tensor is missing or has the wrong shape.
pub fn build(config: &Value, weights: &Weights<'_>) -> Result<Decoder> {
    let (sizes, positions) = sizes(config)?;
    let defaults = json!({ "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": true, "scale_attn_weights": true });
    let config: Config = settings::read(&settings::with_defaults(config, &defaults))?;
    let activation = Activation::named("activation_function", &config.activation_function)?;
    let (hidden, inner, eps) =
        (sizes.hidden_size, sizes.intermediate_size, config.layer_norm_epsilon);
    let vocabulary = Vocabulary::new(
        weights,
        ["transformer.wte", "lm_head"],
        [sizes.vocab_size, hidden],
        config.tie_word_embeddings,
    )?;
    let model = weights.at("transformer");
    let layers = sizes.layers(|i| {
        let at = model.at("h").at(i);
        let (attn, mlp) = (at.at("attn"), at.at("mlp"));
        // Old checkpoints store causal masks under these names.
        attn.forget("bias");
        attn.forget("masked_bias");
        let scale = if config.scale_attn_weights { sizes.scale() } else { 1.0 };
        let scale =
            if config.scale_attn_by_inverse_layer_idx { scale / (i + 1) as f64 } else { scale };
        let qkv = Projections::fused_by_kind(attn.conv1d("c_attn", hidden, 3 * hidden)?, &sizes);
        let block = Gpt2Block {
            ln_1: at.layer_norm("ln_1", hidden, eps)?,
            attn: SelfAttention {
                scores: Scores {
                    upcast: config.reorder_and_upcast_attn,
                    ..Scores::scaled_by(scale)
                },
                ..SelfAttention::new(qkv, attn.conv1d("c_proj", hidden, hidden)?, &sizes)
            },
            ln_2: at.layer_norm("ln_2", hidden, eps)?,
            mlp: Mlp {
                input: InputProjection::Plain(mlp.conv1d("c_fc", hidden, inner)?),
                output: mlp.conv1d("c_proj", inner, hidden)?,
                activation,
            },
        };
        Ok((0, Box::new(block)))
    })?;
    let vocabulary = vocabulary
        .with_positions(model.name("wpe"), model.at("wpe").tensor("weight", &[positions, hidden])?);
    let kinds = vec![LayerKind { window: None, rope: None }];
    Ok(Decoder::new(
        "gpt2",
        &sizes,
        vocabulary,
        kinds,
        layers,
        model.layer_norm("ln_f", hidden, eps)?,
    ))
}

/// GPT-2's block.
#[derive(Debug)]
struct Gpt2Block {
    ln_1: Norm,
    attn: SelfAttention,
    ln_2: Norm,
    mlp: Mlp,
}

impl Block for Gpt2Block {
    fn forward(&self, h: &Tensor, cx: &BlockCx<'_>) -> Result<Tensor> {
        let h = h.f_add(&self.attn.forward(&cx.norm(&self.ln_1, h)?, cx)?)?;
        Ok(h.f_add(&self.mlp.forward(&cx.norm(&self.ln_2, &h)?, cx)?)?)
    }

    fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a Linear)) {
        self.attn.visit(visit);
        self.mlp.visit(visit);
    }
}
