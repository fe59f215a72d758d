//! Data sets: named splits of preference pairs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

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
    /// Name of the pair's cluster. Pairs of the same cluster are treated as dependent in confidence
    /// intervals, e.g. because they answer the same question. If it is `None`, the pairs with the
    /// same prompt form a cluster. It does not affect training.
    #[serde(skip)]
    pub cluster: Option<String>,
}

impl PreferencePair {
    /// Creates a pair without tools, template variables or the name of a cluster.
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
            cluster: None,
        }
    }

    /// Sets the tools and variables for the chat template.
    #[must_use]
    pub fn with_template_args(mut self, template_args: TemplateArgs) -> Self {
        self.template_args = template_args;
        self
    }

    /// Sets the name of the pair's cluster.
    #[must_use]
    pub fn with_cluster(mut self, cluster: impl Into<String>) -> Self {
        self.cluster = Some(cluster.into());
        self
    }

    /// Computes what identifies the pair: its cluster, and digests of its contents. The result is
    /// the same on every machine and in every version of this crate.
    pub fn identity(&self) -> PairIdentity {
        let prompt = digest(&[&self.prompt], &self.template_args);
        let pair = digest(&[&self.prompt, &self.chosen, &self.rejected], &self.template_args);
        let cluster = self.cluster.clone().unwrap_or_else(|| format!("{prompt:016x}"));
        PairIdentity { cluster, prompt, pair }
    }
}

/// What identifies a pair: its cluster, and digests of its contents. With ten million pairs, the
/// probability that two different pairs have the same digest is about one in 300,000.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairIdentity {
    /// Name of the cluster. If the pair does not name one, it is the digest of the prompt as 16
    /// hexadecimal digits.
    pub cluster: String,
    /// Digest of the prompt, its tools and its template variables.
    pub prompt: u64,
    /// Digest of the prompt and both completions.
    pub pair: u64,
}

/// The first 64 bits of the SHA-256 of `texts` and the template's arguments.
fn digest(texts: &[&Text], args: &TemplateArgs) -> u64 {
    let mut hasher = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    // JSON distinguishes plain text from messages. Serialising these types cannot fail, because
    // their keys are strings.
    texts.iter().for_each(|text| add(&serde_json::to_vec(text).unwrap_or_default()));
    add(&serde_json::to_vec(args).unwrap_or_default());
    let digest = hasher.finalize();
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn pairs_with_the_same_prompt_are_in_the_same_cluster() {
        let of = |prompt: &str, chosen: &str| PreferencePair::new(prompt, chosen, "r").identity();
        assert_eq!(of("p", "a").cluster, of("p", "b").cluster);
        assert_ne!(of("p", "a").cluster, of("q", "a").cluster);
        assert_ne!(of("p", "a").pair, of("p", "b").pair);
        // SHA-256 of `"p"` and `{}`, each after its length as eight bytes, computed with Python.
        assert_eq!(of("p", "a").cluster, "4e88978073d0892f");
    }

    #[test]
    fn the_digest_depends_on_all_parts_of_the_prompt() {
        let plain = PreferencePair::new("p", "c", "r");
        let message = |content: &str| vec![Message::new("user", content)];
        let turns = PreferencePair::new(message("p"), message("c"), message("r"));
        let args = TemplateArgs::new(Value::Null, json!({"enable_thinking": false})).unwrap();
        let switched = turns.clone().with_template_args(args);
        let prompts = [&plain, &turns, &switched].map(|pair| pair.identity().prompt);
        assert!(prompts[0] != prompts[1] && prompts[1] != prompts[2], "{prompts:?}");
        // The lengths of the parts are hashed, so text cannot move from one part to another.
        let moved = PreferencePair::new("p", "cr", "");
        assert_ne!(plain.identity().pair, moved.identity().pair);
    }

    #[test]
    fn a_named_cluster_replaces_the_prompt() {
        let of = |prompt: &str| PreferencePair::new(prompt, "c", "r").with_cluster("7").identity();
        assert_eq!((of("p").cluster, of("q").cluster), ("7".to_owned(), "7".to_owned()));
        assert_ne!(of("p").prompt, of("q").prompt);
    }
}
