//! Arguments of `reprpo doctor`.

use clap::Args;

/// Whether this machine has what reprpo needs, and what would make it faster.
#[derive(Args)]
pub struct DoctorArgs {
    /// As a JSON list.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}
