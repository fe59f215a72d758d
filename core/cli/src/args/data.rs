//! Arguments of `reprpo data`.

use clap::{Args, Subcommand};

use super::data_flags::{DataFlags, Fetched, Inspected, PairReader, Tokenised};
use super::fields::{FieldFlags, TokenizerModel};

/// Preference data before anything is trained on them.
#[derive(Args)]
pub struct DataArgs {
    #[command(subcommand)]
    pub command: DataCommand,
}

#[derive(Subcommand)]
pub enum DataCommand {
    Inspect(Box<InspectArgs>),
    Tokens(Box<TokensArgs>),
    Fetch(Box<FetchDataArgs>),
}

/// What is in a data set: counts, duplicates, lengths, what a run would cut or drop, and a few
/// pairs as the model gets them.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo data inspect pairs.jsonl
  reprpo data inspect pairs.csv --columns prompt=question,chosen=best,rejected=worst --split \
  'train[:1000]'
  reprpo data inspect genies:math --data-dir DATA --model ./my-model --max-length 256 --json

Of the model, only the tokenizer is read. Where the default model is not on this machine, lengths \
are characters.")]
pub struct InspectArgs {
    #[command(flatten)]
    pub pairs: PairsArgs<Inspected>,
    /// Show so many pairs of each split.
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = "Output")]
    pub examples: usize,
    /// As JSON, the examples with token ids and masks.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// The token ids of every pair, as a run trains on them: the prompt and both completions, or the
/// reason why a run would drop the pair.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo data tokens pairs.jsonl --model smollm2-135m-instruct
  reprpo data tokens pairs.jsonl --model ./my-model --json > tokens.jsonl
  reprpo data tokens genies:math --data-dir DATA --split 'test[:5]' --max-length 512

Without --json, each line shows a pair: its index, its prompt, and the two completions between ⟨ \
and ⟩. Of the model,
only the tokenizer is read.")]
pub struct TokensArgs {
    #[command(flatten)]
    pub pairs: PairsArgs<Tokenised>,
    /// Print one JSON object per pair, each on a line: `split`, `index`, `prompt_ids`, `chosen_ids`
    /// and `rejected_ids`, or `dropped` with the `reason`.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// Download the files of a data set of the hub, so that later commands need no network. Prints its
/// splits.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo data fetch trl-lib/ultrafeedback_binarized
  reprpo data fetch org/pairs@v1 --set dataset.config_name=math --set dataset.oos=law:test
  reprpo data fetch org/pairs --json

Give the same `--set` as to `reprpo run`: they decide which files are needed. The files go into the
cache of Hugging Face's own libraries (`HF_HOME`).")]
pub struct FetchDataArgs {
    #[command(flatten)]
    pub data: DataFlags<Fetched>,
    /// Print `data`, `splits`, `cache` (the folder of the hub's files) and `pinned` (the fields of
    /// `dataset` that name the same version) as JSON.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// The pairs to read, and how they become tokens.
#[derive(Args)]
pub struct PairsArgs<C: PairReader> {
    #[command(flatten)]
    pub model: FieldFlags<TokenizerModel>,
    #[command(flatten)]
    pub data: DataFlags<C>,
    /// Do not put an end-of-sequence token behind a completion.
    #[arg(long, help_heading = "Model")]
    pub no_eos: bool,
    /// Do not add the tokenizer's own special tokens, such as BOS, to plain text.
    #[arg(long, help_heading = "Model")]
    pub no_special_tokens: bool,
    /// Read the first so many pairs of each split.
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub max_pairs: Option<usize>,
}
