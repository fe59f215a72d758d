//! Arguments of `reprpo export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::fields::{BaseModel, FieldFlags};

/// Write a trained model as a Hugging Face folder, its adapter merged into the weights.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo export runs/dpo-lora-synthetic-1 --merge --out my-model
  reprpo export runs/a/adapter --merge --out my-model --dtype bf16

The folder is one that transformers, vLLM and `reprpo --model` load.")]
pub struct ExportArgs {
    /// Folder of a run or of an adapter in PEFT's format, or the hub's repository of an adapter.
    #[arg(value_name = "RUN_OR_ADAPTER")]
    pub target: PathBuf,
    /// Merge the adapter into the weights; what is not merged is in the run's `adapter` folder
    /// already.
    #[arg(long, required = true)]
    pub merge: bool,
    /// The new folder.
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub out: PathBuf,
    #[command(flatten)]
    pub model: FieldFlags<BaseModel>,
    /// Precision of the weights that are written: `f32` or `bf16`. They are merged in f32.
    #[arg(long, value_enum, default_value_t = Written::F32, help_heading = "Output")]
    pub dtype: Written,
    /// Most gigabytes (10⁹ bytes) in one file.
    #[arg(long, value_name = "GB", default_value_t = 5.0, help_heading = "Output")]
    pub shard: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Written {
    /// 32-bit floats.
    F32,
    /// Brain floats of 16 bits.
    Bf16,
}
