//! Locations of rows in a file, for error messages.

use std::fmt;
use std::path::Path;

/// The location of a row in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Line on which the row begins, counted from 1.
    Line(usize),
    /// Number of the row, counted from 1. Used for formats without lines, such as parquet.
    Row(usize),
}

impl Place {
    /// Returns the context message for an error in the row.
    pub fn reading(self, path: &Path) -> String {
        format!("cannot read {self} of `{}`", path.display())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(n) => write!(f, "line {n}"),
            Place::Row(n) => write!(f, "row {n}"),
        }
    }
}
