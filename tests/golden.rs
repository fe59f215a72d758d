//! The folders of reference values that tests read.
//!
//! `tests/golden` is a part of the repository, so every clone has it. Larger values and the data of
//! others lie in a folder `shared` beside the workspace on the machines of the developers, or in
//! `$REPRPO_SHARED`. Tests read those too where they exist. Several crates include this file.

// No crate needs all of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

/// The repository's own reference values, `tests/golden`.
pub fn own() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|folder| folder.join("tests/golden"))
        .find(|folder| folder.join("make.py").is_file())
        .expect("a checkout has `tests/golden`")
}

/// The folders of reference values: `tests/golden`, then `golden` in [`shared`] if it exists.
pub fn roots() -> Vec<PathBuf> {
    let shared = shared("golden").map(|shared| shared.join("golden"));
    [own()].into_iter().chain(shared).collect()
}

/// The folder `shared`, if it contains `part`; otherwise prints that the tests on it are left out.
///
/// A test on data of `shared` needs a twin that runs on data of this repository.
pub fn shared(part: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("REPRPO_SHARED").map_or_else(
        || {
            let own = own();
            let checkout = own.ancestors().nth(2).expect("two folders up");
            checkout.with_file_name("shared")
        },
        PathBuf::from,
    );
    if folder.join(part).exists() {
        return Some(folder);
    }
    eprintln!("left out: `{part}` in the folder `shared` (`$REPRPO_SHARED`), which is not there");
    None
}
