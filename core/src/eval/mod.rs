//! Judging a model by preference pairs, against the base model.

mod completions;
mod evaluation;
mod scoring;
pub mod statistics;

pub use evaluation::{Evaluation, Judged, ScoreRow, SplitScores, evaluate, read, splits};
pub use scoring::score_pairs;
