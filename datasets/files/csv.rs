//! Reads comma- and tab-separated values with a header.

use std::cell::Cell;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use csv::{ByteRecord, ErrorKind, Reader, ReaderBuilder};
use reprpo_plugin::prelude::*;

use super::input::{self, Bytes};
use super::jsonl::too_long;
use super::place::Place;
use super::row::Row;
use super::value::not_utf8;

/// Iterates over the rows of a file with a header.
pub struct Rows {
    path: PathBuf,
    reader: Reader<Metered>,
    left: Rc<Cell<usize>>,
    longest: usize,
    header: Vec<String>,
    record: ByteRecord,
}

impl Rows {
    /// Opens the file and reads its header.
    ///
    /// # Errors
    /// Fails if the file cannot be opened, or if the header is not UTF-8, is longer than `longest`
    /// bytes, or contains a column twice.
    pub fn open(path: &Path, delimiter: u8, longest: usize) -> Result<Self> {
        let bytes = input::open(path)?;
        let left = Rc::new(Cell::new(longest));
        let reader = ReaderBuilder::new()
            .delimiter(delimiter)
            .from_reader(Metered { bytes, left: left.clone() });
        let mut rows = Self {
            path: path.to_owned(),
            reader,
            left,
            longest,
            header: Vec::new(),
            record: ByteRecord::new(),
        };
        let header = match rows.reader.byte_headers() {
            Ok(header) => header.clone(),
            Err(e) => return Err(rows.failed(e, Place::Line(1))),
        };
        for name in &header {
            let name = text(name).within(|| Place::Line(1).reading(path))?.trim().to_owned();
            if rows.header.contains(&name) {
                return Err(Error::new(format!("the header contains the column `{name}` twice"))
                    .within(Place::Line(1).reading(path)));
            }
            rows.header.push(name);
        }
        Ok(rows)
    }

    /// The names of the columns.
    pub fn header(&self) -> &[String] {
        &self.header
    }

    fn step(&mut self) -> Result<Option<(Place, Row)>> {
        self.left.set(self.longest);
        let place = Place::Line(self.reader.position().line() as usize);
        match self.reader.read_byte_record(&mut self.record) {
            Ok(false) => return Ok(None),
            Ok(true) => {}
            Err(e) => return Err(self.failed(e, place)),
        }
        let place = self.record.position().map_or(place, |at| Place::Line(at.line() as usize));
        let cells = self.header.iter().zip(&self.record).map(|(name, cell)| {
            let cell = text(cell)
                .map_err(|e| e.within(format!("`{name}` is not text")))
                .within(|| place.reading(&self.path))?;
            Ok((name.clone(), cell.into()))
        });
        Ok(Some((place, cells.collect::<Result<Row>>()?)))
    }

    fn failed(&self, e: csv::Error, place: Place) -> Error {
        let place = e.position().map_or(place, |at| Place::Line(at.line() as usize));
        let why = match e.kind() {
            ErrorKind::UnequalLengths { expected_len, len, .. } => {
                Error::new(format!("the row has {len} fields, but the header has {expected_len}"))
                    .hint("quote fields that contain commas, quotes or line breaks")
            }
            // `Metered` below returns this error if a row is too long.
            ErrorKind::Io(io) if io.kind() == io::ErrorKind::FileTooLarge => {
                too_long(self.longest).hint("check that every quote is closed")
            }
            _ => Error::new(e.to_string()),
        };
        why.within(place.reading(&self.path))
    }
}

fn text(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|e| not_utf8(e.valid_up_to()))
}

impl Iterator for Rows {
    type Item = Result<(Place, Row)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

/// A reader that limits the size of a record. Without a limit, a quote that is never closed would
/// turn the rest of the file into one record.
struct Metered {
    bytes: Bytes,
    left: Rc<Cell<usize>>,
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left.get() == 0 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let read = self.bytes.read(buffer)?;
        self.left.set(self.left.get().saturating_sub(read));
        Ok(read)
    }
}
