//! Arguments of `reprpo sweep`.

use std::path::PathBuf;

use clap::Args;

use super::ExperimentArgs;

/// Run every combination of the given values and compare the results in one table.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo sweep --over intervention=all --adapter lora --set train.max_pairs=64
  reprpo sweep --over intervention=dpo,prefvec --over adapter=lora,hra --over train.seed=0,1,2
  reprpo sweep grid.toml --config experiment.toml --out runs/night

A grid file has one line per field, for example:
  adapter = [\"lora\", \"hra\"]
  \"train.lr\" = [1e-4, 1e-3]
  intervention = \"all\"

To resume an interrupted sweep, repeat the command with the sweep's folder as `--out`. The runs of a
sweep generate no completions unless `--set eval.completions=N` is given.")]
pub struct SweepArgs {
    /// TOML file with one field and its values per line.
    #[arg(value_name = "GRID")]
    pub grid: Option<PathBuf>,
    /// Field and its values, e.g. `adapter=lora,hra`; may be repeated. `adapter=all` means every
    /// adapter; `all` also works for the other kinds of plugin.
    #[arg(long, value_name = "FIELD=VALUES", help_heading = "Sweep")]
    pub over: Vec<String>,
    #[command(flatten)]
    pub experiment: ExperimentArgs,
    /// Print a JSON list.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}
