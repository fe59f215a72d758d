//! From llama.cpp's names of tensors and settings to Hugging Face's, one architecture an entry.

use serde_json::{Map, Value, json};

use super::metadata::Metadata;
use crate::error::{Error, Result};

/// How one of llama.cpp's architectures is written in Hugging Face's words.
#[derive(Debug)]
pub struct Architecture {
    /// `general.architecture`, the prefix of its settings.
    name: &'static str,
    /// Hugging Face's `model_type`.
    model_type: &'static str,
    class: &'static str,
    /// Whether the rows of the q and k projections are stored with the two halves of each head interleaved.
    interleaved: bool,
    /// What else stands in its blocks: (llama.cpp's, Hugging Face's).
    more: &'static [(&'static str, &'static str)],
}

const ARCHITECTURES: [Architecture; 3] = [
    Architecture { name: "llama", model_type: "llama", class: "LlamaForCausalLM", interleaved: true, more: &[] },
    Architecture { name: "qwen2", model_type: "qwen2", class: "Qwen2ForCausalLM", interleaved: false, more: &[] },
    Architecture {
        name: "qwen3",
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        interleaved: false,
        more: &[("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")],
    },
];

const BLOCK: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The architecture that the file says it has.
///
/// # Errors
/// One that is not known, or none.
pub fn architecture(meta: &Metadata) -> Result<&'static Architecture> {
    let name = meta.text("general.architecture")?.ok_or_else(|| meta.missing("general.architecture"))?;
    ARCHITECTURES.iter().find(|a| a.name == name).ok_or_else(|| {
        Error::unknown("GGUF architecture", name, ARCHITECTURES.map(|a| a.name))
            .hint("more architectures are read from Hugging Face folders than from GGUF files")
    })
}

impl Architecture {
    /// Hugging Face's name of a tensor, where it has one.
    pub fn rename(&self, name: &str) -> Option<String> {
        let renamed = match name {
            "token_embd.weight" => "model.embed_tokens.weight",
            "output_norm.weight" => "model.norm.weight",
            "output.weight" => "lm_head.weight",
            _ => {
                let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
                let layer: u32 = layer.parse().ok()?;
                let (module, part) = rest.rsplit_once('.')?;
                let (_, module) = BLOCK.iter().chain(self.more).find(|(theirs, _)| *theirs == module)?;
                return matches!(part, "weight" | "bias").then(|| format!("model.layers.{layer}.{module}.{part}"));
            }
        };
        Some(renamed.to_owned())
    }

    /// How many heads the rows of a tensor are to be put back in order for, `None` where they stand in order.
    pub fn heads_out_of_order(&self, renamed: &str, shape: &Shape) -> Option<usize> {
        if !self.interleaved {
            None
        } else if renamed.contains(".q_proj.") {
            Some(shape.heads)
        } else if renamed.contains(".k_proj.") {
            Some(shape.key_value_heads)
        } else {
            None
        }
    }

    fn setting(&self, name: &str) -> String {
        format!("{}.{name}", self.name)
    }

    fn count(&self, meta: &Metadata, name: &str) -> Result<usize> {
        let key = self.setting(name);
        let count = meta.unsigned(&key)?.ok_or_else(|| meta.missing(&key))?;
        // The bound keeps products of counts far from overflow.
        match usize::try_from(count) {
            Ok(count @ 1..=0x7fff_ffff) => Ok(count),
            _ => Err(Error::new(format!("`{key}` is {count}, which no model has"))),
        }
    }

    /// The sizes that reading the tensors needs.
    ///
    /// # Errors
    /// A setting that is missing or out of range.
    pub fn shape(&self, meta: &Metadata) -> Result<Shape> {
        let heads = self.count(meta, "attention.head_count")?;
        let key_value_heads = if meta.has(&self.setting("attention.head_count_kv")) { self.count(meta, "attention.head_count_kv")? } else { heads };
        Ok(Shape { heads, key_value_heads })
    }

    /// Hugging Face's config.json, made from the file's settings. `has` says whether the file has a tensor of
    /// Hugging Face's name, `vocab` is how many rows the embedding has.
    ///
    /// # Errors
    /// A setting that is missing, or one that would change the numbers and is not known here.
    pub fn config(&self, meta: &Metadata, vocab: i64, has: impl Fn(&str) -> bool) -> Result<Value> {
        if meta.unsigned(&self.setting("expert_count"))?.unwrap_or(0) > 0 {
            return Err(Error::new("mixtures of experts are not read from GGUF files"));
        }
        let shape = self.shape(meta)?;
        let epsilon = self.setting("attention.layer_norm_rms_epsilon");
        let mut config = Map::new();
        let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
        put("architectures", json!([self.class]));
        put("model_type", json!(self.model_type));
        put("hidden_size", json!(self.count(meta, "embedding_length")?));
        put("intermediate_size", json!(self.count(meta, "feed_forward_length")?));
        put("num_hidden_layers", json!(self.count(meta, "block_count")?));
        put("num_attention_heads", json!(shape.heads));
        put("num_key_value_heads", json!(shape.key_value_heads));
        if meta.has(&self.setting("attention.key_length")) {
            put("head_dim", json!(self.count(meta, "attention.key_length")?));
        }
        put("hidden_act", json!("silu"));
        put("rms_norm_eps", json!(meta.float(&epsilon)?.ok_or_else(|| meta.missing(&epsilon))?));
        put("rope_parameters", self.rope(meta)?);
        put("max_position_embeddings", json!(self.count(meta, "context_length")?));
        put("vocab_size", json!(vocab));
        put("tie_word_embeddings", json!(!has("lm_head.weight")));
        put("attention_bias", json!(has("model.layers.0.self_attn.q_proj.bias")));
        put("mlp_bias", json!(has("model.layers.0.mlp.up_proj.bias")));
        for (key, theirs) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
            if let Some(id) = meta.unsigned(&format!("tokenizer.ggml.{theirs}_token_id"))? {
                put(key, json!(id));
            }
        }
        Ok(Value::Object(config))
    }

    fn rope(&self, meta: &Metadata) -> Result<Value> {
        // llama.cpp's own default.
        let theta = meta.float(&self.setting("rope.freq_base"))?.unwrap_or(10000.0);
        let factor = meta.float(&self.setting("rope.scaling.factor"))?;
        match meta.text(&self.setting("rope.scaling.type"))?.unwrap_or("none") {
            "linear" if factor.is_some_and(|f| f != 1.0) => Ok(json!({ "rope_theta": theta, "rope_type": "linear", "factor": factor })),
            "none" | "linear" => Ok(json!({ "rope_theta": theta, "rope_type": "default" })),
            other => Err(Error::new(format!("the rotary scaling `{other}` is not read from GGUF files")).hint("take the model's Hugging Face folder")),
        }
    }
}

/// The counts that reading the tensors needs.
#[derive(Debug)]
pub struct Shape {
    heads: usize,
    key_value_heads: usize,
}
