//! Evaluation of a model on preference pairs, compared with the base model.

mod completions;
mod evaluation;
mod samples;
mod scoring;
pub mod statistics;
pub mod table;

pub use evaluation::{EvalSplit, Evaluation, ScoreRow, SplitScores, evaluate, read, splits};
pub use samples::{Sample, SampleCompletions, SampledPrompt, StartedFrom};
pub use scoring::{score_pairs, score_reference};
pub use table::{PERPLEXITY_NOTE, Table, perplexity_mark};
