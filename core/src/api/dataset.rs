//! Data sets: named splits of preference pairs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Message, Plugin, TemplateArgs};
use crate::error::Result;

/// A prompt or completion: either plain text, or messages that the chat template renders.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Text {
    /// Text that is used unchanged.
    Plain(String),
    /// Messages that the model's chat template renders.
    Messages(Vec<Message>),
}

impl From<&str> for Text {
    fn from(s: &str) -> Self {
        Self::Plain(s.to_owned())
    }
}

impl From<String> for Text {
    fn from(s: String) -> Self {
        Self::Plain(s)
    }
}

impl From<Vec<Message>> for Text {
    fn from(messages: Vec<Message>) -> Self {
        Self::Messages(messages)
    }
}

/// A prompt with a preferred and a rejected completion.
///
/// Either the prompt and both completions are plain text, or all three are messages. In the latter
/// case, `chosen` and `rejected` only contain the messages after the prompt.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PreferencePair {
    /// The prompt of both completions.
    pub prompt: Text,
    /// The preferred completion.
    pub chosen: Text,
    /// The other completion.
    pub rejected: Text,
    /// Tools and variables for the chat template; empty for plain text.
    #[serde(flatten)]
    pub template_args: TemplateArgs,
}

impl PreferencePair {
    /// Creates a pair without tools or template variables.
    pub fn new(
        prompt: impl Into<Text>,
        chosen: impl Into<Text>,
        rejected: impl Into<Text>,
    ) -> Self {
        Self {
            prompt: prompt.into(),
            chosen: chosen.into(),
            rejected: rejected.into(),
            template_args: TemplateArgs::default(),
        }
    }

    /// Sets the tools and variables for the chat template.
    #[must_use]
    pub fn with_template_args(mut self, template_args: TemplateArgs) -> Self {
        self.template_args = template_args;
        self
    }
}

/// A description of one split of a data set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SplitInfo {
    /// `train`, `test`, `oos` (the shifted distribution), `rnd` (an unrelated one), or another
    /// name.
    pub name: String,
    /// Description of the contents, for use in tables, e.g. `math (test)`.
    pub describes: String,
    /// Number of pairs, if it is known without reading them.
    pub pairs: Option<usize>,
}

/// The pairs of a split, in order.
pub type PairIter<'a> = Box<dyn Iterator<Item = Result<PreferencePair>> + 'a>;

/// The pairs of a split, in order, each with the index of its row in the split's files. Rows are
/// counted from 0.
pub type RowIter<'a> = Box<dyn Iterator<Item = Result<(usize, PreferencePair)>> + 'a>;

/// A source of preference pairs.
pub trait Dataset: Send {
    /// The splits of the data set, in the order in which tables show them.
    fn splits(&self) -> Vec<SplitInfo>;

    /// Reads the pairs of one of the [`splits`](Self::splits).
    ///
    /// # Errors
    /// Fails if there is no such split, or if its file cannot be read.
    fn pairs(&self, split: &str) -> Result<PairIter<'_>>;

    /// Reads the same pairs as [`pairs`](Self::pairs), each with the index of its row. JSON output
    /// shows this index as `index`.
    ///
    /// The default implementation counts the pairs. A data set that skips rows, or that creates
    /// several pairs from one row, must override it.
    ///
    /// # Errors
    /// Fails in the same cases as [`pairs`](Self::pairs).
    fn rows(&self, split: &str) -> Result<RowIter<'_>> {
        Ok(Box::new(self.pairs(split)?.enumerate().map(|(row, pair)| Ok((row, pair?)))))
    }

    /// The files that a split is read from, in order. A run stores a digest of these files, so that
    /// a later command can detect changes. If the list is empty, the run stores a digest of the
    /// first pairs of the split instead.
    fn files(&self, _split: &str) -> Vec<PathBuf> {
        Vec::new()
    }

    /// The configuration as JSON, with fixed values for everything that may change over time, such
    /// as the revision of a download. A run stores this JSON to read the same pairs again later.
    /// `None` if the original configuration always gives the same pairs.
    fn pinned(&self) -> Option<String> {
        None
    }
}

/// The configuration of a data set, from which the [`Dataset`] is opened.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not implement `DatasetPlugin`",
    label = "write `impl DatasetPlugin for {Self}`"
)]
pub trait DatasetPlugin: Plugin {
    /// Checks the configuration and opens the data set. All errors in the configuration must be
    /// found here, before any pairs are read.
    ///
    /// # Errors
    /// Fails if a field is invalid, or if a file is missing.
    fn build(self) -> Result<Box<dyn Dataset>>;
}
