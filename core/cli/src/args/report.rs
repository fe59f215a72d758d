//! Arguments of `reprpo report`.

use std::path::PathBuf;

use clap::Args;

use super::compare::ComparisonArgs;

/// Write a page that compares recorded runs and studies, with plots.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo report runs/study
  reprpo report runs/study --out study.html --baseline dpo
  reprpo report runs/dpo-lora-synthetic-1 runs/prefvec-hra-synthetic-1 --out two.html

The page is one HTML file that needs no network and no scripts. It has the tables of `reprpo
compare`, plots, training curves, completions, and the commands and configurations.")]
pub struct ReportArgs {
    #[command(flatten)]
    pub comparison: ComparisonArgs,
    /// File to write. Defaults to `report.html` in the first folder.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub out: Option<PathBuf>,
    /// Print a JSON object with `report`, the path of the file.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}
