//! Human-readable output: tables, wrapped text and progress.

pub mod grid;
pub mod lines;
pub mod progress;
mod size;

pub use grid::{Align, Grid};
pub use progress::{Progress, Silent};
pub use size::size;
