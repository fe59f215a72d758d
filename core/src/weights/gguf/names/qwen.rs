//! Qwen 2 and Qwen 3.

use super::{Architecture, GATED, HEAD_NORMS, OUTPUT, SEPARATE, TWO_NORMS, llama::LLAMA};
use crate::weights::gguf::order::Order;

pub const QWEN2: Architecture = Architecture {
    name: "qwen2",
    model_type: "qwen2",
    class: "Qwen2ForCausalLM",
    order: |_, _| Order::Same,
    ..LLAMA
};

pub const QWEN3: Architecture = Architecture {
    name: "qwen3",
    model_type: "qwen3",
    class: "Qwen3ForCausalLM",
    block: &[SEPARATE, HEAD_NORMS, OUTPUT, TWO_NORMS, GATED],
    ..QWEN2
};
