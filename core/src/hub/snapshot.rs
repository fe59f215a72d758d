//! A repository as of one commit: what it holds, and its files in the cache.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::id::is_commit;
use super::{Hub, RepoId, RepoKind, card, fetch, text};
use crate::error::{Context, Error, Result, quoted};
use crate::files::{read_bounded, write_whole};

/// What a repository holds at a commit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Listing {
    pub commit: String,
    /// Paths within it, sorted.
    pub files: Vec<String>,
    /// Whether its files are for those alone who accepted its terms.
    pub gated: bool,
    /// The head of its README.
    pub card: Value,
}

impl Listing {
    /// From what the hub says.
    pub fn read(hub: &Hub, repo: &RepoId, said: &str) -> Result<Self> {
        let wrong = |what: &str| Error::new(format!("what the hub says of `{repo}` {what}"));
        let said: Value = serde_json::from_str(said).map_err(|e| wrong("is no JSON").because(e))?;
        let commit = text(&said, "sha").to_owned();
        if !is_commit(&commit) {
            return Err(wrong("names no commit"));
        }
        let siblings = said
            .get("siblings")
            .and_then(Value::as_array)
            .ok_or_else(|| wrong("names no files"))?;
        let mut files: Vec<String> = siblings
            .iter()
            .map(|s| text(s, "rfilename"))
            .filter(|f| is_inside(f))
            .map(str::to_owned)
            .collect();
        files.sort();
        let gated = said.get("gated").is_some_and(|g| *g != Value::Bool(false) && !g.is_null());
        let listing = Self {
            commit,
            files,
            gated,
            card: said.get("cardData").cloned().unwrap_or(Value::Null),
        };
        listing.keep(hub, repo);
        Ok(listing)
    }

    /// What was said of a commit before: it holds for ever.
    pub fn kept(hub: &Hub, repo: &RepoId, commit: &str) -> Option<Self> {
        let bytes = read_bounded(&place(hub, repo, commit), super::MOST_SAID).ok()?;
        serde_json::from_slice::<Self>(&bytes)
            .ok()
            .filter(|l| l.commit == commit && l.files.iter().all(|f| is_inside(f)))
    }

    /// Lists the files of a snapshot in the cache, if the cache has no listing from the hub.
    fn of_folder(folder: &Path, repo: &RepoId, commit: String) -> Result<Self> {
        let mut files = Vec::new();
        walk(folder, "", &mut files)?;
        files.sort();
        let mut listing = Self { commit, files, gated: false, card: Value::Null };
        if repo.kind == RepoKind::Dataset {
            let readme = folder.join(README);
            if readme.is_file() {
                let text =
                    String::from_utf8_lossy(&read_bounded(&readme, MOST_README)?).into_owned();
                listing.card = card::of_readme(&text)
                    .within(|| format!("cannot use `{}`", readme.display()))?;
            } else if !repo.revision.starts_with("refs/convert/") {
                tracing::warn!(
                    "the cache has no `{README}` of `{repo}`, so the splits are inferred from the \
                        names of its files"
                );
            }
        }
        Ok(listing)
    }

    fn keep(&self, hub: &Hub, repo: &RepoId) {
        let place = place(hub, repo, &self.commit);
        let written = || -> Result<()> {
            let folder = place.parent().unwrap_or(Path::new("."));
            std::fs::create_dir_all(folder)
                .within(|| format!("cannot make `{}`", folder.display()))?;
            write_whole(
                &place,
                &serde_json::to_vec(self).map_err(|e| Error::internal(e.to_string()))?,
            )
        };
        // Without it, a later run asks again.
        if let Err(e) = written() {
            tracing::debug!("what `{repo}` holds is not kept: {e:?}");
        }
    }
}

/// Where it is kept what a repository holds at a commit.
fn place(hub: &Hub, repo: &RepoId, commit: &str) -> PathBuf {
    hub.settings.listings.join(repo.for_hub().folder_name()).join(format!("{commit}.json"))
}

/// Whether a path leads to a file within the folder that it is put behind.
fn is_inside(file: &str) -> bool {
    !file.is_empty()
        && !file.contains('\\')
        && file.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

/// A repository as of one commit. Files are fetched as they are asked for.
#[derive(Debug)]
pub struct Snapshot<'h> {
    hub: &'h Hub,
    repo: RepoId,
    listing: Listing,
    /// Whether a file that is not in the cache may be fetched.
    fetches: bool,
    /// True if the listing was made from the cache, so that the repository may have more files.
    partial: bool,
}

const README: &str = "README.md";
/// Maximum size of a README in bytes.
const MOST_README: u64 = 1 << 24;

impl<'h> Snapshot<'h> {
    pub(super) fn listed(hub: &'h Hub, repo: &RepoId, listing: Listing) -> Self {
        Self { hub, repo: repo.clone(), listing, fetches: true, partial: false }
    }

    /// What the cache has of the repository.
    pub(super) fn cached(hub: &'h Hub, repo: &RepoId) -> Result<Self> {
        let folder = hub.settings.cache.join(repo.for_hub().folder_name());
        let missing = || {
            Error::new(format!(
                "the {} `{repo}` is not in the cache, `{}`",
                repo.kind.word(),
                hub.settings.cache.display()
            ))
        };
        let snapshots = folder.join("snapshots");
        let named = match std::fs::read_to_string(folder.join("refs").join(&repo.revision)) {
            Ok(commit) => Some(commit.trim().to_owned()),
            Err(_) if repo.is_commit() => Some(repo.revision.clone()),
            // Files that were put there by hand have no refs; where there is one snapshot, it is
            // meant.
            Err(_) => only(&snapshots).filter(|_| repo.revision == "main"),
        };
        let commit = named
            .filter(|c| is_inside(c) && !c.contains('/') && snapshots.join(c).is_dir())
            .ok_or_else(missing)?;
        let (listing, partial) = match Listing::kept(hub, repo, &commit) {
            Some(listing) => (listing, false),
            None => (Listing::of_folder(&snapshots.join(&commit), repo, commit)?, true),
        };
        Ok(Self { hub, repo: repo.clone(), listing, fetches: false, partial })
    }

    /// The commit.
    pub fn commit(&self) -> &str {
        &self.listing.commit
    }

    /// The repository at this commit, which is the same for ever.
    pub fn pinned(&self) -> RepoId {
        self.repo.at(&self.listing.commit)
    }

    /// The paths of its files, sorted.
    pub fn files(&self) -> &[String] {
        &self.listing.files
    }

    /// Whether it has a file of that path.
    pub fn has(&self, file: &str) -> bool {
        self.listing.files.binary_search_by(|f| f.as_str().cmp(file)).is_ok()
    }

    /// The head of its README, as JSON; null if there is none, or if the cache does not have it.
    pub fn card(&self) -> &Value {
        &self.listing.card
    }

    /// Its folder in the cache, with the files that were fetched.
    pub fn folder(&self) -> PathBuf {
        self.hub.cached(self.repo.for_hub()).pointer_path(&self.listing.commit)
    }

    /// A file on this machine; fetched, where it is not there yet.
    ///
    /// # Errors
    /// A file that the repository does not have or does not give, one that came damaged, and,
    /// offline, one that is not in the cache.
    pub fn get(&self, file: &str) -> Result<PathBuf> {
        let path = self.folder().join(file);
        if is_inside(file) && path.is_file() {
            return Ok(path);
        }
        if !self.has(file) && !self.partial {
            return Err(Error::new(format!(
                "the {} `{}` has no file `{file}`",
                self.repo.kind.word(),
                self.repo
            )));
        }
        if !self.fetches {
            let dataset =
                if self.repo.kind == RepoKind::Dataset { " --repo-type dataset" } else { "" };
            return Err(Error::new(format!(
                "`{file}` of `{}` is not in the cache, `{}`",
                self.repo,
                self.hub.settings.cache.display()
            ))
            .hint(format!(
                "where there is a network, `hf download{dataset} {} {}` fetches it",
                self.repo.name,
                quoted(file)
            )));
        }
        let pinned = self.pinned();
        fetch::File { hub: self.hub, repo: &pinned, name: file, gated: self.listing.gated }
            .fetch()
            .within(|| format!("cannot fetch `{file}` of `{}`", self.repo))?;
        if !self.repo.is_commit() {
            // From here on the cache knows what the branch was.
            let reference = self.hub.cached(self.repo.for_hub()).create_ref(&self.listing.commit);
            reference.within(|| {
                format!("cannot write into the cache `{}`", self.hub.settings.cache.display())
            })?;
        }
        Ok(path)
    }

    /// Several files; gives the folder that they are in.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn get_all<S: AsRef<str>>(&self, files: impl IntoIterator<Item = S>) -> Result<PathBuf> {
        files.into_iter().try_for_each(|file| self.get(file.as_ref()).map(drop))?;
        Ok(self.folder())
    }
}

/// The name of the only folder there.
fn only(folder: &Path) -> Option<String> {
    let mut folders =
        std::fs::read_dir(folder).ok()?.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.is_dir());
    let first = folders.next()?;
    folders
        .next()
        .is_none()
        .then(|| first.file_name().map(|n| n.to_string_lossy().into_owned()))
        .flatten()
}

/// The files below a folder, as paths within it.
fn walk(folder: &Path, prefix: &str, files: &mut Vec<String>) -> Result<()> {
    let entries =
        std::fs::read_dir(folder).within(|| format!("cannot read `{}`", folder.display()))?;
    for entry in entries.filter_map(std::result::Result::ok) {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let path = entry.path();
        // Files are links into the cache's blobs; a link to a folder is none of the hub's.
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(&path, &format!("{name}/"), files)?;
        } else if path.is_file() {
            files.push(name);
        }
    }
    Ok(())
}
