//! The whole program as its users run it.

mod command;
mod data;
mod export;
mod generate;
mod hub;
mod invariants;
mod plugins;
mod resume;
mod score;
#[cfg(unix)]
mod signals;
mod tokenizer;
mod tokens;
mod training;

use std::path::{Path, PathBuf};

/// The folder of reference values: `$REPRPO_SHARED`, else `shared` beside the workspace.
fn golden() -> Option<PathBuf> {
    let found = std::env::var_os("REPRPO_SHARED").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from).join("golden");
    if found.is_dir() {
        return Some(found);
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "continuous integration needs the reference values (`$REPRPO_SHARED`)");
    eprintln!("skipped: the reference values (`$REPRPO_SHARED`) are not there");
    None
}
