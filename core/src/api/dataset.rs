//! Data sets: named splits of preference pairs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Message, Plugin, TemplateArgs};
use crate::error::Result;

/// A text, plain or as messages that the model's chat template turns into text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Text {
    /// As it stands.
    Plain(String),
    /// For the chat template.
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

/// A prompt with a completion that is preferred and one that is not.
///
/// All three are plain, or all three are messages (`chosen` and `rejected` then hold what follows
/// the prompt).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PreferencePair {
    /// What both completions answer.
    pub prompt: Text,
    /// The preferred completion.
    pub chosen: Text,
    /// The other one.
    pub rejected: Text,
    /// The tools and variables that the chat template is given; plain text has none.
    #[serde(flatten)]
    pub template_args: TemplateArgs,
}

impl PreferencePair {
    /// A pair without tools or template variables.
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

    /// The same pair with what the chat template is given besides the messages.
    #[must_use]
    pub fn with_template_args(mut self, template_args: TemplateArgs) -> Self {
        self.template_args = template_args;
        self
    }
}

/// A part of a data set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SplitInfo {
    /// `train`, `test`, `oos` (the shifted distribution), `rnd` (an unrelated one), or a name of
    /// its own.
    pub name: String,
    /// What it holds, for people: `math (test)`.
    pub describes: String,
    /// How many pairs, where that is known without reading them.
    pub pairs: Option<usize>,
}

/// The pairs of a split, in order.
pub type PairIter<'a> = Box<dyn Iterator<Item = Result<PreferencePair>> + 'a>;

/// The pairs of a split, in order, each with the place of its row in the split's files, counted
/// from 0.
pub type RowIter<'a> = Box<dyn Iterator<Item = Result<(usize, PreferencePair)>> + 'a>;

/// A source of preference pairs.
pub trait Dataset: Send {
    /// The splits it has, in the order in which a table shows them.
    fn splits(&self) -> Vec<SplitInfo>;

    /// The pairs of one of the [`splits`](Self::splits).
    ///
    /// # Errors
    /// Where there is no such split, or its file cannot be read.
    fn pairs(&self, split: &str) -> Result<PairIter<'_>>;

    /// The same pairs, each with the place of its row, which is the `index` that a user is shown. A
    /// data set whose pairs are not its rows one by one, because it passes rows over or makes
    /// several pairs of one, says here which is which.
    ///
    /// # Errors
    /// As [`pairs`](Self::pairs).
    fn rows(&self, split: &str) -> Result<RowIter<'_>> {
        Ok(Box::new(self.pairs(split)?.enumerate().map(|(row, pair)| Ok((row, pair?)))))
    }

    /// The files that a split is read from, in order. A run keeps a digest of them, so that a later
    /// command can tell whether they are still the same. Without them it keeps one of the split's
    /// first pairs.
    fn files(&self, _split: &str) -> Vec<PathBuf> {
        Vec::new()
    }

    /// The configuration, as JSON, that gives the very same pairs at any later time, where the one
    /// that it was made from need not: a run keeps it.
    fn pinned(&self) -> Option<String> {
        None
    }
}

/// A configuration that opens a [`Dataset`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say how it is built",
    label = "write `impl DatasetPlugin for {Self}`"
)]
pub trait DatasetPlugin: Plugin {
    /// Opens it: what can be wrong with the configuration is found here, not when the pairs are
    /// read.
    ///
    /// # Errors
    /// A field that does not fit, or a file that is missing.
    fn build(self) -> Result<Box<dyn Dataset>>;
}
