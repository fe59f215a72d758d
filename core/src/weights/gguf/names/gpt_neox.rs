//! GPT-NeoX.

use serde_json::json;

use super::{Architecture, TWO_NORMS, llama::LLAMA};
use crate::weights::gguf::order::Order;

pub const GPT_NEOX: Architecture = Architecture {
    name: "gptneox",
    model_type: "gpt_neox",
    class: "GPTNeoXForCausalLM",
    ends: &[
        ("token_embd", "gpt_neox.embed_in"),
        ("output_norm", "gpt_neox.final_layer_norm"),
        ("output", "embed_out"),
    ],
    blocks: "gpt_neox.layers",
    block: &[
        &[("attn_qkv", "attention.query_key_value"), ("attn_output", "attention.dense")],
        TWO_NORMS,
        &[("ffn_up", "mlp.dense_h_to_4h"), ("ffn_down", "mlp.dense_4h_to_h")],
    ],
    order: |name, shape| {
        if name.contains(".query_key_value.") { Order::Thirds(shape.heads) } else { Order::Same }
    },
    partial: true,
    reads: &["use_parallel_residual"],
    config: |file| {
        let mut config = file.rotary()?;
        config.insert(
            "layer_norm_eps".to_owned(),
            json!(file.settings.number("attention.layer_norm_epsilon")?),
        );
        config.insert("hidden_act".to_owned(), json!("gelu"));
        config.insert(
            "use_parallel_residual".to_owned(),
            json!(file.settings.truth("use_parallel_residual")?.unwrap_or(true)),
        );
        Ok(config)
    },
    ..LLAMA
};
