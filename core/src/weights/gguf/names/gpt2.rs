//! GPT-2.

use serde_json::json;

use super::{Architecture, llama::LLAMA};
use crate::error::Error;
use crate::weights::gguf::order::Order;

pub const GPT2: Architecture = Architecture {
    name: "gpt2",
    model_type: "gpt2",
    class: "GPT2LMHeadModel",
    ends: &[
        ("token_embd", "transformer.wte"),
        ("position_embd", "transformer.wpe"),
        ("output_norm", "transformer.ln_f"),
        ("output", "lm_head"),
    ],
    blocks: "transformer.h",
    block: &[&[
        ("attn_norm", "ln_1"),
        ("attn_qkv", "attn.c_attn"),
        ("attn_output", "attn.c_proj"),
        ("ffn_norm", "ln_2"),
        ("ffn_up", "mlp.c_fc"),
        ("ffn_down", "mlp.c_proj"),
    ]],
    // transformers' Conv1D stores weights as `[in out]`. GGUF files store them as `[out in]`, like
    // the weights of linear modules.
    order: |name, _| {
        if [".c_attn.weight", ".c_proj.weight", ".c_fc.weight"]
            .iter()
            .any(|end| name.ends_with(end))
        {
            Order::Transposed
        } else {
            Order::Same
        }
    },
    config: |file| {
        let (settings, mut config) = (&file.settings, file.base()?);
        let (width, heads) = (settings.count("embedding_length")?, file.shape.heads);
        if file.shape.key_value_heads != heads || file.shape.head != width / heads {
            let (keys, head) = (file.shape.key_value_heads, file.shape.head);
            return Err(Error::new(format!(
                "a GPT-2 model of width {width} with {heads} heads cannot have {keys} key-value \
                heads of width {head}"
            )));
        }
        // llama.cpp's converter always sets `feed_forward_length` to four times the width of the
        // model, even if the model's MLP has a different width. Use the tensor's shape instead.
        let inner = match (file.rows)("transformer.h.0.mlp.c_fc.weight") {
            Some(rows) => rows,
            None => settings.count("feed_forward_length")? as i64,
        };
        for (key, value) in [
            ("n_embd", json!(width)),
            ("n_layer", json!(settings.layers()?)),
            ("n_head", json!(heads)),
            ("n_inner", json!(inner)),
            ("n_positions", json!(settings.count("context_length")?)),
            ("layer_norm_epsilon", json!(settings.number("attention.layer_norm_epsilon")?)),
            ("activation_function", json!("gelu_new")),
        ] {
            config.insert(key.to_owned(), value);
        }
        Ok(config)
    },
    ..LLAMA
};
