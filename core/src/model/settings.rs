//! A model's config.json while a model is put together from it.
//!
//! Each architecture reads the fields that transformers reads for it, under their own names. A
//! value that is not honoured and would change the result is an error. Dropout is none of these: a
//! frozen model is run as in evaluation.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};

/// Reads some of the fields.
///
/// # Errors
/// A field that is missing or of another type.
pub fn read<T: DeserializeOwned>(config: &Value) -> Result<T> {
    read_at("", config)
}

/// Reads the fields of the object that stands at `place` of the configuration.
///
/// # Errors
/// A field that is missing, not known or of another type.
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
            "" => Error::new("the model's config.json is not that of this architecture")
                .because(e.into_inner()),
            field => Error::new(format!("the model's config.json has no valid `{field}`"))
                .because(e.into_inner()),
        }
    })
}

/// The configuration with the fields of the object `defaults` that it leaves out.
pub fn with_defaults(config: &Value, defaults: &Value) -> Value {
    let mut config = config.clone();
    if let (Some(fields), Some(defaults)) = (config.as_object_mut(), defaults.as_object()) {
        for (field, value) in defaults {
            fields.entry(field).or_insert_with(|| value.clone());
        }
    }
    config
}

/// The number in `field`, where there is one.
///
/// # Errors
/// Fails if it holds something else.
pub fn number(config: &Value, field: &str) -> Result<Option<f64>> {
    match config.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => read_at(field, value).map(Some),
    }
}

/// The sizes that every configuration gives.
#[derive(Clone, Debug, Deserialize)]
pub struct Sizes {
    /// Rows of the embedding.
    pub vocab_size: i64,
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Width inside the MLP.
    pub intermediate_size: i64,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads of queries.
    pub num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
}

impl Sizes {
    /// Reads and checks them.
    ///
    /// # Errors
    /// A size that is missing or not positive, or sizes that do not fit together.
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
            return Err(Error::new("the model's config.json gives a size that is not positive"));
        }
        if sizes.num_attention_heads % sizes.kv_heads() != 0 {
            return Err(Error::new(format!(
                "the model's config.json gives {} heads of {} over {} key-value heads, which does \
                    not divide",
                sizes.num_attention_heads,
                sizes.head_dim(),
                sizes.kv_heads()
            )));
        }
        Ok(sizes)
    }

    /// Width of one head.
    pub fn head_dim(&self) -> i64 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Heads of keys and values.
    pub fn kv_heads(&self) -> i64 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Width of all queries.
    pub fn q_width(&self) -> i64 {
        self.num_attention_heads * self.head_dim()
    }

    /// Width of all keys, and of all values.
    pub fn kv_width(&self) -> i64 {
        self.kv_heads() * self.head_dim()
    }

    /// 1/√d, by which attention's products are scaled in most architectures.
    pub fn scale(&self) -> f64 {
        1.0 / (self.head_dim() as f64).sqrt()
    }
}

/// How far a layer sees, in the words of `layer_types`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum LayerType {
    /// The whole sequence so far.
    #[serde(rename = "full_attention")]
    Full,
    /// A window of it.
    #[serde(rename = "sliding_attention")]
    Sliding,
}

impl LayerType {
    /// Its index where the kinds of layers are one that sees everything, and one with a window.
    pub fn index(self) -> usize {
        usize::from(self == Self::Sliding)
    }
}

/// `layer_types`, or the `usual` type of each layer if they are not given.
///
/// # Errors
/// Fails if they are given for another number of layers.
pub fn layer_types(
    given: Option<Vec<LayerType>>,
    layers: usize,
    usual: impl Fn(usize) -> LayerType,
) -> Result<Vec<LayerType>> {
    match given {
        None => Ok((0..layers).map(usual).collect()),
        Some(types) if types.len() == layers => Ok(types),
        Some(types) => Err(Error::new(format!(
            "the model's config.json gives {} `layer_types` for {layers} layers",
            types.len()
        ))),
    }
}

/// Refuses a model whose tokens also see later ones.
///
/// # Errors
/// Fails if `use_bidirectional_attention` is true.
pub fn must_look_back(use_bidirectional_attention: Option<bool>) -> Result<()> {
    if use_bidirectional_attention == Some(true) {
        return Err(Error::new(
            "the model's config.json sets `use_bidirectional_attention`, but \
            this program's attention never looks ahead",
        )
        .hint("such a model embeds texts, and is not a language model"));
    }
    Ok(())
}

/// The window of layers with `sliding_attention` among `types`.
///
/// # Errors
/// Fails if there are such layers, but no `sliding_window`, or one that is not positive.
pub fn window_of(types: &[LayerType], sliding_window: Option<i64>) -> Result<Option<i64>> {
    let tokens = sliding_window.map(window).transpose()?;
    if tokens.is_none() && types.contains(&LayerType::Sliding) {
        return Err(Error::new(
            "the model's config.json has layers of `sliding_attention`, but no `sliding_window`",
        ));
    }
    Ok(tokens)
}

/// A number of tokens that a layer looks back.
///
/// # Errors
/// One that is not positive.
pub fn window(tokens: i64) -> Result<i64> {
    if tokens > 0 {
        Ok(tokens)
    } else {
        Err(Error::new(format!("the model's config.json gives a `sliding_window` of {tokens}")))
    }
}

/// A soft cap, which may be absent.
///
/// # Errors
/// Fails if it is not greater than 0.
pub fn cap(field: &str, cap: Option<f64>) -> Result<Option<f64>> {
    cap.map(|c| positive(field, c)).transpose()
}

/// A multiplier, or the scalar of a root: a number above 0.
///
/// # Errors
/// Fails for any other number.
pub fn positive(field: &str, x: f64) -> Result<f64> {
    if x > 0.0 && x.is_finite() {
        Ok(x)
    } else {
        Err(Error::new(format!(
            "the model's config.json gives `{field}` as {x}, which must be greater than 0"
        )))
    }
}

/// The activation of most architectures if the configuration names none.
pub fn silu() -> String {
    "silu".to_owned()
}

/// The default of fields that are on.
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

    /// What is said of a small model of that type with these fields besides, before a tensor is
    /// looked at.
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
    fn an_architecture_that_is_not_known_is_named_with_those_that_are() {
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
    fn what_changes_the_result_and_is_not_honoured_is_refused() {
        for (model_type, more, says) in [
            ("llama", json!({ "hidden_act": "xielu" }), "unknown hidden_act `xielu`"),
            ("llama", json!({ "partial_rotary_factor": 0.5 }), "turns whole heads"),
            ("llama", json!({ "rms_norm_eps": "small" }), "no valid `rms_norm_eps`"),
            ("llama", json!({ "num_key_value_heads": 3 }), "does not divide"),
            ("llama", json!({ "num_hidden_layers": 0 }), "not positive"),
            ("mistral", json!({ "sliding_window": 0 }), "`sliding_window` of 0"),
            (
                "mistral",
                json!({ "layer_types": ["full_attention", "sliding_attention"] }),
                "all of one kind",
            ),
            (
                "qwen2",
                json!({ "layer_types": ["full_attention", "sliding_attention"] }),
                "no window that is used",
            ),
            ("qwen2", json!({ "layer_types": ["full_attention"] }), "1 `layer_types` for 2 layers"),
            (
                "qwen3",
                json!({ "layer_types": ["full_attention", "chunked_attention"] }),
                "no valid `layer_types[1]`",
            ),
            ("phi3", json!({ "rope_scaling": { "type": "su" } }), "`short_factor`"),
            (
                "gemma3_text",
                json!({ "num_attention_heads": 4, "use_bidirectional_attention": true }),
                "never looks ahead",
            ),
            (
                "gemma3_text",
                json!({ "num_attention_heads": 4, "rope_parameters": { "rope_theta": 1e4 } }),
                "no valid `rope_parameters.rope_theta`",
            ),
            (
                "gemma3_text",
                json!({ "num_attention_heads": 4, "final_logit_softcapping": -1.0 }),
                "`final_logit_softcapping` as -1",
            ),
            ("gemma3", json!({}), "no `text_config`"),
            ("gemma2", json!({ "use_bidirectional_attention": true }), "never looks ahead"),
            ("gemma2", json!({ "attn_logit_softcapping": 0.0 }), "`attn_logit_softcapping` as 0"),
            ("gemma2", json!({ "sliding_window": null }), "no `sliding_window`"),
            (
                "olmo3",
                json!({ "rope_parameters": { "rope_theta": 1e4 } }),
                "no valid `rope_parameters.rope_theta`",
            ),
            (
                "smollm3",
                json!({ "num_key_value_heads": 2, "no_rope_layers": [1] }),
                "1 `no_rope_layers` for 2 layers",
            ),
            (
                "smollm3",
                json!({ "num_key_value_heads": 2, "no_rope_layer_interval": 0 }),
                "`no_rope_layer_interval` of 0",
            ),
            (
                "smollm3",
                json!({ "num_key_value_heads": 2, "layer_types": ["full_attention",
                    "sliding_attention"] }),
                "no `sliding_window`",
            ),
            ("granite", json!({ "logits_scaling": 0 }), "`logits_scaling` as 0"),
            ("gpt2", json!({ "num_attention_heads": 3 }), "3 heads, which do not divide"),
            (
                "gpt2",
                json!({ "activation_function": "gelu_10" }),
                "unknown activation_function `gelu_10`",
            ),
            ("gpt_neox", json!({ "num_key_value_heads": 1 }), "GPT-NeoX's heads"),
            ("gpt_neox", json!({}), "have no `gpt_neox.embed_in.weight`"),
        ] {
            let e = refused(model_type, more.clone());
            assert!(e.contains(says), "{model_type} with {more}: {e}");
        }
    }
}
