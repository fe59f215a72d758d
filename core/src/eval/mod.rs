//! Judging a model by preference pairs, against the base model.

mod completions;
mod evaluation;
mod scoring;
pub mod statistics;

pub use evaluation::{Evaluation, evaluate, splits};
pub use scoring::score_pairs;
