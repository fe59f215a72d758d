//! Reads the key-value metadata in the header of a GGUF file.
//!
//! A malicious file must not use much time or memory. Therefore, every length is first checked
//! against the remaining size of the file. Strings and arrays are only parsed when they are needed.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;

use crate::error::{Error, Result};
use crate::weights::memory::Mapped;

/// Maximum number of keys.
const MAX_ENTRIES: u64 = 1 << 16;
const MAX_KEY_BYTES: u64 = 1 << 16;
/// Maximum size of the header in bytes. The header includes the vocabulary. In current models, its
/// size is about a tenth of the maximum.
const MAX_HEADER_BYTES: u64 = 1 << 26;
/// Maximum nesting depth of arrays. The format allows nested arrays, but no known model has them.
const MAX_DEPTH: usize = 4;

/// The metadata of a GGUF file.
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
            Value::Bool(_) => "a boolean",
            Value::Text(_) => "a string",
            Value::Array { .. } => "an array",
        }
    }
}

impl Metadata {
    pub(super) fn read(cursor: &mut Cursor, file: &Arc<Mapped>, count: u64) -> Result<Self> {
        if count > MAX_ENTRIES {
            return Err(cursor
                .wrong(format!("has {count} metadata entries, which is too many"))
                .hint(format!("valid: up to {MAX_ENTRIES}")));
        }
        let mut entries = IndexMap::new();
        for _ in 0..count {
            let key = cursor.text("a key", MAX_KEY_BYTES)?;
            let kind = cursor.u32()?;
            let value = cursor.value(kind)?;
            if entries.insert(key.clone(), value).is_some() {
                return Err(cursor.wrong(format!("has the key `{key}` twice")));
            }
        }
        Ok(Self { file: Arc::clone(file), entries })
    }

    /// Reads the metadata of the file at `path`. The model can have any architecture.
    #[cfg(test)]
    pub(crate) fn open(path: &Path) -> Result<Self> {
        super::part::Part::open(path).map(|part| part.metadata)
    }

    /// True if the key exists.
    pub fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// All keys, in the order in which the file stores them.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    fn wrong_type(&self, key: &str, found: &str, expected: &str) -> Error {
        Error::new(format!(
            "`{key}` in `{}` must be {expected}, but is {found}",
            self.file.path().display()
        ))
    }

    /// Reads a non-negative integer. Returns `None` if the key is missing.
    ///
    /// # Errors
    /// Fails if the value has another type or is negative.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(x)) => Ok(Some(*x)),
            Some(Value::Signed(x)) => u64::try_from(*x)
                .map(Some)
                .map_err(|_| self.wrong_type(key, "negative", "0 or greater")),
            Some(other) => Err(self.wrong_type(key, other.kind(), "an integer")),
        }
    }

    /// Reads a number. Returns `None` if the key is missing.
    ///
    /// # Errors
    /// Fails if the value has another type or is not finite.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Float(x)) if x.is_finite() => Ok(Some(*x)),
            Some(Value::Float(_)) => Err(self.wrong_type(key, "not finite", "a finite number")),
            Some(Value::Unsigned(x)) => Ok(Some(*x as f64)),
            Some(Value::Signed(x)) => Ok(Some(*x as f64)),
            Some(other) => Err(self.wrong_type(key, other.kind(), "a number")),
        }
    }

    /// Reads a boolean. Returns `None` if the key is missing.
    ///
    /// # Errors
    /// Fails if the value has another type.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Bool(x)) => Ok(Some(*x)),
            Some(other) => Err(self.wrong_type(key, other.kind(), "a boolean")),
        }
    }

    /// Reads a string. Returns `None` if the key is missing.
    ///
    /// # Errors
    /// Fails if the value has another type or is not UTF-8.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Text(at)) => std::str::from_utf8(&self.file[at.clone()])
                .map(Some)
                .map_err(|e| self.wrong_type(key, "not", "UTF-8").because(e)),
            Some(other) => Err(self.wrong_type(key, other.kind(), "a string")),
        }
    }

    /// Reads an array of strings. Returns `None` if the key is missing.
    ///
    /// # Errors
    /// Fails if the value has another type or is not UTF-8.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let (len, at) = match self.entries.get(key) {
            None => return Ok(None),
            Some(Value::Array { of: 8, len, at }) => (*len, at),
            Some(other) => return Err(self.wrong_type(key, other.kind(), "an array of strings")),
        };
        let mut cursor = Cursor::new(&self.file, at.start);
        let mut texts = Vec::with_capacity(len);
        for i in 0..len {
            let at = cursor.text_range("a string")?;
            texts.push(
                std::str::from_utf8(&self.file[at]).map_err(|e| {
                    self.wrong_type(&format!("{key}[{i}]"), "not", "UTF-8").because(e)
                })?,
            );
        }
        Ok(Some(texts))
    }

    /// True if the value is an array.
    pub fn is_array(&self, key: &str) -> bool {
        matches!(self.entries.get(key), Some(Value::Array { .. }))
    }

    /// Reads an array of integers, or of booleans as 0 and 1. Returns `None` if the key is missing.
    ///
    /// # Errors
    /// Fails if the value has another type, or if a number does not fit into a signed 64-bit
    /// integer.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        let (of, len, at) = match self.entries.get(key) {
            None => return Ok(None),
            Some(Value::Array { of: of @ (0..=5 | 7 | 10 | 11), len, at }) => (*of, *len, at),
            Some(other) => return Err(self.wrong_type(key, other.kind(), "an array of integers")),
        };
        let mut cursor = Cursor::new(&self.file, at.start);
        let mut all = Vec::with_capacity(len);
        for _ in 0..len {
            all.push(match cursor.value(of)? {
                Value::Unsigned(x) => i64::try_from(x).map_err(|e| {
                    self.wrong_type(
                        key,
                        "an array with a number that is too large",
                        "an array of integers",
                    )
                    .because(e)
                })?,
                Value::Signed(x) => x,
                Value::Bool(x) => x.into(),
                other => return Err(self.wrong_type(key, other.kind(), "an array of integers")),
            });
        }
        Ok(Some(all))
    }

    /// Reads an array of numbers and converts them to f32. Returns `None` if the key is missing.
    ///
    /// # Errors
    /// Fails if the value has another type, or if a number is not finite.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        let (of, len, at) = match self.entries.get(key) {
            None => return Ok(None),
            Some(Value::Array { of: of @ (0..=6 | 10..=12), len, at }) => (*of, *len, at),
            Some(other) => return Err(self.wrong_type(key, other.kind(), "an array of numbers")),
        };
        let mut cursor = Cursor::new(&self.file, at.start);
        let mut all = Vec::with_capacity(len);
        for i in 0..len {
            all.push(match cursor.value(of)? {
                Value::Unsigned(x) => x as f32,
                Value::Signed(x) => x as f32,
                Value::Float(x) if x.is_finite() => x as f32,
                _ => {
                    return Err(self.wrong_type(
                        &format!("{key}[{i}]"),
                        "not finite",
                        "a finite number",
                    ));
                }
            });
        }
        Ok(Some(all))
    }

    /// Returns a number, or a boolean as 0 or 1. Returns `None` if the key is missing or has a
    /// value of another type.
    pub fn number(&self, key: &str) -> Option<f64> {
        match self.entries.get(key)? {
            Value::Unsigned(x) => Some(*x as f64),
            Value::Signed(x) => Some(*x as f64),
            Value::Float(x) => Some(*x),
            Value::Bool(x) => Some(f64::from(u8::from(*x))),
            Value::Text(_) | Value::Array { .. } => None,
        }
    }

    /// Formats the value for an error message.
    pub fn describe(&self, key: &str) -> String {
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

    /// Creates the error for a missing required key.
    pub fn missing(&self, key: &str) -> Error {
        Error::new(format!("`{}` does not have the key `{key}`", self.file.path().display()))
            .hint("convert the model again, or use its Hugging Face folder")
    }
}

/// Reads the header of a GGUF file sequentially.
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
            "`{}` is not a valid GGUF file: it {what} (at byte {})",
            self.file.path().display(),
            self.at
        ))
    }

    fn take(&mut self, len: u64, what: &str) -> Result<Range<usize>> {
        let left = self.file.len() - self.at;
        if len <= left as u64 && self.at as u64 + len > MAX_HEADER_BYTES {
            return Err(self.wrong(format!(
                "has a header of more than {MAX_HEADER_BYTES} bytes, including {what} of {len} \
                bytes"
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
                .hint("download it again; the last download may have been incomplete")),
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

    /// Reads a string of up to `longest` bytes.
    pub(super) fn text(&mut self, what: &str, longest: u64) -> Result<String> {
        let range = self.text_range(what)?;
        if range.len() as u64 > longest {
            return Err(self.wrong(format!("has {what} of {} bytes", range.len())));
        }
        match std::str::from_utf8(&self.file[range]) {
            Ok(text) => Ok(text.to_owned()),
            Err(e) => Err(self.wrong(format!("has {what} that is not UTF-8")).because(e)),
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
                // Each element takes at least one byte, so the length is at most the size of the
                // file. The conversion therefore cannot fail.
                Value::Array { of, len: usize::try_from(len).unwrap_or(0), at: start..self.at }
            }
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.bytes()?)),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            other => {
                return Err(self.wrong(format!("has a value of the unknown type {other}")));
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
            9 if depth < MAX_DEPTH => {
                for _ in 0..len {
                    let (of, len) = (self.u32()?, self.u64()?);
                    self.skip(of, len, depth + 1)?;
                }
                return Ok(());
            }
            9 => {
                return Err(
                    self.wrong(format!("has arrays nested more than {MAX_DEPTH} levels deep"))
                );
            }
            other => {
                return Err(self.wrong(format!("has an array of the unknown type {other}")));
            }
        };
        self.take(len.saturating_mul(size), "an array").map(|_| ())
    }
}

/// Converts an f32 to the f64 with the same shortest decimal representation. The result is the
/// number in the model's config.json, for example 1e-5 instead of 9.999999747378752e-6.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}
