//! Arguments of `reprpo compare`, and the options that it shares with `reprpo report`.

use std::path::PathBuf;

use clap::Args;

/// Compare the methods of recorded runs and studies.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo compare runs/study
  reprpo compare runs/dpo-lora-synthetic-1 runs/prefvec-hra-synthetic-1
  reprpo compare runs/study --baseline dpo --match-perplexity 0.9 --markdown > results.md
  reprpo compare runs/study --tuned runs/trained-on-the-shift --json

The command only reads the folders of runs; it needs neither the model nor the data. The runs must
have scored the same pairs with the same settings. A folder without `study.json` stands for all runs
in it. Runs that are damaged or not finished are listed and left out.

A method is the combination of intervention, transform and adapter, with the fields in which the
runs differ, or what the study defines. It is shown at the values that the study selected. Without a
study, the learning rate with the lowest validation loss is selected. docs/results.md explains the
tables.")]
pub struct CompareArgs {
    #[command(flatten)]
    pub comparison: ComparisonArgs,
    /// Print Markdown.
    #[arg(long, help_heading = "Output", conflicts_with_all = ["csv", "json"])]
    pub markdown: bool,
    /// Print CSV with one row per number: table, method, values, seeds, split, metric, value, low,
    /// high, remark.
    #[arg(long, help_heading = "Output", conflicts_with = "json")]
    pub csv: bool,
    /// Print a JSON object with all numbers.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// The options of a comparison.
#[derive(Args)]
pub struct ComparisonArgs {
    /// Folders of runs or studies, or folders that contain runs.
    #[arg(value_name = "RUN_OR_STUDY", required = true)]
    pub targets: Vec<PathBuf>,
    /// Method that the others are tested against: its name, or the name of its intervention.
    /// Defaults to the first method with the intervention `dpo`, otherwise to the first method.
    #[arg(long, value_name = "NAME", help_heading = "Comparison")]
    pub baseline: Option<String>,
    /// Perplexity ratio at which the methods are compared.
    #[arg(long, value_name = "RATIO", default_value_t = 0.95, help_heading = "Comparison")]
    pub match_perplexity: f64,
    /// Split whose chosen text gives this ratio; by default `test`.
    #[arg(long, value_name = "SPLIT", help_heading = "Comparison")]
    pub match_split: Option<String>,
    /// Run that was trained on the shifted distribution itself, for the elicitation; may be
    /// repeated. Its `test` pairs must be the pairs of the shift.
    #[arg(long, value_name = "RUN", help_heading = "Comparison")]
    pub tuned: Vec<PathBuf>,
}
