//! Gemma 2 and Gemma 3.

use serde_json::{Map, Value, json};

use super::{
    Architecture, FOUR_NORMS, GATED, HEAD_NORMS, OUTPUT, SEPARATE, Source, llama::LLAMA, rope,
};
use crate::error::Result;
use crate::weights::gguf::order::Order;

pub const GEMMA2: Architecture = Architecture {
    name: "gemma2",
    model_type: "gemma2",
    class: "Gemma2ForCausalLM",
    block: &[SEPARATE, OUTPUT, FOUR_NORMS, GATED],
    order: |_, _| Order::Same,
    one_plus: true,
    reads: &[
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "attn_logit_softcapping",
        "final_logit_softcapping",
    ],
    config: |file| {
        let mut config = gemma(file, 2, 46)?;
        let window = file.settings.unsigned("attention.sliding_window")?;
        // These defaults are the same in llama.cpp and transformers.
        config.insert("sliding_window".to_owned(), json!(window.unwrap_or(4096)));
        config.entry("attn_logit_softcapping").or_insert(json!(50.0));
        config.entry("final_logit_softcapping").or_insert(json!(30.0));
        Ok(config)
    },
    ..LLAMA
};

pub const GEMMA3: Architecture = Architecture {
    name: "gemma3",
    model_type: "gemma3_text",
    class: "Gemma3ForCausalLM",
    block: &[SEPARATE, HEAD_NORMS, OUTPUT, FOUR_NORMS, GATED],
    reads: &[
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "rope.freq_base_swa",
    ],
    config: |file| {
        let mut config = gemma(file, 6, 62)?;
        config.insert(
            "sliding_window".to_owned(),
            json!(file.settings.count("attention.sliding_window")?),
        );
        let local = file.settings.float("rope.freq_base_swa")?.unwrap_or(rope::USUAL_BASE);
        rope::unscaled_in_windows(&mut config, local);
        Ok(config)
    },
    ..GEMMA2
};

/// Creates the configuration fields that Gemma 2 and Gemma 3 share. By default, every `period`-th
/// layer has full attention, and all other layers have a sliding window.
fn gemma(file: &Source<'_>, period: u64, blocks_of_27b: usize) -> Result<Map<String, Value>> {
    let (settings, mut config) = (&file.settings, file.llama()?);
    let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
    put("hidden_activation", json!("gelu_pytorch_tanh"));
    put("layer_types", json!(settings.layer_types(period)?));
    for cap in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if let Some(value) = settings.float(cap)? {
            put(cap, json!(value));
        }
    }
    // The file does not contain `query_pre_attn_scalar`. llama.cpp uses the width of a head
    // instead. The 27B model is an exception. llama.cpp recognises this model by the number of
    // blocks.
    let scalar = if settings.layers()? == blocks_of_27b {
        settings.count("embedding_length")? / settings.count("attention.head_count")?
    } else {
        settings.count("attention.key_length")?
    };
    put("query_pre_attn_scalar", json!(scalar));
    Ok(config)
}
