//! The Llama architecture. Most other architectures are defined by their differences from it.

use super::{Architecture, GATED, OUTPUT, SEPARATE, TWO_NORMS};
use crate::weights::gguf::order::Order;

/// llama.cpp also uses this architecture for Mistral models. They have had no sliding window since
/// v0.2.
pub const LLAMA: Architecture = Architecture {
    name: "llama",
    model_type: "llama",
    class: "LlamaForCausalLM",
    ends: &[
        ("token_embd", "model.embed_tokens"),
        ("output_norm", "model.norm"),
        ("output", "lm_head"),
    ],
    blocks: "model.layers",
    block: &[SEPARATE, OUTPUT, TWO_NORMS, GATED],
    order: |name, shape| match name {
        name if name.contains(".q_proj.") => {
            Order::Pairs { heads: shape.heads, rotated: shape.rotated }
        }
        name if name.contains(".k_proj.") => {
            Order::Pairs { heads: shape.key_value_heads, rotated: shape.rotated }
        }
        _ => Order::Same,
    },
    one_plus: false,
    partial: false,
    reads: &[],
    harmless: &[],
    config: |file| file.llama(),
};
