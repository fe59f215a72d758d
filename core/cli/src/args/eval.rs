//! Arguments of `reprpo eval`.

use std::path::PathBuf;

use clap::Args;

use super::coefficient::coefficient;
use super::data_flags::{DataFlags, EvalData};
use super::fields::{CacheFlags, FieldFlags, ModelFlags};

/// Evaluate runs, saved adapters or a base model on preference pairs.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo eval runs/dpo-lora-synthetic-1
  reprpo eval runs/a runs/b --dataset genies:math --set eval.max_pairs=none --json
  reprpo eval runs/a --shift genies:us_history --shift law=pairs.jsonl#train[:100]
  reprpo eval runs/a --suite genies-probing --data-dir DATA
  reprpo eval runs/dpo-lora-synthetic-1 --coefficient 0.5,1,2
  reprpo eval --model smollm2-135m-instruct --dataset pairs.jsonl
  reprpo eval --model smollm2-135m-instruct --set eval.instruction='Follow the evidence.'")]
pub struct EvalArgs {
    /// Folders of runs, or adapters in PEFT format (folders or Hugging Face repositories). If none
    /// are given, evaluate the base model given by `--model`.
    #[arg(value_name = "RUN_OR_ADAPTER", required_unless_present = "model")]
    pub targets: Vec<PathBuf>,
    /// Multiply the change that the adapter makes by C: 0 is off, 1 is as trained, -1 is the
    /// opposite. Several coefficients, e.g. `0.5,1,2`, give one table each. Adapters for which a
    /// multiple has no meaning are refused.
    #[arg(
        long,
        value_name = "C,…",
        value_delimiter = ',',
        value_parser = coefficient,
        allow_hyphen_values = true,
        requires = "targets",
        help_heading = "Model"
    )]
    pub coefficient: Vec<f64>,
    #[command(flatten)]
    pub model: FieldFlags<ModelFlags>,
    #[command(flatten)]
    pub data: DataFlags<EvalData>,
    #[command(flatten)]
    pub cache: FieldFlags<CacheFlags>,
    /// Also print the table of further metrics: margins, log σ, calibration, accuracy by length,
    /// loss and KL.
    #[arg(long, help_heading = "Output", conflicts_with = "json")]
    pub long: bool,
    /// Print a JSON list with the table and the completions of each target.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}
