//! SmolLM3.

use serde_json::json;

use super::{Architecture, llama::LLAMA};

/// Every fourth layer has no rotary positions. The interval is hard-coded in llama.cpp and not
/// stored in the file.
const NO_ROPE_INTERVAL: usize = 4;

pub const SMOLLM3: Architecture = Architecture {
    name: "smollm3",
    model_type: "smollm3",
    class: "SmolLM3ForCausalLM",
    config: |file| {
        let mut config = file.llama()?;
        let layers = 1..=file.settings.layers()?;
        let rotates: Vec<u8> =
            layers.map(|layer| u8::from(!layer.is_multiple_of(NO_ROPE_INTERVAL))).collect();
        config.insert("no_rope_layers".to_owned(), json!(rotates));
        config.insert("no_rope_layer_interval".to_owned(), json!(NO_ROPE_INTERVAL));
        Ok(config)
    },
    ..LLAMA
};
