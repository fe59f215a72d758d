//! Arguments of `reprpo config`.

use clap::{Args, Subcommand};

use super::ExperimentArgs;

/// The resolved configuration, or its schema.
#[derive(Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub command: ConfigCommand,
}

#[derive(Subcommand)]
pub enum ConfigCommand {
    Show(Box<ShowArgs>),
    /// The JSON schema of the whole experiment, with the fields of every plugin.
    Schema,
}

/// The experiment that `reprpo run` would run with the same flags, as a configuration file.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo config show --intervention prefvec --origin
  reprpo config show --set train.lr=3e-5 > experiment.toml && reprpo run --config experiment.toml")]
pub struct ShowArgs {
    #[command(flatten)]
    pub experiment: ExperimentArgs,
    /// Say behind each value where it came from.
    #[arg(long, help_heading = "Output")]
    pub origin: bool,
    /// As JSON.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}
