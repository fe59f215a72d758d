//! Paths of the reference values for tests. Several crates include this file.
//!
//! `tests/golden` is part of the repository, so every clone has it. Developers can keep larger
//! reference values and third-party data in a folder `shared` beside the workspace, or in
//! `$REPRPO_SHARED`. Tests use that folder as well if it exists.

// No crate uses every function.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

/// The reference values in the repository, `tests/golden`.
pub fn own() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|folder| folder.join("tests/golden"))
        .find(|folder| folder.join("make.py").is_file())
        .expect("a checkout has `tests/golden`")
}

/// All folders of reference values: `tests/golden`, and `golden` in [`shared`] if it exists.
pub fn roots() -> Vec<PathBuf> {
    let shared = shared("golden").map(|shared| shared.join("golden"));
    [own()].into_iter().chain(shared).collect()
}

/// The folder `shared`, if it contains `part`. Otherwise prints that the tests of `part` do not
/// run.
///
/// Every test on data in `shared` needs a counterpart that runs on data in the repository.
pub fn shared(part: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("REPRPO_SHARED").map_or_else(
        || {
            let own = own();
            let checkout = own.ancestors().nth(2).expect("`tests/golden` is in a checkout");
            checkout.with_file_name("shared")
        },
        PathBuf::from,
    );
    if folder.join(part).exists() {
        return Some(folder);
    }
    eprintln!("not run: tests of `{part}` in the folder `shared` (`$REPRPO_SHARED`)");
    None
}
