//! Arguments of `reprpo export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::coefficient::coefficient;
use super::fields::{BaseModel, FieldFlags};

/// Write a trained adapter for other programs: merged into its model, or as a control vector.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo export runs/dpo-lora-synthetic-1 --merge --out my-model
  reprpo export runs/a/adapter --merge --out my-model --dtype bf16
  reprpo export runs/a --merge --coefficient 0.5 --out half-way
  reprpo export runs/steer-lora-synthetic-1 --control-vector --out vector.gguf

transformers, vLLM and `reprpo --model` can load the folder. llama.cpp and repeng can load a control
vector.")]
pub struct ExportArgs {
    /// Folder of a run, or an adapter in PEFT format (a folder or a Hugging Face repository).
    #[arg(value_name = "RUN_OR_ADAPTER")]
    pub target: PathBuf,
    /// Merge the adapter into the weights, and write a Hugging Face folder. The unmerged adapter is
    /// already in the run's `adapter` folder.
    #[arg(long, required_unless_present = "control_vector", help_heading = "Output")]
    pub merge: bool,
    /// Write the directions that a run of `steer` adds to the residual stream, as a GGUF file.
    #[arg(long, conflicts_with = "merge", help_heading = "Output")]
    pub control_vector: bool,
    /// Folder or file to create, which must not exist yet.
    #[arg(long, value_name = "PATH", help_heading = "Output")]
    pub out: PathBuf,
    #[command(flatten)]
    pub model: FieldFlags<BaseModel>,
    /// Multiply the change that the adapter makes by C before merging: 0 is off, 1 is as trained,
    /// -1 is the opposite. Adapters for which a multiple has no meaning are refused.
    #[arg(
        long,
        value_name = "C",
        value_parser = coefficient,
        default_value_t = 1.0,
        allow_hyphen_values = true,
        help_heading = "Output"
    )]
    pub coefficient: f64,
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
