//! The `reprpo` binary: the command line with the built-in methods and data sets.

use std::process::ExitCode;

// Link this crate so that its data sets are registered.
use reprpo_datasets as _;

fn main() -> ExitCode {
    reprpo_cli::main(reprpo_methods::DEFAULTS)
}
