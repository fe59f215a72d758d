//! The place of a row in a file, for errors.

use std::fmt;
use std::path::Path;

/// The place of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Line on which the row begins, counted from 1.
    Line(usize),
    /// Number of the row, counted from 1, in a file without lines such as parquet.
    Row(usize),
}

impl Place {
    /// Returns the context for an error about the row at this place.
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
