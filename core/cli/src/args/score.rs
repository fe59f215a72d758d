//! Arguments of `reprpo score`.

use clap::Args;

use super::data_flags::{DataFlags, Scored};
use super::fields::{FieldFlags, LoadedAdapter, ModelFlags};

/// Log-probabilities of the completions of each pair in a file.
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
    pub data: DataFlags<Scored>,
    /// Do not score an end-of-sequence token behind a completion.
    #[arg(long, help_heading = "Data")]
    pub no_eos: bool,
    /// Do not add the tokenizer's own special tokens, such as BOS, to plain text.
    #[arg(long, help_heading = "Data")]
    pub no_special_tokens: bool,
    /// Print one JSON object per pair, each on a line: `split`, `index` (the place of its row in
    /// the file), the scores of `chosen` and `rejected`, and `truncated`, with a `reason` if the
    /// pair was cut. A dropped pair has `dropped` and a `reason` instead of scores.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}
