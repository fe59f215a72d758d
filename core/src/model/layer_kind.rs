//! Kinds of layers. They differ in their attention windows and in their encodings of positions.

use std::rc::Rc;

use super::attention::Attention;
use super::rope::{Rope, Tables};

/// A kind of layer: its attention window and its rotary positions.
#[derive(Debug)]
pub struct LayerKind {
    /// Number of tokens that a token attends to, itself included; `None` for the whole sequence so
    /// far.
    pub window: Option<i64>,
    /// The rotary positions of queries and keys; `None` if the layer does not rotate them.
    pub rope: Option<Rope>,
}

/// The attention masks and rotary tables of one kind of layer, for one batch. The batch is a flat
/// stream of tokens.
#[derive(Debug)]
pub struct View {
    /// The attention masks, shared by all kinds with the same window.
    pub attention: Rc<Attention>,
    /// cos and sin for every position of the stream; `None` if the layer does not rotate.
    pub tables: Option<Tables>,
}
