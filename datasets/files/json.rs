//! JSON that is not in lines: a list of objects, objects one after another, or one object that
//! holds the rows.
//!
//! A list and a sequence are cut into their objects as they are read, so that the file can be
//! larger than memory. A single object with all rows must be read at once, so the maximum size of a
//! row applies to it.

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

/// Keys under which one object may hold the list of rows.
const WRAPPERS: [&str; 3] = ["data", "rows", "train"];

/// The rows of a JSON file.
///
/// # Errors
/// Fails if the file cannot be opened or has none of these forms. An item is an error if its row is
/// not a JSON object.
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
            let rows = held(object).within(|| format!("cannot use `{}`", path.display()))?;
            Ok(Box::new(rows.into_iter().enumerate().map(|(i, row)| Ok((Place::Row(i + 1), row)))))
        }
        Some(_) => Err(Error::new("it begins with neither `[` nor `{`")
            .hint("a JSON file holds a list of objects, an object a line, or one object of columns")
            .within(format!("cannot read line {} of `{}`", scanner.line, path.display()))),
    }
}

/// The rows in the one object of a file: under a key of their own, a list or a table by column, or
/// itself.
fn held(object: Row) -> Result<Vec<Row>> {
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
        for Flaw { path, what } in flaws {
            if let [Step::Key(first), Step::Index(i), rest @ ..] = &path[..]
                && first == key
            {
                rows[*i].flawed(Flaw { path: rest.to_vec(), what });
            }
        }
        return Ok(rows);
    }
    if !object.values().any(is_column) {
        return Ok(vec![Row::new(object, flaws)]);
    }
    let mut rows: Option<Vec<Map<String, Value>>> = None;
    // The keys of each column that is an object, in the order of the rows.
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
                    "`{name}` is {}, and the columns beside it are lists",
                    json_kind(&other)
                )));
            }
        };
        let rows = rows.get_or_insert_with(|| vec![Map::new(); cells.len()]);
        if rows.len() != cells.len() {
            return Err(Error::new(format!(
                "`{name}` has {} values, and the columns before it have {}",
                cells.len(),
                rows.len()
            )));
        }
        rows.iter_mut().zip(cells).for_each(|(row, cell)| drop(row.insert(name.clone(), cell)));
    }
    let mut rows: Vec<Row> =
        rows.unwrap_or_default().into_iter().map(|cells| Row::new(cells, Vec::new())).collect();
    for Flaw { path, what } in flaws {
        let [column @ Step::Key(name), cell, rest @ ..] = &path[..] else { continue };
        let index = match cell {
            Step::Index(i) => Some(*i),
            Step::Key(key) => named.get(name).and_then(|keys| keys.iter().position(|k| k == key)),
        };
        if let Some(row) = index.and_then(|i| rows.get_mut(i)) {
            row.flawed(Flaw { path: [std::slice::from_ref(column), rest].concat(), what });
        }
    }
    Ok(rows)
}

/// True if a value is a column of texts or conversations: a list of them, or an object of them by
/// index, as pandas writes it. A list of messages is one conversation.
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

/// Cuts a file into JSON values without understanding them.
struct Scanner {
    path: PathBuf,
    reader: BufReader<Bytes>,
    line: usize,
    longest: usize,
}

impl Scanner {
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

    /// Peeks at the next byte that is not whitespace.
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

    /// The row that begins here.
    fn row(&mut self) -> Result<(Place, Row)> {
        let place = Place::Line(self.line);
        let bytes = self.value(place)?;
        Ok((place, value::parse_row(&bytes).within(|| place.reading(&self.path))?))
    }

    /// The bytes of the value that begins here. It ends at its closing bracket, or if it has no
    /// bracket, at the next comma, bracket or line.
    fn value(&mut self, place: Place) -> Result<Vec<u8>> {
        let mut value = Vec::new();
        let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
        loop {
            let room = self.longest.saturating_sub(value.len());
            let bytes = self.filled()?;
            if bytes.is_empty() {
                // The parser reports an incomplete value.
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

/// The rows of a list.
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
                Some(_) => Err(self.wrong("something stands behind the `]` that closes the list")),
            };
        }
        if !self.first {
            if next != Some(b',') {
                return Err(self.wrong(if next.is_none() {
                    "the list is not closed: the file was cut short"
                } else {
                    "there is no comma between two rows"
                }));
            }
            self.scanner.advance(1);
        }
        self.first = false;
        match self.scanner.peek()? {
            None => Err(self.wrong("the list is not closed: the file was cut short")),
            Some(b']' | b',') => Err(self.wrong("a row is missing behind a comma")),
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
