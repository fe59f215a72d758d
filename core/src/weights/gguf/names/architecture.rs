//! The differences between llama.cpp's format and Hugging Face's for one architecture.

use serde_json::{Map, Value};

use super::{Shape, Source};
use crate::error::Result;
use crate::weights::gguf::order::Order;

/// Pairs of module names: the name in llama.cpp's format, and the name in Hugging Face's.
pub type Names = &'static [(&'static str, &'static str)];

/// Rules that convert the names and settings of one architecture from llama.cpp's format to Hugging
/// Face's.
#[derive(Debug)]
pub struct Architecture {
    /// Value of `general.architecture`. It is also the prefix of the architecture's settings.
    pub(super) name: &'static str,
    /// Hugging Face's `model_type`.
    pub(super) model_type: &'static str,
    /// Name of the model class in transformers.
    pub(super) class: &'static str,
    /// Modules outside the blocks. The first is the embedding, and the last is the output head.
    pub(super) ends: Names,
    /// Path of the block list in Hugging Face's format, such as `model.layers`.
    pub(super) blocks: &'static str,
    /// Modules of a block.
    pub(super) block: &'static [Names],
    /// Returns the order in which the file stores the rows of a tensor. The first argument is
    /// the tensor's Hugging Face name.
    pub(super) order: fn(&str, &Shape) -> Order,
    /// True if llama.cpp's files store norm weights plus 1.
    pub(super) one_plus: bool,
    /// True if Hugging Face's configuration has the field `partial_rotary_factor`, the fraction of
    /// each head that is rotated.
    pub(super) partial: bool,
    /// Settings that are only read for this architecture.
    pub(super) reads: &'static [&'static str],
    /// Settings that can be ignored, because they only have an effect in other architectures.
    pub(super) harmless: &'static [&'static str],
    /// Creates the configuration in the format of Hugging Face's config.json.
    pub(super) config: fn(&Source<'_>) -> Result<Map<String, Value>>,
}
