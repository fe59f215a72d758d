//! From llama.cpp's names of tensors and settings to Hugging Face's, one architecture an entry.

use serde_json::{Map, Value, json};

use super::metadata::Metadata;
use super::order::Order;
use crate::error::{Error, Result};

/// (llama.cpp's name, Hugging Face's).
type Names = &'static [(&'static str, &'static str)];

/// How one of llama.cpp's architectures is written in Hugging Face's words.
#[derive(Debug)]
pub struct Architecture {
    /// `general.architecture`, the prefix of its settings.
    name: &'static str,
    /// Hugging Face's `model_type`.
    model_type: &'static str,
    class: &'static str,
    /// The embedding, the last norm and the output head.
    ends: [&'static str; 3],
    /// In front of a block's number.
    blocks: &'static str,
    /// What stands in its blocks.
    block: &'static [Names],
    /// Which tensors' rows are to be put back in order.
    order: fn(&str, &Shape) -> Order,
    /// Whether what the file has of a norm is one more than what Hugging Face has.
    one_plus: bool,
    /// True if Hugging Face's configuration has `partial_rotary_factor`, which rotates part of each
    /// head.
    partial: bool,
    /// The settings that only this architecture reads, in `more`.
    reads: &'static [&'static str],
    /// Adds to the configuration what other architectures have not.
    more: fn(&Settings<'_>, &mut Map<String, Value>) -> Result<()>,
}

/// llama.cpp's names of what stands outside of blocks.
const ENDS: [&str; 3] = ["token_embd", "output_norm", "output"];
const SEPARATE: Names = &[("attn_q", "self_attn.q_proj"), ("attn_k", "self_attn.k_proj"), ("attn_v", "self_attn.v_proj")];
const OUTPUT: Names = &[("attn_output", "self_attn.o_proj")];
const HEAD_NORMS: Names = &[("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")];
const TWO_NORMS: Names = &[("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")];
const FOUR_NORMS: Names = &[
    ("attn_norm", "input_layernorm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];
const GATED: Names = &[("ffn_gate", "mlp.gate_proj"), ("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj")];

const LLAMA: Architecture = Architecture {
    name: "llama",
    model_type: "llama",
    class: "LlamaForCausalLM",
    ends: ["model.embed_tokens", "model.norm", "lm_head"],
    blocks: "model.layers",
    block: &[SEPARATE, OUTPUT, TWO_NORMS, GATED],
    order: |name, shape| match name {
        name if name.contains(".q_proj.") => Order::Pairs { heads: shape.heads, turned: shape.turned },
        name if name.contains(".k_proj.") => Order::Pairs { heads: shape.key_value_heads, turned: shape.turned },
        _ => Order::Same,
    },
    one_plus: false,
    partial: false,
    reads: &[],
    more: |_, _| Ok(()),
};

/// llama.cpp has Mistral's models, which have no window since v0.2, as `llama`.
const ARCHITECTURES: [Architecture; 6] = [
    LLAMA,
    Architecture { name: "qwen2", model_type: "qwen2", class: "Qwen2ForCausalLM", order: |_, _| Order::Same, ..LLAMA },
    Architecture {
        name: "qwen3",
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        block: &[SEPARATE, HEAD_NORMS, OUTPUT, TWO_NORMS, GATED],
        order: |_, _| Order::Same,
        ..LLAMA
    },
    Architecture {
        name: "gemma3",
        model_type: "gemma3_text",
        class: "Gemma3ForCausalLM",
        block: &[SEPARATE, HEAD_NORMS, OUTPUT, FOUR_NORMS, GATED],
        order: |_, _| Order::Same,
        one_plus: true,
        reads: &["attention.sliding_window", "attention.sliding_window_pattern", "attn_logit_softcapping", "final_logit_softcapping", "rope.freq_base_swa"],
        more: gemma3,
        ..LLAMA
    },
    Architecture {
        name: "phi3",
        model_type: "phi3",
        class: "Phi3ForCausalLM",
        block: &[
            &[("attn_qkv", "self_attn.qkv_proj")],
            OUTPUT,
            TWO_NORMS,
            // Both halves, under the name of one.
            &[("ffn_up", "mlp.gate_up_proj"), ("ffn_down", "mlp.down_proj")],
        ],
        order: |_, _| Order::Same,
        partial: true,
        reads: &["attention.sliding_window"],
        more: phi3,
        ..LLAMA
    },
    Architecture {
        name: "gptneox",
        model_type: "gpt_neox",
        class: "GPTNeoXForCausalLM",
        ends: ["gpt_neox.embed_in", "gpt_neox.final_layer_norm", "embed_out"],
        blocks: "gpt_neox.layers",
        block: &[
            &[("attn_qkv", "attention.query_key_value"), ("attn_output", "attention.dense")],
            TWO_NORMS,
            &[("ffn_up", "mlp.dense_h_to_4h"), ("ffn_down", "mlp.dense_4h_to_h")],
        ],
        order: |name, shape| if name.contains(".query_key_value.") { Order::Thirds(shape.heads) } else { Order::Same },
        one_plus: false,
        partial: true,
        reads: &["attention.layer_norm_epsilon", "use_parallel_residual"],
        more: gpt_neox,
    },
];

/// The settings that are read for every architecture.
const READ: [&str; 16] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
];

/// Settings that never change the output of a language model.
const HARMLESS: [&str; 10] = [
    "attention.layer_norm_epsilon",
    "decoder_start_token_id",
    // Describes how the file was made.
    "tensor_data_layout",
    // Only applies to embedding models.
    "pooling_type",
    // Only apply to YaRN, which is refused by `rope.scaling.type`.
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_log_multiplier",
    "rope.scaling.finetuned",
    // The number of rows of the embedding is used instead.
    "vocab_size",
    // Only applies to mixtures of experts, which are refused.
    "expert_used_count",
];

/// Settings that change nothing if they have one of these values. Any other value is refused.
const NEUTRAL: [(&str, &[f64]); 16] = [
    ("attention.causal", &[1.0]),
    ("attention.clamp_kqv", &[0.0]),
    ("attention.max_alibi_bias", &[0.0]),
    ("attention.scale", &[0.0]),
    ("attention.shared_kv_layers", &[0.0]),
    ("attention.sliding_window", &[0.0]),
    ("embedding_scale", &[0.0, 1.0]),
    ("expert_count", &[0.0]),
    ("expert_shared_count", &[0.0]),
    ("leading_dense_block_count", &[0.0]),
    ("logit_scale", &[0.0, 1.0]),
    ("nextn_predict_layers", &[0.0]),
    ("residual_scale", &[0.0, 1.0]),
    ("rope.scaling.yarn_attn_factor", &[1.0]),
    ("rope.scaling.yarn_ext_factor", &[0.0]),
    ("use_parallel_residual", &[0.0]),
];

/// Settings of sliding-window layers that change nothing if they equal those of the other layers.
const EQUAL: [(&str, &str); 4] = [
    ("attention.key_length_swa", "attention.key_length"),
    ("attention.value_length_swa", "attention.value_length"),
    ("rope.dimension_count_swa", "rope.dimension_count"),
    ("rope.freq_base_swa", "rope.freq_base"),
];

/// The architecture that the file says it has.
///
/// # Errors
/// One that is not known, or none.
pub fn architecture(meta: &Metadata) -> Result<&'static Architecture> {
    static KNOWN: [Architecture; 6] = ARCHITECTURES;
    let name = meta.text("general.architecture")?.ok_or_else(|| meta.missing("general.architecture"))?;
    KNOWN.iter().find(|a| a.name == name).ok_or_else(|| {
        Error::unknown("GGUF architecture", name, KNOWN.iter().map(|a| a.name))
            .hint("more architectures are read from Hugging Face folders than from GGUF files")
    })
}

impl Architecture {
    /// Hugging Face's name of a tensor, where it has one.
    pub fn rename(&self, name: &str) -> Option<String> {
        let (module, part) = name.rsplit_once('.').filter(|(_, part)| matches!(*part, "weight" | "bias"))?;
        if let Some(end) = ENDS.iter().position(|theirs| *theirs == module) {
            return Some(format!("{}.{part}", self.ends[end]));
        }
        let (layer, module) = module.strip_prefix("blk.")?.split_once('.')?;
        let layer: u32 = layer.parse().ok()?;
        let (_, ours) = self.block.iter().copied().flatten().find(|(theirs, _)| *theirs == module)?;
        Some(format!("{}.{layer}.{ours}.{part}", self.blocks))
    }

    /// Hugging Face's name of the embedding.
    pub fn embedding(&self) -> String {
        format!("{}.weight", self.ends[0])
    }

    /// In which order a tensor's rows stand in the file.
    pub fn order(&self, renamed: &str, shape: &Shape) -> Order {
        (self.order)(renamed, shape)
    }

    /// What Hugging Face's numbers are less than the file's.
    pub fn offset(&self, renamed: &str) -> f32 {
        if self.one_plus && renamed.ends_with("norm.weight") { 1.0 } else { 0.0 }
    }

    /// The sizes that reading the tensors needs.
    ///
    /// # Errors
    /// A setting that is missing or out of range.
    pub fn shape(&self, meta: &Metadata) -> Result<Shape> {
        let settings = Settings { architecture: self, meta };
        let heads = settings.count("attention.head_count")?;
        let key_value_heads = if settings.has("attention.head_count_kv") { settings.count("attention.head_count_kv")? } else { heads };
        let head = if settings.has("attention.key_length") { settings.count("attention.key_length")? } else { settings.count("embedding_length")? / heads };
        let turned = if settings.has("rope.dimension_count") { settings.count("rope.dimension_count")? } else { head };
        if turned > head || !turned.is_multiple_of(2) {
            let key = settings.key("rope.dimension_count");
            return Err(Error::new(format!("`{key}` must be an even number up to {head}, the width of a head, got {turned}")));
        }
        Ok(Shape { heads, key_value_heads, head, turned })
    }

    /// Hugging Face's config.json, made from the file's settings. `has` says whether the file has a tensor of
    /// Hugging Face's name, `vocab` is how many rows the embedding has.
    ///
    /// # Errors
    /// A setting that is missing, or one that would change the numbers and is not known here.
    pub fn config(&self, meta: &Metadata, vocab: i64, rope: &RopeFactors, has: impl Fn(&str) -> bool) -> Result<Value> {
        let settings = Settings { architecture: self, meta };
        settings.must_be_read()?;
        let shape = self.shape(meta)?;
        let mut config = Map::new();
        let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
        put("architectures", json!([self.class]));
        put("model_type", json!(self.model_type));
        put("hidden_size", json!(settings.count("embedding_length")?));
        put("intermediate_size", json!(settings.count("feed_forward_length")?));
        put("num_hidden_layers", json!(settings.count("block_count")?));
        put("num_attention_heads", json!(shape.heads));
        put("num_key_value_heads", json!(shape.key_value_heads));
        if settings.has("attention.key_length") {
            let (keys, values) = (settings.count("attention.key_length")?, settings.count("attention.value_length"));
            if settings.has("attention.value_length") && values? != keys {
                return Err(Error::new("models whose keys and values differ in width are not read from GGUF files"));
            }
            put("head_dim", json!(keys));
        }
        put("hidden_act", json!("silu"));
        if let Some(epsilon) = settings.float("attention.layer_norm_rms_epsilon")? {
            put("rms_norm_eps", json!(epsilon));
        } else if self.model_type != "gpt_neox" {
            return Err(meta.missing(&settings.key("attention.layer_norm_rms_epsilon")));
        }
        put("rope_parameters", settings.rope(rope, &shape)?);
        put("max_position_embeddings", json!(settings.count("context_length")?));
        put("vocab_size", json!(vocab));
        put("tie_word_embeddings", json!(!has(&format!("{}.weight", self.ends[2]))));
        put("attention_bias", json!(has(&format!("{}.0.{}.bias", self.blocks, self.block[0][0].1))));
        put("mlp_bias", json!(has(&format!("{}.0.mlp.up_proj.bias", self.blocks))));
        for (key, theirs) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
            if let Some(id) = meta.unsigned(&format!("tokenizer.ggml.{theirs}_token_id"))? {
                put(key, json!(id));
            }
        }
        (self.more)(&settings, &mut config)?;
        Ok(Value::Object(config))
    }
}

fn gemma3(settings: &Settings<'_>, config: &mut Map<String, Value>) -> Result<()> {
    let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
    put("hidden_activation", json!("gelu_pytorch_tanh"));
    put("sliding_window", json!(settings.count("attention.sliding_window")?));
    if let Some(pattern) = settings.unsigned("attention.sliding_window_pattern")? {
        put("sliding_window_pattern", json!(pattern));
    }
    for cap in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if let Some(cap_value) = settings.float(cap)? {
            put(cap, json!(cap_value));
        }
    }
    // llama.cpp keeps no scale: it takes the head's width, but for the 27B model, which it knows by its 62 blocks.
    let scalar = if settings.count("block_count")? == 62 {
        settings.count("embedding_length")? / settings.count("attention.head_count")?
    } else {
        settings.count("attention.key_length")?
    };
    put("query_pre_attn_scalar", json!(scalar));
    let local = settings.float("rope.freq_base_swa")?.unwrap_or(10_000.0);
    let global = config.remove("rope_parameters").unwrap_or_default();
    let mut sliding = json!({ "rope_theta": local, "rope_type": "default" });
    // llama.cpp rotates the same part of each head in all layers.
    if let Some(turned) = global.get("dimension_count") {
        sliding["dimension_count"] = turned.clone();
    }
    let both = json!({ "full_attention": global, "sliding_attention": sliding });
    config.insert("rope_parameters".to_owned(), both);
    Ok(())
}

fn phi3(settings: &Settings<'_>, config: &mut Map<String, Value>) -> Result<()> {
    // 0 stands for none.
    let window = settings.unsigned("attention.sliding_window")?.filter(|w| *w > 0);
    config.insert("sliding_window".to_owned(), json!(window));
    let original = settings.unsigned("rope.scaling.original_context_length")?;
    if let Some(original) = original {
        config.insert("original_max_position_embeddings".to_owned(), json!(original));
    }
    Ok(())
}

fn gpt_neox(settings: &Settings<'_>, config: &mut Map<String, Value>) -> Result<()> {
    let key = "attention.layer_norm_epsilon";
    config.insert("layer_norm_eps".to_owned(), json!(settings.float(key)?.ok_or_else(|| settings.meta.missing(&settings.key(key)))?));
    config.insert("hidden_act".to_owned(), json!("gelu"));
    let parallel = settings.meta.truth(&settings.key("use_parallel_residual"))?.unwrap_or(true);
    config.insert("use_parallel_residual".to_owned(), json!(parallel));
    Ok(())
}

/// The settings of an architecture, under its prefix.
struct Settings<'a> {
    architecture: &'a Architecture,
    meta: &'a Metadata,
}

impl Settings<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture.name)
    }

    fn has(&self, name: &str) -> bool {
        self.meta.has(&self.key(name))
    }

    fn float(&self, name: &str) -> Result<Option<f64>> {
        self.meta.float(&self.key(name))
    }

    fn unsigned(&self, name: &str) -> Result<Option<u64>> {
        self.meta.unsigned(&self.key(name))
    }

    fn count(&self, name: &str) -> Result<usize> {
        let count = self.unsigned(name)?.ok_or_else(|| self.meta.missing(&self.key(name)))?;
        // The bound keeps products of counts far from overflow.
        match usize::try_from(count) {
            Ok(count @ 1..=0x7fff_ffff) => Ok(count),
            _ => Err(Error::new(format!("`{}` is {count}, which no model has", self.key(name)))),
        }
    }

    /// True if a setting that is not read does not change the model's output.
    fn is_neutral(&self, name: &str) -> bool {
        let value = |name: &str| self.meta.number(&self.key(name));
        let at_neutral = |(key, values): &(&str, &[f64])| *key == name && value(name).is_some_and(|v| values.contains(&v));
        let at_equal = |(key, other): &(&str, &str)| *key == name && value(name).is_some() && value(name) == value(other);
        HARMLESS.contains(&name) || NEUTRAL.iter().any(at_neutral) || EQUAL.iter().any(at_equal)
    }

    /// Checks that every setting which may change the model's output is read.
    ///
    /// # Errors
    /// Fails if the file has a setting that is neither read nor known to be harmless.
    fn must_be_read(&self) -> Result<()> {
        if self.unsigned("expert_count")?.unwrap_or(0) > 0 {
            return Err(Error::new("mixtures of experts are not read from GGUF files"));
        }
        let prefix = self.key("");
        let names = self.meta.keys().filter_map(|key| key.strip_prefix(&prefix));
        match names.into_iter().find(|name| !READ.contains(name) && !self.architecture.reads.contains(name) && !self.is_neutral(name)) {
            Some(name) => {
                let (key, value) = (self.key(name), self.meta.shown(&self.key(name)));
                Err(Error::new(format!("the setting `{key}` ({value}) may change the model's output, but is not supported"))
                    .hint("use the model's Hugging Face folder"))
            }
            None => Ok(()),
        }
    }

    /// The factor by which positions are divided. Files from 2023 have it under
    /// `rope.scale_linear`.
    ///
    /// # Errors
    /// Fails if the factor is negative.
    fn rope_factor(&self) -> Result<f64> {
        let key = if self.has("rope.scaling.factor") { "rope.scaling.factor" } else { "rope.scale_linear" };
        match self.float(key)?.unwrap_or(0.0) {
            // 0 means no scaling, as in llama.cpp.
            0.0 => Ok(1.0),
            factor if factor > 0.0 => Ok(factor),
            factor => Err(Error::new(format!("`{}` must be greater than 0, got {factor}", self.key(key)))),
        }
    }

    /// The `rope_parameters` of Hugging Face's configuration.
    ///
    /// # Errors
    /// Fails if a setting is out of range, or if a rotary scaling is not supported.
    fn rope(&self, factors: &RopeFactors, shape: &Shape) -> Result<Value> {
        let context = self.count("context_length")?;
        // llama.cpp's own default.
        let theta = self.float("rope.freq_base")?.unwrap_or(10_000.0);
        // A factor without a type is linear, as in llama.cpp; the type `none` turns a factor off.
        let kind = self.meta.text(&self.key("rope.scaling.type"))?.unwrap_or("linear");
        let (factor, attention) = (self.rope_factor()?, self.float("rope.scaling.attn_factor")?);
        let plain = kind == "none" || (kind == "linear" && factor == 1.0);
        let mut rope = match factors {
            // Llama 3.1's scaling, computed when the file was made: each frequency is divided by a factor of its own.
            RopeFactors { all: Some(all), long: None, short: None } if plain => {
                json!({ "rope_type": "longrope", "short_factor": all, "long_factor": all, "attention_factor": 1.0, "original_max_position_embeddings": context })
            }
            RopeFactors { all: None, long: Some(long), short: Some(short) } if plain || kind == "longrope" => {
                let original = self.unsigned("rope.scaling.original_context_length")?.unwrap_or(context as u64);
                json!({ "rope_type": "longrope", "short_factor": short, "long_factor": long, "attention_factor": attention,
                    "original_max_position_embeddings": original })
            }
            RopeFactors { all: None, long: None, short: None } if plain => json!({ "rope_type": "default" }),
            RopeFactors { all: None, long: None, short: None } if kind == "linear" => json!({ "rope_type": "linear", "factor": factor }),
            RopeFactors { all: None, long: None, short: None } => return Err(rope_is_unread(&format!("`{kind}`"))),
            _ => return Err(rope_is_unread(&format!("`{kind}` with factors of its own"))),
        };
        if factors.long.is_none() && attention.is_some_and(|factor| factor != 1.0) {
            return Err(rope_is_unread(&format!("`{kind}` with `{}`", self.key("rope.scaling.attn_factor"))));
        }
        rope["rope_theta"] = json!(theta);
        if self.architecture.partial {
            rope["partial_rotary_factor"] = json!(part(shape.turned, shape.head));
        } else if shape.turned != shape.head {
            // llama.cpp can rotate only the first dimensions of each head in any architecture.
            // transformers has no field for that in this one.
            rope["dimension_count"] = json!(shape.turned);
        }
        Ok(rope)
    }
}

fn rope_is_unread(which: &str) -> Error {
    Error::new(format!("the rotary scaling {which} is not read from GGUF files")).hint("take the model's Hugging Face folder")
}

/// The `partial_rotary_factor` for a rotation of `turned` dimensions of a head of `head`. Readers
/// multiply it by `head` and round down, so the quotient may have to be the next larger number.
fn part(turned: usize, head: usize) -> f64 {
    let part = turned as f64 / head as f64;
    if ((head as f64 * part) as usize) < turned { part.next_up() } else { part }
}

/// The counts that reading the tensors needs.
#[derive(Debug)]
pub struct Shape {
    heads: usize,
    key_value_heads: usize,
    /// Width of one head.
    head: usize,
    /// How many dimensions of a head are rotated.
    turned: usize,
}

/// What frequencies are divided by, pair by pair: settings that llama.cpp keeps as tensors.
#[derive(Debug, Default)]
pub struct RopeFactors {
    all: Option<Vec<f64>>,
    long: Option<Vec<f64>>,
    short: Option<Vec<f64>>,
}

impl RopeFactors {
    /// The place of those in the tensor of that name, where it holds such.
    pub fn of(&mut self, tensor: &str) -> Option<&mut Option<Vec<f64>>> {
        match tensor {
            "rope_freqs.weight" => Some(&mut self.all),
            "rope_factors_long.weight" => Some(&mut self.long),
            "rope_factors_short.weight" => Some(&mut self.short),
            _ => None,
        }
    }
}
