//! Human-readable output: tables, wrapped text and progress.

pub mod grid;
pub mod lines;
pub mod progress;

pub use grid::{Align, Grid};
pub use progress::{Progress, Silent};
