//! Reads `.json` files, which contain a list of objects, a sequence of objects, or one object with
//! all rows.
//!
//! A list or a sequence is read one object at a time, so the file can be larger than memory. A
//! single object with all rows is read as a whole and must not exceed the maximum row size.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::{Map, Value};

use super::flaws::{Flaw, Step};
use super::input::{self, Bytes};
use super::jsonl::too_long;
use super::place::Place;
use super::row::Row;
use super::source::Rows;
use super::value;

/// Keys under which an object can contain the list of rows.
const WRAPPERS: [&str; 3] = ["data", "rows", "train"];

/// Opens a JSON file and iterates over its rows. A row can have up to `longest` bytes. The iterator
/// yields an error for a row that is not a JSON object.
///
/// # Errors
/// Fails if the file cannot be opened, or does not have one of the supported forms.
pub fn rows(path: &Path, longest: usize) -> Result<Rows> {
    let mut scanner = Scanner {
        path: path.to_owned(),
        reader: BufReader::new(input::open(path)?),
        line: 1,
        longest,
    };
    scanner.skip_mark()?;
    match scanner.peek()? {
        None => Ok(Box::new(std::iter::empty())),
        Some(b'[') => {
            scanner.advance(1);
            Ok(Box::new(Listed { scanner, first: true }))
        }
        Some(b'{') => {
            let (place, object) = scanner.row()?;
            if scanner.peek()?.is_some() {
                let rest = std::iter::from_fn(move || {
                    scanner.peek().transpose().map(|next| next.and_then(|_| scanner.row()))
                });
                return Ok(Box::new(std::iter::once(Ok((place, object))).chain(rest)));
            }
            let rows = contained(object).within(|| format!("cannot use `{}`", path.display()))?;
            Ok(Box::new(rows.into_iter().enumerate().map(|(i, row)| Ok((Place::Row(i + 1), row)))))
        }
        Some(_) => Err(Error::new("it begins with neither `[` nor `{`")
            .hint(
                "write a list of objects, one object per line, or one object with a list for \
                each column",
            )
            .within(format!("cannot read line {} of `{}`", scanner.line, path.display()))),
    }
}

/// Returns the rows of a file that consists of one object. The object has a list of rows under one
/// of the [`WRAPPERS`], or a list of values for each column. Otherwise, the object is the only row.
fn contained(object: Row) -> Result<Vec<Row>> {
    let (mut object, flaws) = object.into_parts();
    let wrapper = WRAPPERS.into_iter().find(|key| {
        object
            .get(*key)
            .is_some_and(|v| matches!(v, Value::Array(items) if items.iter().all(Value::is_object)))
    });
    if let Some(key) = wrapper
        && let Some(Value::Array(rows)) = object.remove(key)
    {
        let mut rows: Vec<Row> = rows
            .into_iter()
            .filter_map(|row| {
                if let Value::Object(row) = row { Some(row.into_iter().collect()) } else { None }
            })
            .collect();
        for Flaw { path, value } in flaws {
            if let [Step::Key(first), Step::Index(i), rest @ ..] = &path[..]
                && first == key
            {
                rows[*i].add_flaw(Flaw { path: rest.to_vec(), value });
            }
        }
        return Ok(rows);
    }
    if !object.values().any(is_column) {
        return Ok(vec![Row::new(object, flaws)]);
    }
    let mut rows: Option<Vec<Map<String, Value>>> = None;
    // pandas writes a column as an object whose keys are row numbers. The path of an unsupported
    // value contains this key instead of the row index. Keep the keys to find the row.
    let mut named: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, column) in object {
        let cells: Vec<Value> = match column {
            Value::Array(cells) => cells,
            Value::Object(cells) => {
                named.insert(name.clone(), cells.keys().cloned().collect());
                cells.into_iter().map(|(_, cell)| cell).collect()
            }
            other => {
                return Err(Error::new(format!(
                    "`{name}` is {}, but the other columns are lists",
                    json_kind(&other)
                )));
            }
        };
        let rows = rows.get_or_insert_with(|| vec![Map::new(); cells.len()]);
        if rows.len() != cells.len() {
            return Err(Error::new(format!(
                "`{name}` has {} values, but the previous columns have {}",
                cells.len(),
                rows.len()
            )));
        }
        rows.iter_mut().zip(cells).for_each(|(row, cell)| drop(row.insert(name.clone(), cell)));
    }
    let mut rows: Vec<Row> =
        rows.unwrap_or_default().into_iter().map(|cells| Row::new(cells, Vec::new())).collect();
    for Flaw { path, value } in flaws {
        let [column @ Step::Key(name), cell, rest @ ..] = &path[..] else { continue };
        let index = match cell {
            Step::Index(i) => Some(*i),
            Step::Key(key) => named.get(name).and_then(|keys| keys.iter().position(|k| k == key)),
        };
        if let Some(row) = index.and_then(|i| rows.get_mut(i)) {
            row.add_flaw(Flaw { path: [std::slice::from_ref(column), rest].concat(), value });
        }
    }
    Ok(rows)
}

/// Returns true if a value is a column of strings or conversations. A column is a list, or an
/// object with row numbers as keys, as written by pandas. A list of messages is one conversation,
/// not a column.
fn is_column(value: &Value) -> bool {
    let cell = |value: &Value| value.is_string() || value.is_array();
    match value {
        Value::Array(cells) => cells.first().is_some_and(cell),
        Value::Object(cells) => {
            cells.iter().next().is_some_and(|(key, value)| key == "0" && cell(value))
        }
        _ => false,
    }
}

/// Splits a file into JSON values without parsing them.
struct Scanner {
    path: PathBuf,
    reader: BufReader<Bytes>,
    line: usize,
    longest: usize,
}

impl Scanner {
    /// Skips the byte order mark, if there is one.
    fn skip_mark(&mut self) -> Result<()> {
        let mark = "\u{feff}".as_bytes();
        let marked = self.filled()?.starts_with(mark);
        self.advance(if marked { mark.len() } else { 0 });
        Ok(())
    }

    fn filled(&mut self) -> Result<&[u8]> {
        self.reader.fill_buf().within(|| format!("cannot read `{}`", self.path.display()))
    }

    fn advance(&mut self, by: usize) {
        self.reader.consume(by);
    }

    /// Skips whitespace and returns the byte after it, without consuming that byte.
    fn peek(&mut self) -> Result<Option<u8>> {
        loop {
            let bytes = self.filled()?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let blank = bytes.iter().take_while(|b| b.is_ascii_whitespace()).count();
            let (lines, next) =
                (bytes[..blank].iter().filter(|b| **b == b'\n').count(), bytes.get(blank).copied());
            self.line += lines;
            self.advance(blank);
            if next.is_some() {
                return Ok(next);
            }
        }
    }

    /// Reads the row that begins at the current position.
    fn row(&mut self) -> Result<(Place, Row)> {
        let place = Place::Line(self.line);
        let bytes = self.value(place)?;
        Ok((place, value::parse_row(&bytes).within(|| place.reading(&self.path))?))
    }

    /// Reads the bytes of the value that begins at the current position. An object or a list ends
    /// at its closing bracket. Any other value ends before the next comma, closing bracket or line
    /// break.
    fn value(&mut self, place: Place) -> Result<Vec<u8>> {
        let mut value = Vec::new();
        let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
        loop {
            let room = self.longest.saturating_sub(value.len());
            let bytes = self.filled()?;
            if bytes.is_empty() {
                // The file ends within the value. The JSON parser will report this.
                return Ok(value);
            }
            let (mut taken, mut ended) = (0, false);
            for byte in bytes {
                if depth == 0
                    && !quoted
                    && (!value.is_empty() || taken > 0)
                    && matches!(byte, b',' | b']' | b'}' | b'\n')
                {
                    ended = true;
                    break;
                }
                taken += 1;
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' if quoted => escaped = true,
                    b'"' => quoted = !quoted,
                    b'{' | b'[' if !quoted => depth += 1,
                    b'}' | b']' if !quoted => {
                        depth = depth.saturating_sub(1);
                        ended = depth == 0;
                    }
                    _ => {}
                }
                if ended {
                    break;
                }
            }
            let lines = bytes[..taken].iter().filter(|b| **b == b'\n').count();
            if taken <= room {
                value.extend_from_slice(&bytes[..taken]);
            }
            self.line += lines;
            self.advance(taken);
            if taken > room {
                return Err(too_long(self.longest).within(place.reading(&self.path)));
            }
            if ended {
                return Ok(value);
            }
        }
    }
}

/// Iterates over the rows of a JSON list.
struct Listed {
    scanner: Scanner,
    first: bool,
}

impl Listed {
    fn step(&mut self) -> Result<Option<(Place, Row)>> {
        let next = self.scanner.peek()?;
        if next == Some(b']') {
            self.scanner.advance(1);
            return match self.scanner.peek()? {
                None => Ok(None),
                Some(_) => Err(self.wrong("there is text after the `]` that closes the list")),
            };
        }
        if !self.first {
            if next != Some(b',') {
                return Err(self.wrong(if next.is_none() {
                    "the list is not closed; the file may be truncated"
                } else {
                    "missing comma between two rows"
                }));
            }
            self.scanner.advance(1);
        }
        self.first = false;
        match self.scanner.peek()? {
            None => Err(self.wrong("the list is not closed; the file may be truncated")),
            Some(b']' | b',') => Err(self.wrong("missing row after a comma")),
            Some(_) => self.scanner.row().map(Some),
        }
    }

    fn wrong(&self, why: &str) -> Error {
        Error::new(format!("it is not JSON: {why}"))
            .within(Place::Line(self.scanner.line).reading(&self.scanner.path))
    }
}

impl Iterator for Listed {
    type Item = Result<(Place, Row)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}
