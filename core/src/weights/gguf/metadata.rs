//! GGUF's key-value header and the cursor that reads it.
//!
//! A hostile file must cost neither time nor memory: every length is checked against what is left
//! of the file before anything is done with it, and strings and arrays stay in the file until
//! somebody asks for them.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;

use crate::error::{Error, Result};
use crate::weights::memory::Mapped;

/// More keys, and longer ones, than any model has.
const MOST_ENTRIES: u64 = 1 << 16;
const LONGEST_KEY: u64 = 1 << 16;
/// Of header altogether. The vocabularies of today's models take a tenth of it.
const LONGEST_HEADER: u64 = 1 << 26;
/// Arrays in arrays: the format allows them, no model has them.
const DEEPEST: usize = 4;

/// What a GGUF file says about itself.
#[derive(Debug)]
pub struct Metadata {
    file: Arc<Mapped>,
    entries: IndexMap<String, Value>,
}

#[derive(Clone, Debug)]
enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(Range<usize>),
    Array { of: u32, len: usize, at: Range<usize> },
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::Unsigned(_) | Value::Signed(_) => "an integer",
            Value::Float(_) => "a float",
            Value::Bool(_) => "a truth value",
            Value::Text(_) => "a string",
            Value::Array { .. } => "an array",
        }
    }
}

impl Metadata {
    pub(super) fn read(cursor: &mut Cursor, file: &Arc<Mapped>, count: u64) -> Result<Self> {
        if count > MOST_ENTRIES {
            return Err(cursor
                .wrong(format!("claims {count} metadata entries"))
                .hint(format!("valid: up to {MOST_ENTRIES}")));
        }
        let mut entries = IndexMap::new();
        for _ in 0..count {
            let key = cursor.text("a key", LONGEST_KEY)?;
            let kind = cursor.u32()?;
            let value = cursor.value(kind)?;
            if entries.insert(key.clone(), value).is_some() {
                return Err(cursor.wrong(format!("has the key `{key}` twice")));
            }
        }
        Ok(Self { file: Arc::clone(file), entries })
    }

    /// What a file says, whatever its tensors and its architecture are.
    #[cfg(test)]
    pub(crate) fn open(path: &Path) -> Result<Self> {
        super::part::Part::open(path).map(|part| part.metadata)
    }

    /// Whether the key is there.
    pub fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// All keys, in the order of the file.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    fn mistyped(&self, key: &str, found: &str, expected: &str) -> Error {
        Error::new(format!(
            "`{key}` in `{}` is {found}, expected {expected}",
            self.file.path().display()
        ))
    }

    /// An integer that is not negative.
    ///
    /// # Errors
    /// Where the key holds something else.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(x)) => Ok(Some(*x)),
            Some(Value::Signed(x)) => {
                u64::try_from(*x).map(Some).map_err(|_| self.mistyped(key, "negative", "a count"))
            }
            Some(other) => Err(self.mistyped(key, other.kind(), "an integer")),
        }
    }

    /// A number.
    ///
    /// # Errors
    /// Where the key holds something else, or no finite number.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Float(x)) if x.is_finite() => Ok(Some(*x)),
            Some(Value::Float(_)) => Err(self.mistyped(key, "not finite", "a number")),
            Some(Value::Unsigned(x)) => Ok(Some(*x as f64)),
            Some(Value::Signed(x)) => Ok(Some(*x as f64)),
            Some(other) => Err(self.mistyped(key, other.kind(), "a number")),
        }
    }

    /// A truth value.
    ///
    /// # Errors
    /// Where the key holds something else.
    pub fn truth(&self, key: &str) -> Result<Option<bool>> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Bool(x)) => Ok(Some(*x)),
            Some(other) => Err(self.mistyped(key, other.kind(), "a truth value")),
        }
    }

    /// A string.
    ///
    /// # Errors
    /// Where the key holds something else, or no UTF-8.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Text(at)) => std::str::from_utf8(&self.file[at.clone()])
                .map(Some)
                .map_err(|e| self.mistyped(key, "no UTF-8", "text").because(e)),
            Some(other) => Err(self.mistyped(key, other.kind(), "a string")),
        }
    }

    /// An array of strings.
    ///
    /// # Errors
    /// Where the key holds something else, or no UTF-8.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let (len, at) = match self.entries.get(key) {
            None => return Ok(None),
            Some(Value::Array { of: 8, len, at }) => (*len, at),
            Some(other) => return Err(self.mistyped(key, other.kind(), "an array of strings")),
        };
        let mut cursor = Cursor::new(&self.file, at.start);
        let mut texts = Vec::with_capacity(len);
        for i in 0..len {
            let at = cursor.text_range("a string")?;
            texts.push(std::str::from_utf8(&self.file[at]).map_err(|e| {
                self.mistyped(&format!("{key}[{i}]"), "no UTF-8", "text").because(e)
            })?);
        }
        Ok(Some(texts))
    }

    /// True if the key holds an array.
    pub fn is_array(&self, key: &str) -> bool {
        matches!(self.entries.get(key), Some(Value::Array { .. }))
    }

    /// An array of integers, or of truth values, of which `true` is 1.
    ///
    /// # Errors
    /// Where the key holds something else.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        let (of, len, at) = match self.entries.get(key) {
            None => return Ok(None),
            Some(Value::Array { of: of @ (0..=5 | 7 | 10 | 11), len, at }) => (*of, *len, at),
            Some(other) => return Err(self.mistyped(key, other.kind(), "an array of integers")),
        };
        let mut cursor = Cursor::new(&self.file, at.start);
        let mut all = Vec::with_capacity(len);
        for _ in 0..len {
            all.push(match cursor.value(of)? {
                Value::Unsigned(x) => i64::try_from(x).map_err(|e| {
                    self.mistyped(key, "too large", "an array of integers").because(e)
                })?,
                Value::Signed(x) => x,
                Value::Bool(x) => x.into(),
                other => return Err(self.mistyped(key, other.kind(), "an array of integers")),
            });
        }
        Ok(Some(all))
    }

    /// An array of numbers, as f32 has them.
    ///
    /// # Errors
    /// Where the key holds something else, or numbers that are not finite.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        let (of, len, at) = match self.entries.get(key) {
            None => return Ok(None),
            Some(Value::Array { of: of @ (0..=6 | 10..=12), len, at }) => (*of, *len, at),
            Some(other) => return Err(self.mistyped(key, other.kind(), "an array of numbers")),
        };
        let mut cursor = Cursor::new(&self.file, at.start);
        let mut all = Vec::with_capacity(len);
        for i in 0..len {
            all.push(match cursor.value(of)? {
                Value::Unsigned(x) => x as f32,
                Value::Signed(x) => x as f32,
                Value::Float(x) if x.is_finite() => x as f32,
                _ => return Err(self.mistyped(&format!("{key}[{i}]"), "not finite", "a number")),
            });
        }
        Ok(Some(all))
    }

    /// The value of a key as a number; `true` is 1. `None` if it is missing, or a string or an
    /// array.
    pub fn number(&self, key: &str) -> Option<f64> {
        match self.entries.get(key)? {
            Value::Unsigned(x) => Some(*x as f64),
            Value::Signed(x) => Some(*x as f64),
            Value::Float(x) => Some(*x),
            Value::Bool(x) => Some(f64::from(u8::from(*x))),
            Value::Text(_) | Value::Array { .. } => None,
        }
    }

    /// The value of a key, formatted for an error message.
    pub fn shown(&self, key: &str) -> String {
        match self.entries.get(key) {
            None => "nothing".to_owned(),
            Some(Value::Bool(x)) => x.to_string(),
            Some(Value::Text(_)) => self
                .text(key)
                .ok()
                .flatten()
                .map_or_else(|| "a string".to_owned(), |text| format!("`{text}`")),
            Some(Value::Array { len, .. }) => format!("an array of {len}"),
            Some(Value::Unsigned(_) | Value::Signed(_) | Value::Float(_)) => {
                self.number(key).unwrap_or_default().to_string()
            }
        }
    }

    /// The error for a key that has to be there.
    pub fn missing(&self, key: &str) -> Error {
        Error::new(format!("`{}` does not say `{key}`", self.file.path().display())).hint(
            "the file is incomplete: convert the model again, or take its Hugging Face folder",
        )
    }
}

/// Reads forward through the header of a GGUF file.
pub(super) struct Cursor<'a> {
    file: &'a Mapped,
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a Mapped, at: usize) -> Self {
        Self { file, at }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    pub(super) fn wrong(&self, what: String) -> Error {
        Error::new(format!(
            "`{}` is no valid GGUF file: it {what} (at byte {})",
            self.file.path().display(),
            self.at
        ))
    }

    fn take(&mut self, len: u64, what: &str) -> Result<Range<usize>> {
        let left = self.file.len() - self.at;
        if len <= left as u64 && self.at as u64 + len > LONGEST_HEADER {
            return Err(self.wrong(format!(
                "goes on with its header after {LONGEST_HEADER} bytes, at {what} of {len} bytes"
            )));
        }
        match usize::try_from(len) {
            Ok(len) if len <= left => {
                let range = self.at..self.at + len;
                self.at += len;
                Ok(range)
            }
            _ => Err(self
                .wrong(format!("ends inside {what} of {len} bytes"))
                .hint("fetch it again: the download may have been cut off")),
        }
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let range = self.take(N as u64, "a number")?;
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.file[range]);
        Ok(bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn text_range(&mut self, what: &str) -> Result<Range<usize>> {
        let len = self.u64()?;
        self.take(len, what)
    }

    /// A string that is a name, so no longer than `longest`.
    pub(super) fn text(&mut self, what: &str, longest: u64) -> Result<String> {
        let range = self.text_range(what)?;
        if range.len() as u64 > longest {
            return Err(self.wrong(format!("has {what} of {} bytes", range.len())));
        }
        match std::str::from_utf8(&self.file[range]) {
            Ok(text) => Ok(text.to_owned()),
            Err(e) => Err(self.wrong(format!("has {what} that is no UTF-8")).because(e)),
        }
    }

    fn value(&mut self, kind: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(self.bytes::<1>()?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.bytes()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.bytes()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.bytes()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.bytes()?).into()),
            6 => Value::Float(shortest(f32::from_le_bytes(self.bytes()?))),
            7 => Value::Bool(self.bytes::<1>()?[0] != 0),
            8 => Value::Text(self.text_range("a string")?),
            9 => {
                let (of, len) = (self.u32()?, self.u64()?);
                let start = self.at;
                self.skip(of, len, 0)?;
                // Each element takes a byte or more, so a length that was skipped fits the file.
                Value::Array { of, len: usize::try_from(len).unwrap_or(0), at: start..self.at }
            }
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.bytes()?)),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            other => {
                return Err(
                    self.wrong(format!("has a value of type {other}, which does not exist"))
                );
            }
        })
    }

    fn skip(&mut self, of: u32, len: u64, depth: usize) -> Result<()> {
        let size = match of {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                for _ in 0..len {
                    self.text_range("a string")?;
                }
                return Ok(());
            }
            9 if depth < DEEPEST => {
                for _ in 0..len {
                    let (of, len) = (self.u32()?, self.u64()?);
                    self.skip(of, len, depth + 1)?;
                }
                return Ok(());
            }
            9 => return Err(self.wrong(format!("has arrays nested deeper than {DEEPEST}"))),
            other => {
                return Err(
                    self.wrong(format!("has an array of type {other}, which does not exist"))
                );
            }
        };
        self.take(len.saturating_mul(size), "an array").map(|_| ())
    }
}

/// The f64 that is written as the f32 is: 1e-5 and not 9.999999747378752e-6, as it stood in the
/// model's config.json.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}
