//! Arguments of `reprpo config`.

use clap::{Args, Subcommand};

use super::ExperimentArgs;

/// Print the resolved configuration, or its JSON schema.
#[derive(Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub command: ConfigCommand,
}

#[derive(Subcommand)]
pub enum ConfigCommand {
    Show(Box<ShowArgs>),
    /// Print the JSON schema of the configuration, including the fields of every plugin.
    Schema,
}

/// Print the experiment that `reprpo run` would run with these flags, as a configuration file.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo config show --intervention prefvec --origin
  reprpo config show --set train.lr=3e-5 > experiment.toml && reprpo run --config experiment.toml")]
pub struct ShowArgs {
    #[command(flatten)]
    pub experiment: ExperimentArgs,
    /// For each value, add a comment that names its origin.
    #[arg(long, help_heading = "Output")]
    pub origin: bool,
    /// Print JSON instead of TOML.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}
