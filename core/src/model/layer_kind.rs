//! A kind of layer, and what it sees of one stream.

use std::rc::Rc;

use super::attention::Attention;
use super::rope::{Rope, Tables};

/// A kind of layer: how far it sees, and how it tells positions apart.
#[derive(Debug)]
pub struct LayerKind {
    /// How many tokens back it sees, itself included; `None`: all.
    pub window: Option<i64>,
    /// How it rotates queries and keys; `None`: not at all.
    pub rope: Option<Rope>,
}

/// The masks and rotations of one kind of layer for one stream.
#[derive(Debug)]
pub struct View {
    /// Which tokens see which.
    pub attention: Rc<Attention>,
    /// The rotation of every position.
    pub tables: Option<Tables>,
}
