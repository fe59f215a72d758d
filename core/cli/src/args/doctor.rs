//! Arguments of `reprpo doctor`.

use clap::Args;

/// Check that this machine meets the requirements of reprpo, and show what would make it faster.
#[derive(Args)]
pub struct DoctorArgs {
    /// Print a JSON list.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}
