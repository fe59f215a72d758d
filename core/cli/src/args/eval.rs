//! Arguments of `reprpo eval`.

use std::path::PathBuf;

use clap::Args;

use super::data_flags::{DataFlags, Judged};
use super::fields::{FieldFlags, ModelFlags};

/// Judge runs, saved adapters or a base model on preference pairs.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo eval runs/dpo-lora-synthetic-1
  reprpo eval runs/a runs/b --dataset genies:math --set eval.max_pairs=none --json
  reprpo eval --model smollm2-135m-instruct --dataset pairs.jsonl")]
pub struct EvalArgs {
    /// Folders of runs or of adapters in PEFT's format, or the hub's repositories of adapters,
    /// which know their models; none = `--model` alone.
    #[arg(value_name = "RUN_OR_ADAPTER", required_unless_present = "model")]
    pub targets: Vec<PathBuf>,
    #[command(flatten)]
    pub model: FieldFlags<ModelFlags>,
    #[command(flatten)]
    pub data: DataFlags<Judged>,
    /// One JSON list with a table each, and the completions.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}
