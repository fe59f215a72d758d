//! Arguments of `reprpo score`.

use clap::Args;

use super::data_flags::{DataFlags, ScoreData};
use super::fields::{FieldFlags, LoadedAdapter, ModelFlags};

/// Print the log-probabilities of the two completions of each pair.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo score --model smollm2-135m-instruct --data pairs.jsonl
  reprpo score --model ./my-model --load-adapter runs/a/adapter --data pairs.jsonl --json > \
  scores.jsonl")]
pub struct ScoreArgs {
    #[command(flatten)]
    pub model: FieldFlags<ModelFlags>,
    #[command(flatten)]
    pub adapter: FieldFlags<LoadedAdapter>,
    #[command(flatten)]
    pub data: DataFlags<ScoreData>,
    /// Do not append and score an end-of-sequence token after a completion.
    #[arg(long, help_heading = "Data")]
    pub no_eos: bool,
    /// Do not add the tokenizer's own special tokens, such as BOS, to plain text.
    #[arg(long, help_heading = "Data")]
    pub no_special_tokens: bool,
    /// Print JSON Lines, one object per pair. Its fields are `split`, `index` (the row number in
    /// the file), the scores `chosen` and `rejected`, and `truncated`. Truncated and dropped pairs
    /// also have a `reason`. Dropped pairs have `dropped` instead of scores.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}
