//! Arguments of `reprpo cache`.

use clap::{Args, Subcommand};

/// List or clear the values of reference models that are kept on disk.
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_long_help = "\
Examples:
  reprpo cache
  reprpo cache --json
  reprpo cache clear 3fa9c2
  reprpo cache clear

`reprpo run --reference-cache disk` and `reprpo eval --reference-cache disk` keep the values in
`$REPRPO_CACHE/reference` (default `~/.cache/reprpo/reference`). All values together have at most
`cache.max_gb`; those that were not used for the longest time are removed first."
)]
pub struct CacheArgs {
    #[command(subcommand)]
    pub command: Option<CacheCommand>,
    /// Print a JSON object with `folder`, `bytes` and `collections`.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum CacheCommand {
    Clear(ClearArgs),
}

/// Remove cached values. Runs that need them compute them again.
#[derive(Args)]
pub struct ClearArgs {
    /// Key of the values to remove, or the beginning of the key, as printed by `reprpo cache`.
    /// Without a key, all values are removed.
    pub key: Option<String>,
    /// Print a JSON object with `folder`, `bytes` and `collections`, which were removed.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}
