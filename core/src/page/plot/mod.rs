//! A small plotting module: axes, marks, frames and legends as SVG.
//!
//! The colours are in the style sheet, so that they follow the theme. A series differs from the
//! others by its colour and by the shape of its marks.

mod axis;
mod frame;
mod series;
mod svg;

pub use axis::Axis;
pub use frame::Frame;
pub use series::{Series, legend};
pub use svg::{Anchor, Svg};
