//! Converts llama.cpp's tensor names and settings to Hugging Face's. Each submodule describes one
//! family of architectures.
//!
//! The names and layouts come from llama.cpp's `convert_hf_to_gguf.py`. The defaults for missing
//! settings come from llama.cpp's loader (`src/models`).

mod architecture;
mod gemma;
mod gpt2;
mod gpt_neox;
mod granite;
mod llama;
mod olmo;
mod phi3;
mod qwen;
mod rope;
mod settings;
mod smollm3;

use serde_json::{Map, Value, json};

use super::metadata::Metadata;
use super::order::Order;
use crate::error::{Error, Result};
pub use architecture::Architecture;
use architecture::Names;
pub use rope::RopeFactors;
use settings::Settings;

/// The supported architectures.
static KNOWN: [Architecture; 11] = [
    llama::LLAMA,
    qwen::QWEN2,
    qwen::QWEN3,
    gemma::GEMMA2,
    gemma::GEMMA3,
    phi3::PHI3,
    gpt_neox::GPT_NEOX,
    gpt2::GPT2,
    olmo::OLMO2,
    smollm3::SMOLLM3,
    granite::GRANITE,
];

const SEPARATE: Names = &[
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
];
const OUTPUT: Names = &[("attn_output", "self_attn.o_proj")];
const HEAD_NORMS: Names =
    &[("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")];
const TWO_NORMS: Names =
    &[("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")];
const FOUR_NORMS: Names = &[
    ("attn_norm", "input_layernorm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];
const GATED: Names =
    &[("ffn_gate", "mlp.gate_proj"), ("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj")];

/// Looks up the architecture of a file.
///
/// # Errors
/// Fails if the file does not name its architecture, or if the architecture is not supported.
pub fn architecture(meta: &Metadata) -> Result<&'static Architecture> {
    let name =
        meta.text("general.architecture")?.ok_or_else(|| meta.missing("general.architecture"))?;
    KNOWN.iter().find(|a| a.name == name).ok_or_else(|| {
        Error::unknown("GGUF architecture", name, KNOWN.iter().map(|a| a.name)).hint(
            "use llama.cpp's names: `llama` for Mistral models, and `olmo2` for OLMo 3 models",
        )
    })
}

impl Architecture {
    /// Returns the Hugging Face name of the tensor that llama.cpp calls `name`, or `None` if the
    /// architecture does not have this tensor.
    pub fn rename(&self, name: &str) -> Option<String> {
        let (module, part) =
            name.rsplit_once('.').filter(|(_, part)| matches!(*part, "weight" | "bias"))?;
        if let Some((_, hf_name)) = self.ends.iter().find(|(gguf_name, _)| *gguf_name == module) {
            return Some(format!("{hf_name}.{part}"));
        }
        let (layer, module) = module.strip_prefix("blk.")?.split_once('.')?;
        let layer: u32 = layer.parse().ok()?;
        let (_, hf_name) =
            self.block.iter().copied().flatten().find(|(gguf_name, _)| *gguf_name == module)?;
        Some(format!("{}.{layer}.{hf_name}.{part}", self.blocks))
    }

    /// The embedding tensor's Hugging Face name.
    pub fn embedding(&self) -> String {
        format!("{}.weight", self.ends[0].1)
    }

    /// The output head tensor's Hugging Face name.
    fn head(&self) -> String {
        format!("{}.weight", self.ends[self.ends.len() - 1].1)
    }

    /// Returns how the rows of a tensor are ordered in the file. `renamed` is the tensor's Hugging
    /// Face name.
    pub fn order(&self, renamed: &str, shape: &Shape) -> Order {
        (self.order)(renamed, shape)
    }

    /// Returns the value to subtract from each number in the file to get Hugging Face's weights.
    /// `renamed` is the tensor's Hugging Face name.
    pub fn offset(&self, renamed: &str) -> f32 {
        if self.one_plus && renamed.ends_with("norm.weight") { 1.0 } else { 0.0 }
    }

    /// Reads the sizes that are needed to convert the tensors.
    ///
    /// # Errors
    /// Fails if a setting is missing or out of range.
    pub fn shape(&self, meta: &Metadata) -> Result<Shape> {
        let settings = Settings { architecture: self, meta };
        let heads = settings.count("attention.head_count")?;
        let key_value_heads = if settings.has("attention.head_count_kv") {
            settings.count("attention.head_count_kv")?
        } else {
            heads
        };
        let head = if settings.has("attention.key_length") {
            settings.count("attention.key_length")?
        } else {
            settings.count("embedding_length")? / heads
        };
        let rotated = if settings.has("rope.dimension_count") {
            settings.count("rope.dimension_count")?
        } else {
            head
        };
        if rotated > head || !rotated.is_multiple_of(2) {
            let key = settings.key("rope.dimension_count");
            return Err(Error::new(format!(
                "`{key}` must be even and at most {head} (the width of a head), got {rotated}"
            )));
        }
        Ok(Shape { heads, key_value_heads, head, rotated })
    }

    /// Creates the configuration in the format of Hugging Face's config.json. `vocab` is the number
    /// of rows in the embedding. `rows` maps a tensor's Hugging Face name to its number of rows in
    /// the file.
    ///
    /// # Errors
    /// Fails if a setting is missing, or if the file has an unsupported setting that may change the
    /// model's output.
    pub fn config(
        &self,
        meta: &Metadata,
        vocab: i64,
        rope: &RopeFactors,
        rows: &dyn Fn(&str) -> Option<i64>,
    ) -> Result<Value> {
        let settings = Settings { architecture: self, meta };
        settings.must_be_read()?;
        let shape = self.shape(meta)?;
        (self.config)(&Source { settings, shape, vocab, rope, rows }).map(Value::Object)
    }
}

/// Inputs for creating a configuration.
struct Source<'a> {
    settings: Settings<'a>,
    shape: Shape,
    vocab: i64,
    rope: &'a RopeFactors,
    rows: &'a dyn Fn(&str) -> Option<i64>,
}

impl Source<'_> {
    /// Creates the configuration fields that all architectures share.
    fn base(&self) -> Result<Map<String, Value>> {
        let architecture = self.settings.architecture;
        let mut config = Map::new();
        let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
        put("architectures", json!([architecture.class]));
        put("model_type", json!(architecture.model_type));
        put("vocab_size", json!(self.vocab));
        put("tie_word_embeddings", json!((self.rows)(&architecture.head()).is_none()));
        for (key, gguf_name) in
            [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")]
        {
            if let Some(id) =
                self.settings.meta.unsigned(&format!("tokenizer.ggml.{gguf_name}_token_id"))?
            {
                put(key, json!(id));
            }
        }
        Ok(config)
    }

    /// Creates the configuration fields that all architectures with rotary positions share.
    fn rotary(&self) -> Result<Map<String, Value>> {
        let (settings, architecture, shape) =
            (&self.settings, self.settings.architecture, &self.shape);
        let has = |module: &str, part: &str| {
            (self.rows)(&format!("{}.0.{module}.{part}", architecture.blocks)).is_some()
        };
        let mut config = self.base()?;
        let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
        put("hidden_size", json!(settings.count("embedding_length")?));
        put("intermediate_size", json!(settings.count("feed_forward_length")?));
        put("num_hidden_layers", json!(settings.layers()?));
        put("num_attention_heads", json!(shape.heads));
        put("num_key_value_heads", json!(shape.key_value_heads));
        if settings.has("attention.key_length") {
            if settings.has("attention.value_length")
                && settings.count("attention.value_length")? != shape.head
            {
                return Err(Error::new(
                    "GGUF models with different widths for keys and values are not supported",
                ));
            }
            put("head_dim", json!(shape.head));
        }
        put("hidden_act", json!("silu"));
        put("rope_parameters", settings.rope(self.rope, shape)?);
        put("max_position_embeddings", json!(settings.count("context_length")?));
        put("attention_bias", json!(has(architecture.block[0][0].1, "bias")));
        put("mlp_bias", json!(has("mlp.up_proj", "bias")));
        Ok(config)
    }

    /// The fields of Llama.
    fn llama(&self) -> Result<Map<String, Value>> {
        let mut config = self.rotary()?;
        config.insert(
            "rms_norm_eps".to_owned(),
            json!(self.settings.number("attention.layer_norm_rms_epsilon")?),
        );
        Ok(config)
    }
}

/// Sizes that are needed to convert the tensors.
#[derive(Debug)]
pub struct Shape {
    heads: usize,
    key_value_heads: usize,
    /// Width of one head.
    head: usize,
    /// Number of rotated dimensions in each head.
    rotated: usize,
}
