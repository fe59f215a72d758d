//! OLMo 2 and OLMo 3. llama.cpp calls both `olmo2`, but only OLMo 3 has a sliding window.

use serde_json::json;

use super::{Architecture, GATED, HEAD_NORMS, OUTPUT, SEPARATE, llama::LLAMA, rope};
use crate::weights::gguf::order::Order;

pub const OLMO2: Architecture = Architecture {
    name: "olmo2",
    model_type: "olmo2",
    class: "Olmo2ForCausalLM",
    block: &[
        SEPARATE,
        HEAD_NORMS,
        OUTPUT,
        &[
            ("post_attention_norm", "post_attention_layernorm"),
            ("post_ffw_norm", "post_feedforward_layernorm"),
        ],
        GATED,
    ],
    order: |_, _| Order::Same,
    reads: &["attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa"],
    config: |file| {
        let (settings, mut config) = (&file.settings, file.llama()?);
        // 0 means no window.
        if let Some(window) = settings.unsigned("attention.sliding_window")?.filter(|w| *w > 0) {
            for (key, value) in [
                ("architectures", json!(["Olmo3ForCausalLM"])),
                ("model_type", json!("olmo3")),
                ("sliding_window", json!(window)),
                ("layer_types", json!(settings.layer_types(4)?)),
            ] {
                config.insert(key.to_owned(), value);
            }
            let theta = settings.rope_base()?;
            rope::unscaled_in_windows(
                &mut config,
                settings.float("rope.freq_base_swa")?.unwrap_or(theta),
            );
        }
        Ok(config)
    },
    ..LLAMA
};
