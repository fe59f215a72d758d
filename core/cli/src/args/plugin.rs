//! Arguments of `reprpo plugin`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Check plugin libraries.
#[derive(Args)]
pub struct PluginArgs {
    #[command(subcommand)]
    pub command: PluginCommand,
}

#[derive(Subcommand)]
pub enum PluginCommand {
    Check(CheckArgs),
}

/// Check that a plugin library is compatible with this build and passes the conformance checks.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo plugin check target/release/libtwist.so
  reprpo plugin check libtwist.so --json")]
pub struct CheckArgs {
    /// Library to check.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Print JSON.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}
