//! Reads rows and pairs from a file in any supported format.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use reprpo_plugin::error::quoted;
use reprpo_plugin::prelude::*;
use reprpo_plugin::tracing;

use super::parquet::Table;
use super::place::Place;
use super::row::{self, Columns, Row};
use super::{csv, input, json, jsonl};

/// Extensions of the supported files.
pub const EXTENSIONS: [&str; 13] = [
    "jsonl",
    "json",
    "csv",
    "tsv",
    "parquet",
    "jsonl.gz",
    "jsonl.zst",
    "json.gz",
    "json.zst",
    "csv.gz",
    "csv.zst",
    "tsv.gz",
    "tsv.zst",
];

/// Returns the extension of a file, without `.gz` or `.zst` for compressed files. Returns `None` if
/// the extension is not supported.
pub fn extension(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    let found = EXTENSIONS
        .into_iter()
        .find(|extension| name.strip_suffix(extension).is_some_and(|head| head.ends_with('.')))?;
    found.split('.').next()
}

/// Options for reading a file.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Names of the columns.
    pub columns: Columns,
    /// Field delimiter of CSV and TSV files; `None` for a comma or a tab, respectively.
    pub delimiter: Option<u8>,
    /// Maximum size of a row in bytes.
    pub longest: usize,
    /// True to skip rows that are not pairs, and to report how many were skipped. If false, such a
    /// row is an error.
    pub skip: bool,
}

impl Default for Reading {
    fn default() -> Self {
        Self { columns: Columns::default(), delimiter: None, longest: 16 << 20, skip: false }
    }
}

/// A data file in a supported format.
#[derive(Clone, Debug)]
pub struct Source {
    path: PathBuf,
    format: Format,
    reading: Reading,
}

#[derive(Clone, Debug)]
enum Format {
    Jsonl,
    Json,
    Csv(u8),
    Parquet(Table),
}

/// An iterator over the rows of a file and their locations. It ends after an error.
pub type Rows = Box<dyn Iterator<Item = Result<(Place, Row)>>>;

impl Source {
    /// Detects the format of a file. A parquet file must have the columns of a pair and the `extra`
    /// columns. In other formats, missing columns are only detected when the rows are read.
    ///
    /// # Errors
    /// Fails if the file is missing, if its extension is unknown, or if it is a parquet file that
    /// is damaged or lacks a column.
    pub fn open(path: &Path, reading: Reading, extra: &[&str]) -> Result<Self> {
        if input::is_stdin(path) {
            let format =
                if jsonl::is_jsonl(path, reading.longest)? { Format::Jsonl } else { Format::Json };
            return Ok(Self { path: path.to_owned(), format, reading });
        }
        if path.is_dir() {
            return Err(Error::new(format!("`{}` is a folder, not a file", path.display())));
        }
        let format = match extension(path) {
            Some("jsonl") => Format::Jsonl,
            Some("json") => Format::Json,
            Some("csv") => Format::Csv(reading.delimiter.unwrap_or(b',')),
            Some("tsv") => Format::Csv(reading.delimiter.unwrap_or(b'\t')),
            Some("parquet") => Format::Parquet(Table::open(path, &reading.columns, extra)?),
            _ => {
                let given = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
                return Err(Error::unknown("file extension", &given, EXTENSIONS)
                    .within(format!("the format of `{}` is not supported", path.display())));
            }
        };
        Ok(Self { path: path.to_owned(), format, reading })
    }

    /// Returns the rows in order. The iterator yields an error for a row that cannot be read.
    ///
    /// # Errors
    /// Fails if the file cannot be opened, or if its header lacks a column.
    pub fn rows(&self) -> Result<Rows> {
        Ok(match &self.format {
            Format::Jsonl => Box::new(jsonl::Rows::open(&self.path, self.reading.longest)?),
            Format::Json => json::rows(&self.path, self.reading.longest)?,
            Format::Csv(delimiter) => {
                let rows = csv::Rows::open(&self.path, *delimiter, self.reading.longest)?;
                self.check_header(rows.header(), *delimiter)
                    .within(|| Place::Line(1).reading(&self.path))?;
                Box::new(rows)
            }
            Format::Parquet(table) => Box::new(table.read()?),
        })
    }

    /// Checks the columns in the header, so that a missing column is reported once and not for
    /// every row.
    fn check_header(&self, header: &[String], delimiter: u8) -> Result<()> {
        let columns = || header.iter().map(String::as_str);
        let Err(e) = self.reading.columns.find(columns()) else {
            return self.reading.columns.cluster_column(columns()).map(drop);
        };
        // If there is only one column and its name contains a different delimiter, the file
        // probably uses that delimiter.
        let other = match header {
            [only] => [";", "\t", "|", ","]
                .into_iter()
                .find(|d| d.as_bytes() != [delimiter] && only.contains(d)),
            _ => None,
        };
        Err(match other {
            Some("\t") => e.hint("if tabs separate the fields, rename the file to `.tsv`"),
            Some(other) => e.hint(format!(
                "if `{other}` separates the fields, use `--set {}`",
                quoted(format!("dataset.delimiter={other}"))
            )),
            None => e,
        })
    }

    /// Returns the pairs in order, each with the number of its row, counted from 0. A row that is
    /// not a pair is skipped if [`Reading::skip`] is true. Otherwise, the iterator yields an error
    /// and ends.
    ///
    /// # Errors
    /// Fails for the same reasons as [`rows`](Self::rows).
    pub fn pairs(&self) -> Result<Pairs> {
        self.pairs_after(&Rc::default())
    }

    /// Like [`pairs`](Self::pairs), but continues the row numbers of the split's previous files.
    /// `read` is the number of rows read so far, and increases with every row of this file.
    ///
    /// # Errors
    /// Fails for the same reasons as [`pairs`](Self::pairs).
    pub fn pairs_after(&self, read: &Rc<Cell<usize>>) -> Result<Pairs> {
        Ok(Pairs {
            path: self.path.clone(),
            columns: self.reading.columns.clone(),
            skip: self.reading.skip,
            cells: matches!(self.format, Format::Csv(_)),
            rows: self.rows()?,
            read: read.clone(),
            waiting: Vec::new().into_iter(),
            shape: None,
            skipped: None,
            altered: false,
            ended: false,
        })
    }

    /// Returns the number of pairs, or `None` if the rows must be read to count them.
    pub fn count(&self) -> Option<usize> {
        match &self.format {
            Format::Parquet(table) if !self.reading.skip => table.pairs(),
            _ => None,
        }
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the columns.
    pub fn columns(&self) -> &Columns {
        &self.reading.columns
    }
}

/// Iterates over the pairs of a file.
pub struct Pairs {
    path: PathBuf,
    columns: Columns,
    skip: bool,
    /// True for CSV and TSV files. Their empty completions are errors, because an empty cell may be
    /// a missing value.
    cells: bool,
    rows: Rows,
    /// Number of rows read so far, including skipped rows and rows of previous files.
    read: Rc<Cell<usize>>,
    /// Pairs of the current row that have not been returned yet.
    waiting: std::vec::IntoIter<PreferencePair>,
    /// Shape of the first row.
    shape: Option<Shape>,
    /// Number of skipped rows, and the error of the first one.
    skipped: Option<(usize, Error)>,
    /// True if the warning about a replaced value in a message field has been shown.
    altered: bool,
    ended: bool,
}

/// Properties that must be the same for all rows of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    prompt: bool,
    form: &'static str,
}

impl Pairs {
    /// Converts a row to one or more pairs.
    ///
    /// # Errors
    /// Fails if the row is not valid, or if its shape differs from the shape of earlier rows.
    /// Different shapes usually mean that the file mixes unrelated data.
    fn of(&mut self, row: Row) -> Result<Vec<PreferencePair>> {
        let prompt = self.columns.prompt.as_ref().is_some_and(|p| row.contains_key(p));
        let pairs = row::pairs(row, &self.columns)?;
        for pair in &pairs {
            let shape = Shape { prompt, form: row::form(&pair.chosen) };
            match *self.shape.get_or_insert(shape) {
                before if before.form != shape.form => {
                    return Err(Error::new(format!(
                        "it contains {}, but earlier rows contain {}",
                        shape.form, before.form
                    ))
                    .hint("put plain text and conversations in separate files"));
                }
                before if before.prompt != shape.prompt => {
                    let (name, has) = (
                        self.columns.prompt.as_deref().unwrap_or_default(),
                        if prompt { "has a" } else { "has no" },
                    );
                    return Err(Error::new(format!(
                        "it {has} column `{name}`, unlike earlier rows"
                    )));
                }
                _ => {}
            }
            let completions =
                [(&self.columns.chosen, &pair.chosen), (&self.columns.rejected, &pair.rejected)];
            if let Some((name, _)) =
                completions.iter().find(|(_, text)| self.cells && **text == Text::from(""))
            {
                return Err(Error::new(format!("`{name}` is empty"))
                    .hint("use `--set dataset.bad_rows=skip` to skip such rows"));
            }
        }
        Ok(pairs)
    }

    fn step(&mut self) -> Result<Option<(usize, PreferencePair)>> {
        loop {
            if let Some(pair) = self.waiting.next() {
                return Ok(Some((self.read.get() - 1, pair)));
            }
            let Some((place, row)) = self.rows.next().transpose()? else { return Ok(None) };
            self.read.set(self.read.get() + 1);
            if !self.altered
                && let Some(what) = row.altered(&self.columns)
            {
                self.altered = true;
                tracing::warn!("{place} of `{}`: {what}", self.path.display());
            }
            match self.of(row).within(|| place.reading(&self.path)) {
                Ok(pairs) => self.waiting = pairs.into_iter(),
                Err(e) if self.skip => {
                    let (count, _) = self.skipped.get_or_insert((0, e));
                    *count += 1;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Returns the first pair. Use this as a cheap check that the file is usable.
    ///
    /// # Errors
    /// Fails if the file contains no pairs, or if a row before the first pair is not valid and
    /// [`Reading::skip`] is false.
    pub fn first(mut self) -> Result<PreferencePair> {
        let first = self.next().transpose()?.map(|(_, pair)| pair);
        let skipped = self.skipped.take();
        first.ok_or_else(|| {
            let none = Error::new(format!("`{}` has no pairs", self.path.display()));
            match skipped {
                Some((count, e)) => none
                    .because(e)
                    .hint(format!("{count} rows were skipped because of `dataset.bad_rows=skip`")),
                None => none,
            }
        })
    }
}

impl Iterator for Pairs {
    type Item = Result<(usize, PreferencePair)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let pair = self.step().transpose();
        self.ended = !matches!(pair, Some(Ok(_)));
        pair
    }
}

impl Drop for Pairs {
    /// Warns about skipped rows, even if the iterator was not exhausted.
    fn drop(&mut self) {
        if let Some((count, e)) = &self.skipped {
            let why = std::error::Error::source(e)
                .map_or_else(String::new, |why| format!(" because {why}"));
            tracing::warn!(
                "skipped {count} rows of `{}` that are not pairs; first error: {e}{why}",
                self.path.display()
            );
        }
    }
}
