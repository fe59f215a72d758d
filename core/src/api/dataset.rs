//! Data sets: named splits of preference pairs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Plugin;
use crate::error::Result;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what the model's chat template knows besides.
    pub role: String,
    /// The text.
    pub content: String,
}

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

/// A prompt with a completion that is preferred and one that is not.
///
/// All three are plain, or all three are messages (`chosen` and `rejected` then hold what follows the prompt).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PreferencePair {
    /// What both completions answer.
    pub prompt: Text,
    /// The preferred completion.
    pub chosen: Text,
    /// The other one.
    pub rejected: Text,
}

/// A part of a data set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SplitInfo {
    /// `train`, `test`, `oos` (the shifted distribution), `rnd` (an unrelated one), or a name of its own.
    pub name: String,
    /// What it holds, for people: `math (test)`.
    pub describes: String,
    /// How many pairs, where that is known without reading them.
    pub pairs: Option<usize>,
}

/// The pairs of a split, in order.
pub type PairIter<'a> = Box<dyn Iterator<Item = Result<PreferencePair>> + 'a>;

/// A source of preference pairs.
pub trait Dataset: Send {
    /// The splits it has, in the order in which a table shows them.
    fn splits(&self) -> Vec<SplitInfo>;

    /// The pairs of one of the [`splits`](Self::splits).
    ///
    /// # Errors
    /// Where there is no such split, or its file cannot be read.
    fn pairs(&self, split: &str) -> Result<PairIter<'_>>;

    /// The files that a split is read from, in order. A run keeps a digest of them, so that a later command can tell
    /// whether they are still the same. Without them it keeps one of the split's first pairs.
    fn files(&self, _split: &str) -> Vec<PathBuf> {
        Vec::new()
    }

    /// The configuration, as JSON, that gives the very same pairs at any later time, where the one that it was made from
    /// need not: a run keeps it.
    fn pinned(&self) -> Option<String> {
        None
    }
}

/// How a [`Dataset`] is made from its configuration.
pub trait DatasetPlugin: Plugin {
    /// The field of the configuration that `--dataset NAME:TEXT` fills with `TEXT`.
    const ARGUMENT: Option<&'static str> = None;
    /// Endings of files, without the dot, that `--dataset FILE` hands to this plugin: the path fills
    /// [`ARGUMENT`](Self::ARGUMENT).
    const EXTENSIONS: &'static [&'static str] = &[];
    /// Whether `--dataset org/name`, a repository of the hub, is handed to this plugin: it fills
    /// [`ARGUMENT`](Self::ARGUMENT).
    const REPOSITORIES: bool = false;

    /// Opens it: what can be wrong with the configuration is found here, not when the pairs are read.
    ///
    /// # Errors
    /// A field that does not fit, or a file that is missing.
    fn build(config: Self::Config) -> Result<Box<dyn Dataset>>;
}
