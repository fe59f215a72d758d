//! Reads a model's config.json.
//!
//! Each architecture reads the same fields as its implementation in transformers. A value that is
//! not supported is an error if it would change the result. Dropout is ignored, because the frozen
//! model always runs in evaluation mode.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};

/// Reads the fields of `T` from a configuration, and ignores all other fields.
///
/// # Errors
/// Fails if a field is missing or has the wrong type.
pub fn read<T: DeserializeOwned>(config: &Value) -> Result<T> {
    read_at("", config)
}

/// Reads the fields of `T` from `value`. Error messages show `place`, the path of `value` in the
/// configuration.
///
/// # Errors
/// Fails if a field is missing or has the wrong type. If `T` denies unknown fields, also fails if a
/// field is unknown.
pub fn read_at<T: DeserializeOwned>(place: &str, value: &Value) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let path = e.path().to_string();
        let field = [place, if path == "." { "" } else { &path }]
            .iter()
            .filter(|p| !p.is_empty())
            .copied()
            .collect::<Vec<_>>()
            .join(".");
        match field.as_str() {
            "" => Error::new("the model's config.json is invalid for its architecture")
                .because(e.into_inner()),
            field => Error::new(format!("invalid `{field}` in the model's config.json"))
                .because(e.into_inner()),
        }
    })
}

/// Adds the fields of `defaults` that are missing from the configuration.
pub fn with_defaults(config: &Value, defaults: &Value) -> Value {
    let mut config = config.clone();
    if let (Some(fields), Some(defaults)) = (config.as_object_mut(), defaults.as_object()) {
        for (field, value) in defaults {
            fields.entry(field).or_insert_with(|| value.clone());
        }
    }
    config
}

/// Reads a numeric field. Returns `None` if the field is missing or null.
///
/// # Errors
/// Fails if the field is not a number.
pub fn number(config: &Value, field: &str) -> Result<Option<f64>> {
    match config.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => read_at(field, value).map(Some),
    }
}

/// The sizes of a model.
#[derive(Clone, Debug, Deserialize)]
pub struct Sizes {
    /// Number of rows of the embedding.
    pub vocab_size: i64,
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Inner width of the MLP.
    pub intermediate_size: i64,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
}

impl Sizes {
    /// Reads and checks the sizes.
    ///
    /// # Errors
    /// Fails if a size is missing or not positive, or if the number of query heads is not a
    /// multiple of the number of key-value heads.
    pub fn read(config: &Value) -> Result<Self> {
        let sizes: Self = read(config)?;
        let positive = [
            sizes.vocab_size,
            sizes.hidden_size,
            sizes.intermediate_size,
            sizes.num_attention_heads,
        ];
        if positive.iter().any(|v| *v <= 0)
            || sizes.kv_heads() <= 0
            || sizes.head_dim() <= 0
            || sizes.num_hidden_layers == 0
        {
            return Err(Error::new("every size in the model's config.json must be greater than 0"));
        }
        if sizes.num_attention_heads % sizes.kv_heads() != 0 {
            return Err(Error::new(format!(
                "`num_attention_heads` in the model's config.json must be a multiple of \
                    `num_key_value_heads`, got {} and {}",
                sizes.num_attention_heads,
                sizes.kv_heads()
            )));
        }
        Ok(sizes)
    }

    /// Width of one head.
    pub fn head_dim(&self) -> i64 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Number of key-value heads.
    pub fn kv_heads(&self) -> i64 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Total width of the queries of all heads.
    pub fn q_width(&self) -> i64 {
        self.num_attention_heads * self.head_dim()
    }

    /// Total width of the keys of all heads. The values have the same total width.
    pub fn kv_width(&self) -> i64 {
        self.kv_heads() * self.head_dim()
    }

    /// 1/√d, the factor that scales attention scores in most architectures.
    pub fn scale(&self) -> f64 {
        1.0 / (self.head_dim() as f64).sqrt()
    }
}

/// The type of attention in a layer: an entry of `layer_types` in config.json.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum LayerType {
    /// The layer attends to the whole sequence so far.
    #[serde(rename = "full_attention")]
    Full,
    /// The layer attends to a sliding window.
    #[serde(rename = "sliding_attention")]
    Sliding,
}

impl LayerType {
    /// 0 for full attention, and 1 for a sliding window. Architectures with both types list their
    /// two layer kinds in this order.
    pub fn index(self) -> usize {
        usize::from(self == Self::Sliding)
    }
}

/// Returns the type of each layer. `given` is the value of `layer_types` in config.json. If it is
/// `None`, `usual(i)` determines the type of layer i.
///
/// # Errors
/// Fails if the number of types is not the number of layers.
pub fn layer_types(
    given: Option<Vec<LayerType>>,
    layers: usize,
    usual: impl Fn(usize) -> LayerType,
) -> Result<Vec<LayerType>> {
    match given {
        None => Ok((0..layers).map(usual).collect()),
        Some(types) if types.len() == layers => Ok(types),
        Some(types) => Err(Error::new(format!(
            "`layer_types` in the model's config.json must have one entry for each of {layers} \
                layers, got {}",
            types.len()
        ))),
    }
}

/// Checks that attention is causal, i.e. that tokens do not attend to later tokens.
///
/// # Errors
/// Fails if `use_bidirectional_attention` is true.
pub fn must_look_back(use_bidirectional_attention: Option<bool>) -> Result<()> {
    if use_bidirectional_attention == Some(true) {
        return Err(Error::new(
            "the model's config.json sets `use_bidirectional_attention`, but \
            only causal attention is supported",
        )
        .hint(
            "use a causal language model; models with bidirectional attention only compute text \
                embeddings",
        ));
    }
    Ok(())
}

/// Returns the window size of the `sliding_attention` layers, or `None` if `sliding_window` is not
/// set.
///
/// # Errors
/// Fails if `sliding_window` is not positive. Also fails if a layer has the type
/// `sliding_attention` but `sliding_window` is not set.
pub fn window_of(types: &[LayerType], sliding_window: Option<i64>) -> Result<Option<i64>> {
    let tokens = sliding_window.map(window).transpose()?;
    if tokens.is_none() && types.contains(&LayerType::Sliding) {
        return Err(Error::new(
            "the model's config.json must set `sliding_window`, because some layers have the type \
                `sliding_attention`",
        ));
    }
    Ok(tokens)
}

/// Checks the size of a sliding window in tokens.
///
/// # Errors
/// Fails if `tokens` is not greater than 0.
pub fn window(tokens: i64) -> Result<i64> {
    if tokens > 0 {
        Ok(tokens)
    } else {
        Err(Error::new(format!(
            "`sliding_window` in the model's config.json must be greater than 0, got {tokens}"
        )))
    }
}

/// Checks an optional soft cap.
///
/// # Errors
/// Fails if `cap` is not greater than 0.
pub fn cap(field: &str, cap: Option<f64>) -> Result<Option<f64>> {
    cap.map(|c| positive(field, c)).transpose()
}

/// Checks a number that must be greater than 0, such as a multiplier.
///
/// # Errors
/// Fails if `x` is not greater than 0, or not finite.
pub fn positive(field: &str, x: f64) -> Result<f64> {
    if x > 0.0 && x.is_finite() {
        Ok(x)
    } else {
        Err(Error::new(format!(
            "`{field}` in the model's config.json must be greater than 0, got {x}"
        )))
    }
}

/// The name of the activation that most architectures use by default.
pub fn silu() -> String {
    "silu".to_owned()
}

/// The serde default of boolean fields that default to true.
pub fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use indexmap::IndexMap;
    use serde_json::json;
    use tch::{Device, Kind};

    use crate::model::Model;

    use super::*;

    /// Loads a small model with the additional configuration fields `more`, and returns the error.
    /// The model has no tensors: the error occurs before tensors are read.
    fn refused(model_type: &str, more: Value) -> String {
        let mut config = json!({ "model_type": model_type, "vocab_size": 16, "hidden_size": 16,
            "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2 });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        format!(
            "{:?}",
            Model::from_tensors(&config, IndexMap::new(), Kind::Float, Device::Cpu).unwrap_err()
        )
    }

    #[test]
    fn the_error_for_an_unknown_architecture_lists_the_supported_ones() {
        let e = refused("mixtral", json!({ "architectures": ["MixtralForCausalLM"] }));
        assert!(
            e.contains("unknown architecture `mixtral`") && e.contains("`MixtralForCausalLM`"),
            "{e}"
        );
        assert!(
            e.contains(
                "valid: gemma2, gemma3, gemma3_text, gpt2, gpt_neox, granite, llama, \
            mistral, olmo2, olmo3, phi3, qwen2, qwen3, smollm3"
            ),
            "{e}"
        );
        assert!(refused("qwen_3", json!({})).contains("did you mean `qwen3`?"));
    }

    #[test]
    fn unsupported_values_that_would_change_the_result_are_refused() {
        for (model_type, more, expected) in [
            ("llama", json!({ "hidden_act": "xielu" }), "unknown hidden_act `xielu`"),
            ("llama", json!({ "partial_rotary_factor": 0.5 }), "rotates whole heads"),
            ("llama", json!({ "rms_norm_eps": "small" }), "invalid `rms_norm_eps`"),
            (
                "llama",
                json!({ "num_key_value_heads": 3 }),
                "multiple of `num_key_value_heads`, got 2 and 3",
            ),
            ("llama", json!({ "num_hidden_layers": 0 }), "must be greater than 0"),
            (
                "mistral",
                json!({ "sliding_window": 0 }),
                "`sliding_window` in the model's config.json must be greater than 0, got 0",
            ),
            (
                "mistral",
                json!({ "layer_types": ["full_attention", "sliding_attention"] }),
                "must be `sliding_attention` if it has",
            ),
            (
                "qwen2",
                json!({ "layer_types": ["full_attention", "sliding_attention"] }),
                "does not enable a window",
            ),
            (
                "qwen2",
                json!({ "layer_types": ["full_attention"] }),
                "one entry for each of 2 layers, got 1",
            ),
            (
                "qwen3",
                json!({ "layer_types": ["full_attention", "chunked_attention"] }),
                "invalid `layer_types[1]`",
            ),
            ("phi3", json!({ "rope_scaling": { "type": "su" } }), "`short_factor`"),
            (
                "gemma3_text",
                json!({ "num_attention_heads": 4, "use_bidirectional_attention": true }),
                "only causal attention is supported",
            ),
            (
                "gemma3_text",
                json!({ "num_attention_heads": 4, "rope_parameters": { "rope_theta": 1e4 } }),
                "invalid `rope_parameters.rope_theta`",
            ),
            (
                "gemma3_text",
                json!({ "num_attention_heads": 4, "final_logit_softcapping": -1.0 }),
                "`final_logit_softcapping` in the model's config.json must be greater than 0",
            ),
            ("gemma3", json!({}), "must set `text_config`"),
            (
                "gemma2",
                json!({ "use_bidirectional_attention": true }),
                "only causal attention is supported",
            ),
            (
                "gemma2",
                json!({ "attn_logit_softcapping": 0.0 }),
                "`attn_logit_softcapping` in the model's config.json must be greater than 0",
            ),
            ("gemma2", json!({ "sliding_window": null }), "must set `sliding_window`"),
            (
                "olmo3",
                json!({ "rope_parameters": { "rope_theta": 1e4 } }),
                "invalid `rope_parameters.rope_theta`",
            ),
            (
                "smollm3",
                json!({ "num_key_value_heads": 2, "no_rope_layers": [1] }),
                "one entry for each of 2 layers, got 1",
            ),
            (
                "smollm3",
                json!({ "num_key_value_heads": 2, "no_rope_layer_interval": 0 }),
                "`no_rope_layer_interval` in the model's config.json must be greater than 0",
            ),
            (
                "smollm3",
                json!({ "num_key_value_heads": 2, "layer_types": ["full_attention",
                    "sliding_attention"] }),
                "must set `sliding_window`",
            ),
            (
                "granite",
                json!({ "logits_scaling": 0 }),
                "`logits_scaling` in the model's config.json must be greater than 0, got 0",
            ),
            (
                "gpt2",
                json!({ "num_attention_heads": 3 }),
                "must be a multiple of the number of heads, got 16 and 3",
            ),
            (
                "gpt2",
                json!({ "activation_function": "gelu_10" }),
                "unknown activation_function `gelu_10`",
            ),
            (
                "gpt_neox",
                json!({ "num_key_value_heads": 1 }),
                "a GPT-NeoX model's config.json must",
            ),
            ("gpt_neox", json!({}), "`gpt_neox.embed_in.weight` is missing"),
        ] {
            let e = refused(model_type, more.clone());
            assert!(e.contains(expected), "{model_type} with {more}: {e}");
        }
    }
}
