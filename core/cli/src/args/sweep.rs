//! Arguments of `reprpo sweep`.

use std::path::PathBuf;

use clap::Args;

use super::ExperimentArgs;

/// Run every combination of some values, and compare the results in one table.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo sweep --over intervention=all --adapter lora --set train.max_pairs=64
  reprpo sweep --over intervention=dpo,prefvec --over adapter=lora,hra --over train.seed=0,1,2
  reprpo sweep grid.toml --config experiment.toml --out runs/night

A grid file has a line a field: `adapter = [\"lora\", \"hra\"]`, `\"train.lr\" = [1e-4, 1e-3]`, \
`intervention = \"all\"`.
Given the `--out` of a sweep that was interrupted, the same command goes on with it. Runs of a \
sweep make no
completions, unless `--set eval.completions=2` asks for them.")]
pub struct SweepArgs {
    /// A TOML file with a field and its values a line.
    #[arg(value_name = "GRID")]
    pub grid: Option<PathBuf>,
    /// A field and its values, as `adapter=lora,hra`; `all` stands for every name; may be given
    /// again.
    #[arg(long, value_name = "FIELD=VALUES")]
    pub over: Vec<String>,
    #[command(flatten)]
    pub experiment: ExperimentArgs,
    /// As a JSON list.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}
