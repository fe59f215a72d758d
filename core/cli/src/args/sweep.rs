//! Arguments of `reprpo sweep`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::ExperimentArgs;

/// Run a study: methods, seeds, and a search for the best settings of each method.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo sweep study.toml --dry-run
  reprpo sweep study.toml
  reprpo sweep study.toml --jobs 4 --sampler tpe --trials 20
  reprpo sweep study.toml --launcher slurm --sbatch=--gpus=1 --sbatch=--time=04:00:00
  reprpo sweep --over intervention=all --adapter lora --set train.max_pairs=64
  reprpo sweep --over intervention=dpo,prefvec --over adapter=lora,hra --over train.seed=0,1,2
  reprpo sweep grid.toml --config experiment.toml --out runs/night

A study file names the methods, the seeds of the final runs and the searched fields:
  seeds = [1, 2, 3]
  [base]
  model = \"smollm2-135m-instruct\"
  \"train.max_pairs\" = 300
  [methods.dpo]
  intervention = \"dpo\"
  [methods.prefvec]
  intervention = \"prefvec\"
  adapter = \"hra\"
  [search]
  sampler = \"grid\"
  [search.fields]
  \"train.lr\" = [1e-4, 1e-3]

Each method is searched with one seed. Its best point by the mean log σ of the score difference on
held-out training pairs is then run with all seeds. docs/studies.md describes all keys.

A grid file has one line per field, for example:
  adapter = [\"lora\", \"hra\"]
  \"train.lr\" = [1e-4, 1e-3]
  intervention = \"all\"

Repeat the command to continue an interrupted study. It computes only the runs that are missing. A
sweep without a study file needs `--out` for that. Runs generate no completions unless
`--set eval.completions=N` is given.")]
pub struct SweepArgs {
    /// Study file, or TOML file with one field and its values per line.
    #[arg(value_name = "STUDY")]
    pub study: Option<PathBuf>,
    /// Field and its values, e.g. `adapter=lora,hra`; may be repeated. `adapter=all` means every
    /// adapter, except those that are made of other runs; `all` also works for the other kinds of
    /// plugin.
    #[arg(long, value_name = "FIELD=VALUES", help_heading = "Sweep")]
    pub over: Vec<String>,
    /// Print the plan without running anything.
    #[arg(long, help_heading = "Sweep")]
    pub dry_run: bool,
    /// Sampler of the search: `grid`, `random`, `tpe`, `halving` or `external`. `external` writes
    /// requests to stdout and reads values from stdin. Defaults to the study's.
    #[arg(long, value_name = "NAME", help_heading = "Sweep")]
    pub sampler: Option<String>,
    /// Number of points of the search. Defaults to the study's.
    #[arg(long, value_name = "N", help_heading = "Sweep", value_parser = positive)]
    pub trials: Option<usize>,
    /// Select the tuned points on the shifted set `oos`, and not on held-out training pairs. The
    /// results on `oos` are then not a measure of generalisation, and every table says so.
    #[arg(long, help_heading = "Sweep")]
    pub select_on_shift: bool,
    /// Number of runs to compute at the same time, each in its own process. They share the cores
    /// and the GPUs.
    #[arg(long, value_name = "N", help_heading = "Sweep", value_parser = positive)]
    pub jobs: Option<usize>,
    /// Number of threads of each run. Defaults to the number of cores divided by the number of
    /// jobs.
    #[arg(long, value_name = "N", help_heading = "Sweep", value_parser = positive)]
    pub threads: Option<usize>,
    /// Where to compute the runs.
    #[arg(long, value_enum, default_value_t = Launcher::Local, help_heading = "Sweep")]
    pub launcher: Launcher,
    /// Option of `sbatch` for the runs, e.g. `--sbatch=--gpus=1`; may be repeated.
    #[arg(long, value_name = "OPTION", help_heading = "Sweep", allow_hyphen_values = true)]
    pub sbatch: Vec<String>,
    /// Continue a study after an array of Slurm jobs. Only for the scripts that this command
    /// writes.
    #[arg(long, hide = true)]
    pub after_array: bool,
    #[command(flatten)]
    pub experiment: ExperimentArgs,
    /// Print a JSON list.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// The place where the runs of a study are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Launcher {
    /// This machine.
    Local,
    /// A Slurm cluster: one array of jobs for each round of the study.
    Slurm,
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "must be a whole number, at least 1".into())
}
