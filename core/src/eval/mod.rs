//! Evaluation of a model on preference pairs, compared with the base model.

mod completions;
mod details;
mod divergence;
mod evaluation;
mod notes;
mod overlap;
mod preferences;
mod samples;
mod scoring;
mod split_role;
mod split_scores;
pub mod statistics;
pub mod table;

pub use divergence::{DivergedPair, score_with_kl};
pub(crate) use evaluation::cut_row;
pub use evaluation::{EvalSplit, Evaluation, Models, evaluate, read, splits};
pub use overlap::TrainingPairs;
pub use preferences::Preferences;
pub use samples::{Sample, SampleCompletions, SampledPrompt, StartedFrom};
pub use scoring::{score_pairs, score_reference};
pub use split_role::SplitRole;
pub use split_scores::{PairOutcome, ScoreRow, SplitScores};
pub use table::{PERPLEXITY_NOTE, Table, perplexity_mark};
