//! Parses the names of splits in the configuration: `SPLIT`, `CONFIG:SPLIT` or
//! `org/name:CONFIG:SPLIT`.

use reprpo_plugin::hub::{RepoId, RepoKind};
use reprpo_plugin::prelude::*;

/// A split, with the repository and configuration that contain it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub repo: RepoId,
    pub config: Option<String>,
    pub split: String,
}

impl Part {
    /// Parses the name of a split. If `text` does not contain a repository, the repository is
    /// `home`, and the configuration defaults to `config`.
    pub fn read(text: &str, home: &RepoId, config: Option<&str>) -> Result<Self> {
        let wrong = || {
            Error::new(format!("`{text}` is not a valid split"))
                .hint("write `SPLIT`, `CONFIG:SPLIT` or `org/name:CONFIG:SPLIT`")
        };
        let (rest, split) =
            text.rsplit_once(':').map_or((None, text), |(rest, split)| (Some(rest), split));
        let (repo, named) = match rest {
            None => (None, None),
            Some(rest) => match rest.split_once(':') {
                Some((repo, config)) => (Some(repo), Some(config)),
                None if rest.contains('/') => (Some(rest), None),
                None => (None, Some(rest)),
            },
        };
        if split.is_empty() || split.contains('/') || named.is_some_and(str::is_empty) {
            return Err(wrong());
        }
        let other = repo
            .map(|repo| {
                RepoId::read(RepoKind::Dataset, repo).map_err(|e| e.within(wrong().message()))
            })
            .transpose()?;
        // Ignore `config` if the text names a repository, because other repositories have other
        // configurations.
        let config = named.or(config.filter(|_| other.is_none()));
        Ok(Self {
            repo: other.unwrap_or_else(|| home.clone()),
            config: config.map(str::to_owned),
            split: split.to_owned(),
        })
    }

    /// Formats the name of the split. The repository is omitted if it is `home`. Any other
    /// repository is written as `pinned`.
    pub fn text(&self, home: &RepoId, pinned: RepoId) -> String {
        let repo = (self.repo != *home).then(|| pinned.to_string());
        [repo.as_deref(), self.config.as_deref(), Some(&self.split)]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(":")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_can_have_a_configuration_and_a_data_set() {
        let home = RepoId::read(RepoKind::Dataset, "org/name").unwrap();
        let of = |text: &str| Part::read(text, &home, Some("own")).unwrap();
        let part = |text: &str| {
            (of(text).repo.to_string(), of(text).config.unwrap_or_default(), of(text).split)
        };
        let is = |text: &str, parts: [&str; 3]| {
            assert_eq!(
                part(text),
                (parts[0].to_owned(), parts[1].to_owned(), parts[2].to_owned()),
                "{text}"
            )
        };
        is("test", ["org/name", "own", "test"]);
        is("math:test", ["org/name", "math", "test"]);
        is("a/b:test", ["a/b", "", "test"]);
        is("a/b@v1:math:test", ["a/b@v1", "math", "test"]);
        for text in ["math:test", "a/b:test", "a/b:math:test"] {
            assert_eq!(of(text).text(&home, of(text).repo), text);
        }
        for bad in ["", "math:", ":test", "a/b", "a/b::test", "a b/c:test"] {
            assert!(Part::read(bad, &home, None).is_err(), "{bad}");
        }
    }
}
