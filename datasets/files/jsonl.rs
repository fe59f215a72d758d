//! Reads JSON Lines files one line at a time, so that a file can be larger than memory.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use reprpo_plugin::prelude::*;

use super::input::{self, Bytes};
use super::place::Place;
use super::row::Row;
use super::value;

/// Iterates over the rows of a JSON Lines file. Blank lines are skipped.
pub struct Rows {
    path: PathBuf,
    reader: BufReader<Bytes>,
    line: usize,
    longest: usize,
}

impl Rows {
    /// Opens the file. The iterator yields an error for a line of more than `longest` bytes.
    ///
    /// # Errors
    /// Fails if the file cannot be opened.
    pub fn open(path: &Path, longest: usize) -> Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            reader: BufReader::new(input::open(path)?),
            line: 0,
            longest,
        })
    }

    fn step(&mut self) -> Result<Option<(Place, Row)>> {
        loop {
            let mut bytes = Vec::new();
            self.line += 1;
            let place = Place::Line(self.line);
            let longest = self.longest;
            let read = (&mut self.reader)
                .take(longest as u64 + 1)
                .read_until(b'\n', &mut bytes)
                .within(|| place.reading(&self.path))?;
            if read == 0 {
                return Ok(None);
            }
            if read > longest {
                return Err(too_long(longest)
                    .hint("write one JSON object on every line")
                    .within(place.reading(&self.path)));
            }
            let bytes = if self.line == 1 { without_mark(&bytes) } else { &bytes };
            if !bytes.trim_ascii().is_empty() {
                let row = value::parse_row(bytes.trim_ascii_end())
                    .within(|| place.reading(&self.path))?;
                return Ok(Some((place, row)));
            }
        }
    }
}

/// Returns true if the first line of the file is a complete row and is followed by more text.
/// Otherwise, the file may contain a different form of JSON, such as one object with all rows.
///
/// # Errors
/// Fails if the file cannot be opened or read.
pub fn is_jsonl(path: &Path, longest: usize) -> Result<bool> {
    let mut line = Vec::new();
    let mut bytes = BufReader::new(input::open(path)?);
    let reading = || Place::Line(1).reading(path);
    (&mut bytes).take(longest as u64 + 1).read_until(b'\n', &mut line).within(reading)?;
    if value::parse_row(without_mark(&line).trim_ascii_end()).is_err() {
        return Ok(false);
    }
    loop {
        let rest = bytes.fill_buf().within(reading)?;
        let blank = rest.trim_ascii_start().is_empty();
        if rest.is_empty() || !blank {
            return Ok(!blank);
        }
        let length = rest.len();
        bytes.consume(length);
    }
}

/// Returns the error for a row of more than `longest` bytes.
pub fn too_long(longest: usize) -> Error {
    Error::new(format!("it is longer than {} MiB", longest >> 20))
        .hint("use `--set dataset.max_row_mib=N` to allow longer rows")
}

/// Removes the byte order mark that some editors write at the start of a file.
fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes)
}

impl Iterator for Rows {
    type Item = Result<(Place, Row)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}
