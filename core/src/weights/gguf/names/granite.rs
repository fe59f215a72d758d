//! Granite, including Granite 4 models without Mamba layers or experts.

use serde_json::json;

use super::{Architecture, llama::LLAMA};

pub const GRANITE: Architecture = Architecture {
    name: "granite",
    model_type: "granite",
    class: "GraniteForCausalLM",
    reads: &["attention.scale", "embedding_scale", "logit_scale", "residual_scale"],
    // The converter writes these settings for every Granite 4 model, even without Mamba layers or
    // experts.
    harmless: &[
        "expert_shared_feed_forward_length",
        "ssm.conv_kernel",
        "ssm.group_count",
        "ssm.inner_size",
        "ssm.state_size",
        "ssm.time_step_rank",
    ],
    config: |file| {
        let (settings, mut config) = (&file.settings, file.llama()?);
        // In Granite files, this key is false if the model has no rotary positions.
        if settings.boolean("rope.scaling.finetuned")? == Some(false) {
            return Err(settings.unsupported("rope.scaling.finetuned"));
        }
        for (field, name, usual) in [
            ("attention_multiplier", "attention.scale", 1.0 / (file.shape.head as f64).sqrt()),
            ("embedding_multiplier", "embedding_scale", 1.0),
            ("residual_multiplier", "residual_scale", 1.0),
            ("logits_scaling", "logit_scale", 1.0),
        ] {
            // 0 means the default value.
            let value = settings.float(name)?.filter(|x| *x != 0.0).unwrap_or(usual);
            config.insert(field.to_owned(), json!(value));
        }
        Ok(config)
    },
    ..LLAMA
};
