//! The error type of downloads.

use std::fmt;
use std::io;
use std::path::Path;

/// `Result` with this crate's [`Failure`].
pub type Result<T> = std::result::Result<T, Failure>;

/// The cause of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The disk is full, or the permissions of a folder are missing.
    Disk,
    /// pip, the network or the package index failed. Another source may have the same data.
    Index,
}

/// An error with an optional hint. `Display` prints the message and, after a blank line, the hint.
#[derive(Debug)]
pub struct Failure {
    cause: Cause,
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// Creates an error without a hint.
    pub fn new(cause: Cause, message: impl Into<String>) -> Self {
        Self { cause, message: message.into(), hint: None }
    }

    /// Sets the hint.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Converts a file system error at `path`. `doing` is the verb of the message, such as `read`.
    pub fn at(path: &Path, doing: &str, error: &io::Error) -> Self {
        let failure =
            Self::new(Cause::Disk, format!("cannot {doing} `{}`: {error}", path.display()));
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => failure.hint(DISK_FULL),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                failure.hint("set `REPRPO_CACHE` to a folder that you can write to")
            }
            _ => failure,
        }
    }

    /// The message without the hint.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The hint, if there is one.
    pub fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The cause of the failure.
    pub fn cause(&self) -> Cause {
        self.cause
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\n\nhint: {hint}"))
    }
}

impl std::error::Error for Failure {}

/// The hint for a full disk.
pub(crate) const DISK_FULL: &str = "free some space, or set `REPRPO_CACHE` to a folder on another \
    disk, then run this again: files that were downloaded in full are kept";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_error_has_a_hint() {
        let of = |kind: io::ErrorKind| {
            Failure::at(Path::new("/cache/x"), "write", &io::Error::from(kind)).to_string()
        };
        assert!(
            of(io::ErrorKind::StorageFull).contains("cannot write `/cache/x`")
                && of(io::ErrorKind::StorageFull).contains("hint: free some space")
        );
        assert!(of(io::ErrorKind::PermissionDenied).contains("hint: set `REPRPO_CACHE`"));
        assert!(!of(io::ErrorKind::NotFound).contains("hint"));
    }
}
