//! Arguments of `reprpo export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::fields::{BaseModel, FieldFlags};

/// Merge a trained adapter into its model and write the result as a Hugging Face folder.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo export runs/dpo-lora-synthetic-1 --merge --out my-model
  reprpo export runs/a/adapter --merge --out my-model --dtype bf16

transformers, vLLM and `reprpo --model` can load the folder.")]
pub struct ExportArgs {
    /// Folder of a run, or an adapter in PEFT format (a folder or a Hugging Face repository).
    #[arg(value_name = "RUN_OR_ADAPTER")]
    pub target: PathBuf,
    /// Merge the adapter into the weights. This flag is required, because the unmerged adapter is
    /// already in the run's `adapter` folder.
    #[arg(long, required = true, help_heading = "Output")]
    pub merge: bool,
    /// Folder to create, which must not exist yet.
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub out: PathBuf,
    #[command(flatten)]
    pub model: FieldFlags<BaseModel>,
    /// Precision of the written weights. The adapter is always merged in f32.
    #[arg(long, value_enum, default_value_t = ExportDtype::F32, help_heading = "Output")]
    pub dtype: ExportDtype,
    /// Maximum size of a file in gigabytes (10⁹ bytes).
    #[arg(long, value_name = "GB", default_value_t = 5.0, help_heading = "Output")]
    pub shard: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportDtype {
    /// 32-bit floating point.
    F32,
    /// bfloat16.
    Bf16,
}
