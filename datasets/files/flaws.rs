//! Tracks values that standard JSON cannot represent: `NaN`, infinities, numbers that are too
//! large, lone surrogates, and bytes that are not UTF-8.
//!
//! Python's `json` module writes and reads most of these. Each row records which of its values were
//! replaced. A replaced value is only an error if a pair needs it.

use std::fmt;
use std::ops::{Deref, DerefMut};

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::{Map, Value};

use super::row::{Columns, RESPONSES};
use super::sharegpt;

/// The values of a row by column, and a list of replaced values. Values that JSON cannot represent
/// are replaced: lone surrogates by U+FFFD, and all others by null.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    cells: Map<String, Value>,
    flaws: Vec<Flaw>,
}

/// A value that was replaced because JSON cannot represent it, with its path in the row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// Path of the value: the column, then keys and indices.
    pub path: Vec<Step>,
    /// The original value.
    pub value: LostValue,
}

/// A step of a path into a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A key of an object.
    Key(String),
    /// An index of a list.
    Index(usize),
}

/// A value that JSON cannot represent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LostValue {
    /// `NaN`, `Infinity` or `-Infinity`.
    NotFinite(String),
    /// The digits of a number that is too large for 64 bits.
    TooLarge(String),
    /// The escape sequence of a lone surrogate, such as `\ud83d`.
    Surrogate(String),
    /// Bytes that are not UTF-8.
    Bytes,
}

impl fmt::Display for LostValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LostValue::NotFinite(word) => {
                write!(f, "is {word}, which is neither text nor a JSON number")
            }
            LostValue::TooLarge(number) if number.len() > 40 => {
                write!(
                    f,
                    "is the number {}… ({} characters), which is too large",
                    &number[..20],
                    number.len()
                )
            }
            LostValue::TooLarge(number) => write!(f, "is the number {number}, which is too large"),
            LostValue::Surrogate(escape) => {
                write!(f, "contains the lone surrogate `{escape}`, which is not a character")
            }
            LostValue::Bytes => f.write_str("contains bytes that are not UTF-8"),
        }
    }
}

/// Message fields that chat templates commonly read. Most templates ignore other fields, such as
/// `score`.
const MESSAGE_FIELDS: [&str; 10] = [
    "role",
    "content",
    "from",
    "value",
    "name",
    "tool_calls",
    "tool_call_id",
    "function_call",
    "reasoning_content",
    "thinking",
];

impl Row {
    /// Creates a row from its values and the list of replaced values.
    pub fn new(cells: Map<String, Value>, flaws: Vec<Flaw>) -> Self {
        Self { cells, flaws }
    }

    /// Splits the row into its values and the list of replaced values.
    pub fn into_parts(self) -> (Map<String, Value>, Vec<Flaw>) {
        (self.cells, self.flaws)
    }

    /// Records a replaced value.
    pub fn add_flaw(&mut self, flaw: Flaw) {
        self.flaws.push(flaw);
    }

    /// Checks that none of the values that make up a pair were replaced.
    ///
    /// # Errors
    /// Fails if one of these values was replaced. The error contains the path of the value.
    pub fn check(&self, columns: &Columns) -> Result<()> {
        let Some(flaw) = self.flaws.iter().find(|flaw| self.reads(flaw, columns) == Some(true))
        else {
            return Ok(());
        };
        let e = Error::new(format!("`{}` {}", path_text(&flaw.path), flaw.value));
        Err(match flaw.value {
            LostValue::Surrogate(_) => e.hint(
                "the text was cut in the middle of a character, such as an emoji: fix the program \
                that cut it",
            ),
            _ => e,
        }
        .hint("use `--set dataset.bad_rows=skip` to skip such rows"))
    }

    /// Returns a warning if a value was replaced in a message field that chat templates do not
    /// commonly read. A template that does read the field would get the replacement.
    pub fn altered(&self, columns: &Columns) -> Option<String> {
        let flaw = self.flaws.iter().find(|flaw| self.reads(flaw, columns) == Some(false))?;
        let instead =
            if matches!(flaw.value, LostValue::Surrogate(_)) { "U+FFFD" } else { "`none`" };
        Some(format!(
            "`{}` {}: a chat template that uses this field receives {instead} instead of \
                the value",
            path_text(&flaw.path),
            flaw.value
        ))
    }

    /// Returns `Some(true)` if a pair needs the value, `Some(false)` if the value is in a message
    /// field that few chat templates read, and `None` if the value is never read.
    fn reads(&self, flaw: &Flaw, columns: &Columns) -> Option<bool> {
        let [Step::Key(column), rest @ ..] = &flaw.path[..] else { return None };
        let texts =
            columns.names().chain(sharegpt::columns(|name| self.cells.contains_key(name), columns));
        if texts.into_iter().any(|name| name == column) {
            let inner = match rest {
                [Step::Index(_), Step::Key(field), ..] | [Step::Key(field), ..] => Some(field),
                _ => None,
            };
            return Some(inner.is_none_or(|field| MESSAGE_FIELDS.contains(&field.as_str())));
        }
        let scored = column == RESPONSES && !self.cells.contains_key(&columns.chosen);
        (scored || TemplateArgs::COLUMNS.contains(&column.as_str())).then_some(true)
    }
}

/// Formats a path as in Python and JavaScript: `chosen[1].content`.
fn path_text(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => text += &format!(".{key}"),
            Step::Index(index) => text += &format!("[{index}]"),
        }
    }
    text
}

impl Deref for Row {
    type Target = Map<String, Value>;

    fn deref(&self) -> &Self::Target {
        &self.cells
    }
}

impl DerefMut for Row {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.cells
    }
}

impl FromIterator<(String, Value)> for Row {
    fn from_iter<I: IntoIterator<Item = (String, Value)>>(cells: I) -> Self {
        Self { cells: cells.into_iter().collect(), flaws: Vec::new() }
    }
}
