//! `reprpo` with its built-in methods and two more plugins in one program: nothing is loaded at run
//! time.

use std::process::ExitCode;

// Linked for what they register.
use {csv_pairs as _, reprpo_datasets as _, simpo as _};

fn main() -> ExitCode {
    reprpo_cli::main(reprpo_methods::DEFAULTS)
}
