//! The description of one of llama.cpp's architectures.

use serde_json::{Map, Value};

use super::{Shape, Source};
use crate::error::Result;
use crate::weights::gguf::order::Order;

/// (llama.cpp's name, Hugging Face's).
pub type Names = &'static [(&'static str, &'static str)];

/// How one of llama.cpp's architectures is written in Hugging Face's words.
#[derive(Debug)]
pub struct Architecture {
    /// `general.architecture`, the prefix of its settings.
    pub(super) name: &'static str,
    /// Hugging Face's `model_type`.
    pub(super) model_type: &'static str,
    pub(super) class: &'static str,
    /// Modules outside of blocks: the embedding first, the output head last.
    pub(super) ends: Names,
    /// In front of a block's number.
    pub(super) blocks: &'static str,
    /// What stands in its blocks.
    pub(super) block: &'static [Names],
    /// Which tensors are to be put back in order.
    pub(super) order: fn(&str, &Shape) -> Order,
    /// Whether what the file has of a norm is one more than what Hugging Face has.
    pub(super) one_plus: bool,
    /// True if Hugging Face's configuration has `partial_rotary_factor`, which rotates part of each
    /// head.
    pub(super) partial: bool,
    /// The settings that only this architecture reads.
    pub(super) reads: &'static [&'static str],
    /// Settings that only change the output of other architectures.
    pub(super) harmless: &'static [&'static str],
    /// Makes Hugging Face's config.json.
    pub(super) config: fn(&Source<'_>) -> Result<Map<String, Value>>,
}
