//! Phi-3.

use serde_json::json;

use super::{Architecture, OUTPUT, TWO_NORMS, llama::LLAMA};
use crate::weights::gguf::order::Order;

pub const PHI3: Architecture = Architecture {
    name: "phi3",
    model_type: "phi3",
    class: "Phi3ForCausalLM",
    block: &[
        &[("attn_qkv", "self_attn.qkv_proj")],
        OUTPUT,
        TWO_NORMS,
        // Despite its name, this tensor contains both the gate and the up projection.
        &[("ffn_up", "mlp.gate_up_proj"), ("ffn_down", "mlp.down_proj")],
    ],
    order: |_, _| Order::Same,
    partial: true,
    reads: &["attention.sliding_window"],
    config: |file| {
        let mut config = file.llama()?;
        // 0 means no window.
        let window = file.settings.unsigned("attention.sliding_window")?.filter(|w| *w > 0);
        config.insert("sliding_window".to_owned(), json!(window));
        if let Some(original) = file.settings.unsigned("rope.scaling.original_context_length")? {
            config.insert("original_max_position_embeddings".to_owned(), json!(original));
        }
        Ok(config)
    },
    ..LLAMA
};
