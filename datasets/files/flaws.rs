//! Values that other tools write and that a row cannot hold: `NaN`, numbers that are too large,
//! half surrogate pairs.
//!
//! Python writes all of them into JSON and reads them back. A row remembers their places, and they
//! are an error only if a pair needs one of those places.

use std::fmt;
use std::ops::{Deref, DerefMut};

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::{Map, Value};

use super::row::{Columns, RESPONSES};
use super::sharegpt;

/// A row by column, with the places of values that it cannot hold. Those places hold null instead,
/// or U+FFFD within a text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    cells: Map<String, Value>,
    flaws: Vec<Flaw>,
}

/// A place in a row, and the value that it had in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// The column, then keys and indices.
    pub path: Vec<Step>,
    /// The value in the file.
    pub what: What,
}

/// A step of a path into a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A key of an object.
    Key(String),
    /// An index of a list.
    Index(usize),
}

/// A value that a row cannot hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// `NaN`, `Infinity` or `-Infinity`.
    NotFinite(String),
    /// A number that is too large for 64 bits, as it is written.
    TooLarge(String),
    /// Half of a surrogate pair, as it is written: `\ud83d`.
    Surrogate(String),
    /// Bytes that are not UTF-8.
    Bytes,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::NotFinite(word) => {
                write!(f, "is {word}, which is neither text nor a JSON number")
            }
            What::TooLarge(number) if number.len() > 40 => {
                write!(
                    f,
                    "is the number {}… of {} characters, which is too large",
                    &number[..20],
                    number.len()
                )
            }
            What::TooLarge(number) => write!(f, "is the number {number}, which is too large"),
            What::Surrogate(half) => {
                write!(f, "holds `{half}`, half of a surrogate pair, which is not a character")
            }
            What::Bytes => f.write_str("holds bytes that are not UTF-8"),
        }
    }
}

/// Fields of a message that chat templates read. Other fields, such as a score, are for other
/// tools.
const OF_MESSAGES: [&str; 10] = [
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
    /// A row with the places of values that it cannot hold.
    pub fn new(cells: Map<String, Value>, flaws: Vec<Flaw>) -> Self {
        Self { cells, flaws }
    }

    /// Splits the row into its cells and the places of values that they do not hold.
    pub fn into_parts(self) -> (Map<String, Value>, Vec<Flaw>) {
        (self.cells, self.flaws)
    }

    /// Adds the place of a value that the row does not hold.
    pub fn flawed(&mut self, flaw: Flaw) {
        self.flaws.push(flaw);
    }

    /// Checks that the row holds every value that a pair needs.
    ///
    /// # Errors
    /// Fails if a pair needs a value that the row cannot hold, and names its place.
    pub fn check(&self, columns: &Columns) -> Result<()> {
        let Some(flaw) = self.flaws.iter().find(|flaw| self.reads(flaw, columns) == Some(true))
        else {
            return Ok(());
        };
        let e = Error::new(format!("`{}` {}", place(&flaw.path), flaw.what));
        Err(match flaw.what {
            What::Surrogate(_) => e.hint(
                "the text was cut within a character, such as an emoji: repair it where it was cut",
            ),
            _ => e,
        }
        .hint("`--set dataset.bad_rows=skip` passes such rows over"))
    }

    /// A warning if a message has a further field whose value the row cannot hold: a chat template
    /// would read another value.
    pub fn altered(&self, columns: &Columns) -> Option<String> {
        let flaw = self.flaws.iter().find(|flaw| self.reads(flaw, columns) == Some(false))?;
        let instead =
            if matches!(flaw.what, What::Surrogate(_)) { "U+FFFD in its place" } else { "`none`" };
        Some(format!(
            "`{}` {}: a chat template that reads it gets {instead}",
            place(&flaw.path),
            flaw.what
        ))
    }

    /// True if a pair needs the value, false if only a chat template may read it as a further field
    /// of a message, and `None` if nothing reads it.
    fn reads(&self, flaw: &Flaw, columns: &Columns) -> Option<bool> {
        let [Step::Key(column), rest @ ..] = &flaw.path[..] else { return None };
        let texts =
            columns.names().chain(sharegpt::columns(|name| self.cells.contains_key(name), columns));
        if texts.into_iter().any(|name| name == column) {
            let inner = match rest {
                [Step::Index(_), Step::Key(field), ..] | [Step::Key(field), ..] => Some(field),
                _ => None,
            };
            return Some(inner.is_none_or(|field| OF_MESSAGES.contains(&field.as_str())));
        }
        let scored = column == RESPONSES && !self.cells.contains_key(&columns.chosen);
        (scored || TemplateArgs::COLUMNS.contains(&column.as_str())).then_some(true)
    }
}

/// A path as Python and JavaScript write it: `chosen[1].content`.
fn place(path: &[Step]) -> String {
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
