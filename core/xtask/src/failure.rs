//! Errors with hints.

use std::io;
use std::path::Path;

use anyhow::{Error, anyhow};
use reprpo_downloads::Failure;

/// Creates an error with a message and, after a blank line, a hint.
pub fn failure(what: impl AsRef<str>, hint: impl AsRef<str>) -> Error {
    anyhow!("{}\n\nhint: {}", what.as_ref(), hint.as_ref())
}

/// Adds the path to an I/O error. For paths in the download cache, use [`at`] instead. `doing` is
/// the failed operation as a verb, such as `read`.
pub fn file_error(path: &Path, doing: &str, error: &io::Error) -> Error {
    anyhow!("cannot {doing} `{}`: {error}", path.display())
}

/// Adds the path to an I/O error in the download cache. `doing` is the failed operation as a verb,
/// such as `read`.
pub fn at(path: &Path, doing: &str, error: io::Error) -> Error {
    Failure::at(path, doing, &error).into()
}
