//! Description of an architecture of llama.cpp.

use serde_json::{Map, Value};

use super::{Shape, Source};
use crate::error::Result;
use crate::weights::gguf::order::Order;

/// Pairs of llama.cpp's name and Hugging Face's name of a module.
pub type Names = &'static [(&'static str, &'static str)];

/// Rules that convert the names and settings of an architecture of llama.cpp to Hugging Face's.
#[derive(Debug)]
pub struct Architecture {
    /// Value of `general.architecture`, which is also the prefix of the settings.
    pub(super) name: &'static str,
    /// Hugging Face's `model_type`.
    pub(super) model_type: &'static str,
    /// Name of the class in transformers.
    pub(super) class: &'static str,
    /// Modules outside of blocks. The first is the embedding, and the last is the output head.
    pub(super) ends: Names,
    /// Hugging Face's path of the list of blocks, such as `model.layers`.
    pub(super) blocks: &'static str,
    /// Modules of a block.
    pub(super) block: &'static [Names],
    /// Returns the order of a tensor's rows in the file, given Hugging Face's name for the tensor.
    pub(super) order: fn(&str, &Shape) -> Order,
    /// True if the weights of norms are larger by 1 in llama.cpp's files than in Hugging Face's.
    pub(super) one_plus: bool,
    /// True if Hugging Face's configuration has the field `partial_rotary_factor`, which rotates
    /// only a part of each head.
    pub(super) partial: bool,
    /// Settings that are read for this architecture but not for others.
    pub(super) reads: &'static [&'static str],
    /// Settings that only change the output of other architectures.
    pub(super) harmless: &'static [&'static str],
    /// Creates the content of Hugging Face's config.json.
    pub(super) config: fn(&Source<'_>) -> Result<Map<String, Value>>,
}
