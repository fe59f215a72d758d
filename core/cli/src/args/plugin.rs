//! Arguments of `reprpo plugin`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Plugins that were built as libraries.
#[derive(Args)]
pub struct PluginArgs {
    #[command(subcommand)]
    pub command: PluginCommand,
}

#[derive(Subcommand)]
pub enum PluginCommand {
    Check(CheckArgs),
}

/// What a plugin's library registers, whether it fits this build, and whether its methods keep what
/// every method promises.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo plugin check target/release/libtwist.so
  reprpo plugin check libtwist.so --json")]
pub struct CheckArgs {
    /// The library.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// As JSON.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}
