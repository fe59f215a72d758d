//! Paths of the reference values for tests. Several crates include this file.
//!
//! `tests/golden` is part of the repository. Developers can keep larger reference values and
//! third-party data in a folder `shared` beside the workspace or in `$REPRPO_SHARED`; tests use
//! that folder as well if it exists.

// Each crate uses only some of the functions.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

/// Returns the folder `tests/golden`, which contains the reference values of the repository.
pub fn own() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|folder| folder.join("tests/golden"))
        .find(|folder| folder.join("make.py").is_file())
        .expect("the checkout must contain `tests/golden`")
}

/// Returns all folders of reference values: `tests/golden`, and `golden` in [`shared`] if it
/// exists.
pub fn roots() -> Vec<PathBuf> {
    let shared = shared("golden").map(|shared| shared.join("golden"));
    [own()].into_iter().chain(shared).collect()
}

/// Returns the folder `shared` if it contains `part`; otherwise prints that the tests of `part` are
/// skipped.
///
/// Every test on data in `shared` needs a counterpart that uses data in the repository.
pub fn shared(part: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("REPRPO_SHARED").map_or_else(
        || {
            let own = own();
            let checkout = own.ancestors().nth(2).expect("`tests/golden` must be in a checkout");
            checkout.with_file_name("shared")
        },
        PathBuf::from,
    );
    if folder.join(part).exists() {
        return Some(folder);
    }
    eprintln!("skipped: the folder `shared` (`$REPRPO_SHARED`) has no `{part}`");
    None
}
