//! The names that most architecture files import.

pub use serde::Deserialize;
pub use serde_json::{Value, json};
pub use tch::Tensor;

pub use super::activation::Activation;
pub use super::attention::Scores;
pub use super::block::{Block, BlockCx};
pub use super::decoder::Decoder;
pub use super::layer_kind::LayerKind;
pub use super::linear::Linear;
pub use super::mlp::{InputProjection, Mlp};
pub use super::norm::Norm;
pub use super::rope::{Rope, RopeFields, RopeParameters};
pub use super::self_attention::{Projections, QkNorm, SelfAttention};
pub use super::settings::{LayerType, Sizes, silu, yes};
pub use super::vocabulary::Vocabulary;
pub use super::weights::Weights;
pub use crate::error::{Error, Result};
