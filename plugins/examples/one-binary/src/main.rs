//! `reprpo` with its built-in methods and two more plugins in one program. No plugin is loaded at
//! run time.

use std::process::ExitCode;

// Linking these crates registers their plugins.
use {csv_pairs as _, dpop as _, reprpo_datasets as _};

fn main() -> ExitCode {
    reprpo_cli::main(reprpo_methods::DEFAULTS)
}
