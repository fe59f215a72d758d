//! Errors with the command that mends them.

use std::io;
use std::path::Path;

use anyhow::{Error, anyhow};

/// An error that says what is wrong and, after a blank line, what to do.
pub fn failure(what: impl AsRef<str>, hint: impl AsRef<str>) -> Error {
    anyhow!("{}\n\nhint: {}", what.as_ref(), hint.as_ref())
}

/// An error of the file system at `path`; a full disk gets its hint, since these files are large.
pub fn at(path: &Path, doing: &str, error: io::Error) -> Error {
    let what = format!("cannot {doing} `{}`: {error}", path.display());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => failure(what, DISK_FULL),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => failure(what, "export `REPRPO_CACHE` with a folder that you may write to"),
        _ => anyhow!(what),
    }
}

/// What to do when the disk is full; finished downloads are kept, so a second run goes on from there.
pub const DISK_FULL: &str =
    "libtorch takes 1.2 GB on the way (10 GB with CUDA); free some space or export `REPRPO_CACHE` with a folder on another disk, then run this again";
