//! Arguments of `reprpo reproduce`.

use std::path::PathBuf;

use clap::Args;

/// Repeat a recorded run and compare the results.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo reproduce runs/dpo-lora-synthetic-1
  reprpo reproduce runs/dpo-lora-synthetic-1 --out runs/again --json
  reprpo reproduce runs/dpo-lora-synthetic-1 --tolerance 1e-3

The run is repeated with its recorded configuration and plugins. The command refuses to start if the
model or the data have changed. It compares the trained parameters, the metrics of the steps and the
scores of the pairs, and names the differences between the environments.

The exit code is 0 if all results have the same bytes. With --tolerance, it is also 0 if no loss and
no score differs by more, and the accuracies are equal. Otherwise it is 1.")]
pub struct ReproduceArgs {
    /// Folder of the run.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Folder of the repetition. Defaults to the first unused name of the form `RUN-again-1`.
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub out: Option<PathBuf>,
    /// Largest difference of a loss or of a score in nats that counts as success.
    #[arg(long, value_name = "DIFFERENCE", help_heading = "Comparison")]
    pub tolerance: Option<f64>,
    /// Print a JSON object with the differences.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}
