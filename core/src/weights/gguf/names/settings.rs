//! Reads the settings of an architecture. A file with an unsupported setting is rejected unless the
//! setting is known to have no effect on the model's output.

use super::architecture::Architecture;
use crate::error::{Error, Result};
use crate::weights::gguf::metadata::Metadata;

/// The settings that are read for every architecture.
const READ: [&str; 22] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_epsilon",
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
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_log_multiplier",
];

/// Settings that can be ignored, whatever their value.
const HARMLESS: [&str; 6] = [
    "decoder_start_token_id",
    // Describes how the file was created.
    "tensor_data_layout",
    // Only applies to embedding models.
    "pooling_type",
    // Only affects Granite models. `granite.rs` checks it.
    "rope.scaling.finetuned",
    // The number of rows of the embedding is used instead.
    "vocab_size",
    // Only applies to mixtures of experts, which are not supported.
    "expert_used_count",
];

/// Settings that have no effect on the output if they have one of these values. Other values are
/// rejected.
const NEUTRAL: [(&str, &[f64]); 14] = [
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
    ("use_parallel_residual", &[0.0]),
];

/// Each entry names a setting for sliding-window layers and the same setting for full-attention
/// layers. If the two values are equal, the first setting has no effect on the output.
const EQUAL: [(&str, &str); 4] = [
    ("attention.key_length_swa", "attention.key_length"),
    ("attention.value_length_swa", "attention.value_length"),
    ("rope.dimension_count_swa", "rope.dimension_count"),
    ("rope.freq_base_swa", "rope.freq_base"),
];

/// Maximum number of blocks, far above that of any known model. This limits the size of lists with
/// an entry per block.
const MAX_LAYERS: usize = 1 << 14;

/// Reads architecture-specific settings from the metadata of a GGUF file. The keys of these
/// settings begin with the name of the architecture.
pub struct Settings<'a> {
    pub architecture: &'a Architecture,
    pub meta: &'a Metadata,
}

impl Settings<'_> {
    /// The full key of a setting, e.g. `llama.block_count`.
    pub fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture.name)
    }

    /// True if the file contains the setting.
    pub fn has(&self, name: &str) -> bool {
        self.meta.has(&self.key(name))
    }

    /// Reads an optional number.
    ///
    /// # Errors
    /// Fails if the setting is not a finite number.
    pub fn float(&self, name: &str) -> Result<Option<f64>> {
        self.meta.float(&self.key(name))
    }

    /// Reads a required number.
    ///
    /// # Errors
    /// Fails if the setting is missing or not a finite number.
    pub fn number(&self, name: &str) -> Result<f64> {
        self.float(name)?.ok_or_else(|| self.meta.missing(&self.key(name)))
    }

    /// Reads an optional non-negative integer.
    ///
    /// # Errors
    /// Fails if the setting is negative or not an integer.
    pub fn unsigned(&self, name: &str) -> Result<Option<u64>> {
        self.meta.unsigned(&self.key(name))
    }

    /// Reads an optional boolean.
    ///
    /// # Errors
    /// Fails if the setting is not a boolean.
    pub fn boolean(&self, name: &str) -> Result<Option<bool>> {
        self.meta.boolean(&self.key(name))
    }

    /// Reads a size. The file may store one number, or a list with the same number for every layer.
    ///
    /// # Errors
    /// Fails if the setting is missing or out of range, or if it differs between layers.
    pub fn count(&self, name: &str) -> Result<usize> {
        let key = self.key(name);
        let count = if self.meta.is_array(&key) {
            self.in_all_layers(&key)?
        } else {
            self.meta.unsigned(&key)?
        };
        let count = count.ok_or_else(|| self.meta.missing(&key))?;
        // This limit ensures that products of sizes do not overflow.
        match usize::try_from(count) {
            Ok(count @ 1..=0x7fff_ffff) => Ok(count),
            _ => Err(Error::new(format!("`{key}` must be between 1 and 2147483647, got {count}"))),
        }
    }

    fn in_all_layers(&self, key: &str) -> Result<Option<u64>> {
        let all = self.meta.integers(key)?.unwrap_or_default();
        match all.first().map(|first| u64::try_from(*first)) {
            Some(Ok(first)) if all.iter().all(|x| *x == all[0]) => Ok(Some(first)),
            _ => Err(Error::new(format!("`{key}` differs between layers, which is not supported"))
                .hint("use the model's Hugging Face folder")),
        }
    }

    /// Reads the number of blocks.
    ///
    /// # Errors
    /// Fails if the setting is missing or out of range.
    pub fn layers(&self) -> Result<usize> {
        match self.count("block_count")? {
            layers @ 1..=MAX_LAYERS => Ok(layers),
            layers => Err(Error::new(format!(
                "`{}` must be between 1 and {MAX_LAYERS}, got {layers}",
                self.key("block_count")
            ))),
        }
    }

    /// Creates the `layer_types` of Hugging Face's configuration from the setting
    /// `attention.sliding_window_pattern`.
    ///
    /// The setting is either a list with a boolean for each layer, or a period n: every n-th layer
    /// has full attention, and the others have a sliding window. If the setting is missing,
    /// `period` is used.
    ///
    /// # Errors
    /// Fails if the setting is neither a list nor a period, or if the list does not have exactly
    /// one entry per layer.
    pub fn layer_types(&self, period: u64) -> Result<Vec<&'static str>> {
        let (layers, key) = (self.layers()?, self.key("attention.sliding_window_pattern"));
        let sliding: Vec<bool> = if self.meta.is_array(&key) {
            self.meta
                .integers(&key)?
                .unwrap_or_default()
                .into_iter()
                .map(|sliding| sliding != 0)
                .collect()
        } else {
            let period = self.meta.unsigned(&key)?.unwrap_or(period);
            (1..=layers as u64).map(|layer| period == 0 || !layer.is_multiple_of(period)).collect()
        };
        if sliding.len() != layers {
            return Err(Error::new(format!(
                "`{key}` has {} entries, but the model has {layers} layers",
                sliding.len()
            )));
        }
        Ok(sliding
            .into_iter()
            .map(|sliding| if sliding { "sliding_attention" } else { "full_attention" })
            .collect())
    }

    /// True if a setting can be ignored because it has no effect on the model's output.
    fn is_neutral(&self, name: &str) -> bool {
        let value = |name: &str| self.meta.number(&self.key(name));
        let at_neutral = |(key, values): &(&str, &[f64])| {
            *key == name && value(name).is_some_and(|v| values.contains(&v))
        };
        let at_equal = |(key, other): &(&str, &str)| {
            *key == name && value(name).is_some() && value(name) == value(other)
        };
        HARMLESS.contains(&name) || NEUTRAL.iter().any(at_neutral) || EQUAL.iter().any(at_equal)
    }

    /// Rejects files with settings that are not read but may affect the model's output.
    ///
    /// # Errors
    /// Fails if a setting is neither read nor known to have no effect.
    pub fn must_be_read(&self) -> Result<()> {
        if self.unsigned("expert_count")?.unwrap_or(0) > 0 {
            return Err(Error::new("mixtures of experts are not supported in GGUF files"));
        }
        let (prefix, architecture) = (self.key(""), self.architecture);
        let is_read = |name: &&str| {
            [&READ[..], architecture.reads, architecture.harmless]
                .iter()
                .any(|names| names.contains(name))
        };
        match self
            .meta
            .keys()
            .filter_map(|key| key.strip_prefix(&prefix))
            .find(|name| !is_read(name) && !self.is_neutral(name))
        {
            Some(name) => Err(self.unsupported(name)),
            None => Ok(()),
        }
    }

    /// Creates the error for a setting with an unsupported value.
    pub fn unsupported(&self, name: &str) -> Error {
        let (key, value) = (self.key(name), self.meta.describe(&self.key(name)));
        Error::new(format!(
            "the setting `{key}` ({value}) is not supported, but may change the model's output"
        ))
        .hint("use the model's Hugging Face folder")
    }
}
