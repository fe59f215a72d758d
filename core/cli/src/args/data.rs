//! Arguments of `reprpo data`.

use clap::{Args, Subcommand};

use super::data_flags::{DataFlags, FetchData, InspectData, PairReader, TokensData};
use super::fields::{FieldFlags, TokenizerModel};

/// Inspect, tokenise or download preference data.
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

/// Summarise a data set: counts, duplicates, lengths, and what a run would cut or drop.
///
/// Also shows a few pairs as the model receives them.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo data inspect pairs.jsonl
  reprpo data inspect pairs.csv --columns prompt=question,chosen=best,rejected=worst --split \
  'train[:1000]'
  reprpo data inspect genies:math --data-dir DATA --model ./my-model --max-length 256 --json

Only the model's tokenizer is read. If no model is given and the default model is not on this
machine, lengths are counted in characters.")]
pub struct InspectArgs {
    #[command(flatten)]
    pub pairs: PairsArgs<InspectData>,
    /// Number of pairs to show from each split.
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = "Output")]
    pub examples: usize,
    /// Print JSON. Each example then includes its token ids and masks.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// Print the token ids of every pair, as a run would train on them.
///
/// These are the ids of the prompt and of both completions, or the reason why a run would drop the
/// pair.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo data tokens pairs.jsonl --model smollm2-135m-instruct
  reprpo data tokens pairs.jsonl --model ./my-model --json > tokens.jsonl
  reprpo data tokens genies:math --data-dir DATA --split 'test[:5]' --max-length 512

Without --json, each line shows a pair as text: its index, its prompt, and the two completions
between ⟨ and ⟩. Only the model's tokenizer is read.")]
pub struct TokensArgs {
    #[command(flatten)]
    pub pairs: PairsArgs<TokensData>,
    /// Print JSON Lines, one object per pair: `split`, `index`, and either `prompt_ids`,
    /// `chosen_ids` and `rejected_ids`, or `dropped` with a `reason`.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// Download a data set from the Hugging Face hub, so that later commands need no network.
///
/// Prints the splits of the data set.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo data fetch trl-lib/ultrafeedback_binarized
  reprpo data fetch org/pairs@v1 --set dataset.config_name=math --set dataset.oos=law:test
  reprpo data fetch org/pairs --json

Give the same `--set` flags as for `reprpo run`, because they decide which files are needed. The
files are stored in the cache of Hugging Face's own libraries (`HF_HOME`).")]
pub struct FetchDataArgs {
    #[command(flatten)]
    pub data: DataFlags<FetchData>,
    /// Print a JSON object with `data`, `splits`, `cache` (the folder of the downloaded files) and
    /// `pinned` (the fields of `dataset` that select exactly this version).
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// Flags that choose the pairs to read, and that control how they are tokenised.
#[derive(Args)]
pub struct PairsArgs<C: PairReader> {
    #[command(flatten)]
    pub model: FieldFlags<TokenizerModel>,
    #[command(flatten)]
    pub data: DataFlags<C>,
    /// Do not append an end-of-sequence token to completions.
    #[arg(long, help_heading = "Data")]
    pub no_eos: bool,
    /// Do not add the tokenizer's own special tokens, such as BOS, to plain text.
    #[arg(long, help_heading = "Data")]
    pub no_special_tokens: bool,
    /// Read only the first N pairs of each split.
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub max_pairs: Option<usize>,
}
