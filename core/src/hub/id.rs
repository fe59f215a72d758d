//! Repository ids: `org/name` or `org/name@revision`.

use std::fmt;

use crate::error::{Error, Result};

/// The type of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepoKind {
    /// A model or an adapter.
    Model,
    /// A data set.
    Dataset,
}

impl RepoKind {
    /// Returns the word that messages use for this kind of repository.
    pub fn word(self) -> &'static str {
        match self {
            RepoKind::Model => "model",
            RepoKind::Dataset => "data set",
        }
    }
}

/// A repository on the hub at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoId {
    /// Type of the repository.
    pub kind: RepoKind,
    /// `org/name`.
    pub name: String,
    /// Branch, tag or commit. The default is `main`.
    pub revision: String,
}

/// The default revision.
const MAIN: &str = "main";

impl RepoId {
    /// Parses `org/name` or `org/name@revision`. Returns `None` if `text` is not a valid id.
    pub fn parse(kind: RepoKind, text: &str) -> Option<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let (org, rest) = name.split_once('/')?;
        let revised = !revision.is_empty()
            && revision.split('/').all(|part| plain(part) && !part.starts_with('.'));
        (plain(org) && plain(rest) && revised).then(|| Self {
            kind,
            name: name.to_owned(),
            revision: revision.to_owned(),
        })
    }

    /// Like [`parse`](Self::parse), but returns an error instead of `None`.
    ///
    /// # Errors
    /// Fails if the text is not `org/name` or `org/name@revision`.
    pub fn read(kind: RepoKind, text: &str) -> Result<Self> {
        Self::parse(kind, text).ok_or_else(|| {
            Error::new(format!("`{text}` is not a valid {} id", kind.word())).hint(
                "use `org/name`, or `org/name@revision` to select a branch, a tag or a commit",
            )
        })
    }

    /// Returns the same repository at a different revision.
    #[must_use]
    pub fn at(&self, revision: &str) -> Self {
        Self { revision: revision.to_owned(), ..self.clone() }
    }

    /// True if the revision is `main`, the default.
    pub fn is_main(&self) -> bool {
        self.revision == MAIN
    }

    /// True if the revision is a full commit hash. The files of such a revision cannot change.
    pub fn is_commit(&self) -> bool {
        is_commit(&self.revision)
    }

    pub(super) fn for_hub(&self) -> hf_hub::Repo {
        let kind = match self.kind {
            RepoKind::Model => hf_hub::RepoType::Model,
            RepoKind::Dataset => hf_hub::RepoType::Dataset,
        };
        hf_hub::Repo::with_revision(self.name.clone(), kind, self.revision.clone())
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_main() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}@{}", self.name, self.revision)
        }
    }
}

/// True if `text` is a full commit hash.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// True if `text` is a valid component of an id by the rules of the hub. `..` is not valid, so an
/// id can safely be used as a path.
fn plain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 96
        && !text.starts_with(['.', '-'])
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_an_organisation_and_a_name() {
        let of = |text| RepoId::parse(RepoKind::Model, text);
        let id = of("HuggingFaceTB/SmolLM2-135M").unwrap();
        assert_eq!(
            (id.name.as_str(), id.revision.as_str(), id.to_string().as_str()),
            ("HuggingFaceTB/SmolLM2-135M", "main", "HuggingFaceTB/SmolLM2-135M")
        );
        let id = of("org/name@refs/pr/1").unwrap();
        assert_eq!(
            (id.revision.as_str(), id.to_string().as_str()),
            ("refs/pr/1", "org/name@refs/pr/1")
        );
        assert!(
            id.at("93efa2f097d58c2a74874c7e644dbc9b0cee75a2").is_commit()
                && !id.is_commit()
                && !id.at("93efa2f").is_commit()
        );
        for none in [
            "",
            "name",
            "/name",
            "org/",
            "a/b/c",
            "../name",
            "org/..",
            "org/name@",
            "org/name@../x",
            "org/name@a b",
            "~/x",
            "a/b@c//d",
            "-o/x",
        ] {
            assert_eq!(of(none), None, "{none}");
        }
    }
}
