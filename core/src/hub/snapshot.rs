//! A repository at one commit: the list of its files, and the copies of these files in the cache.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::id::is_commit;
use super::{Hub, RepoId, RepoKind, card, fetch, text};
use crate::error::{Context, Error, Result, quoted};
use crate::files::{read_bounded, write_whole};

/// The files of a repository at a commit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Listing {
    pub commit: String,
    /// Paths within the repository, sorted.
    pub files: Vec<String>,
    /// True if users must accept the repository's terms before they can download files.
    pub gated: bool,
    /// Metadata from the front matter of the README, as JSON.
    pub card: Value,
}

impl Listing {
    /// Parses the repository metadata that the hub returned as JSON, and saves the listing for
    /// later runs.
    pub fn read(hub: &Hub, repo: &RepoId, json: &str) -> Result<Self> {
        let wrong = |what: &str| Error::new(format!("the hub's metadata of `{repo}` {what}"));
        let json: Value =
            serde_json::from_str(json).map_err(|e| wrong("is not valid JSON").because(e))?;
        let commit = text(&json, "sha").to_owned();
        if !is_commit(&commit) {
            return Err(wrong("does not contain a commit hash"));
        }
        let siblings = json
            .get("siblings")
            .and_then(Value::as_array)
            .ok_or_else(|| wrong("does not list any files"))?;
        let mut files: Vec<String> = siblings
            .iter()
            .map(|s| text(s, "rfilename"))
            .filter(|f| is_inside(f))
            .map(str::to_owned)
            .collect();
        files.sort();
        let gated = json.get("gated").is_some_and(|g| *g != Value::Bool(false) && !g.is_null());
        let listing = Self {
            commit,
            files,
            gated,
            card: json.get("cardData").cloned().unwrap_or(Value::Null),
        };
        listing.store(hub, repo);
        Ok(listing)
    }

    /// Reads the listing of a commit from a file that an earlier run saved. The file never becomes
    /// outdated, because commits do not change.
    pub fn stored(hub: &Hub, repo: &RepoId, commit: &str) -> Option<Self> {
        let bytes =
            read_bounded(&listing_path(hub, repo, commit), super::MAX_LISTING_BYTES).ok()?;
        serde_json::from_slice::<Self>(&bytes)
            .ok()
            .filter(|l| l.commit == commit && l.files.iter().all(|f| is_inside(f)))
    }

    /// Creates a listing from the files in a snapshot folder of the cache. This is used if the
    /// hub's listing is not available.
    fn of_folder(folder: &Path, repo: &RepoId, commit: String) -> Result<Self> {
        let mut files = Vec::new();
        walk(folder, "", &mut files)?;
        files.sort();
        let mut listing = Self { commit, files, gated: false, card: Value::Null };
        if repo.kind == RepoKind::Dataset {
            let readme = folder.join(README);
            if readme.is_file() {
                let text =
                    String::from_utf8_lossy(&read_bounded(&readme, MAX_README_BYTES)?).into_owned();
                listing.card = card::of_readme(&text)
                    .within(|| format!("cannot use `{}`", readme.display()))?;
            } else if !repo.revision.starts_with("refs/convert/") {
                tracing::warn!(
                    "`{README}` of `{repo}` is not in the cache, so the splits are inferred from \
                        file names"
                );
            }
        }
        Ok(listing)
    }

    fn store(&self, hub: &Hub, repo: &RepoId) {
        let path = listing_path(hub, repo, &self.commit);
        let written = || -> Result<()> {
            let folder = path.parent().unwrap_or(Path::new("."));
            std::fs::create_dir_all(folder)
                .within(|| format!("cannot create `{}`", folder.display()))?;
            write_whole(
                &path,
                &serde_json::to_vec(self).map_err(|e| Error::internal(e.to_string()))?,
            )
        };
        // Ignore the error. Without the saved listing, a later run requests the listing from the
        // hub again.
        if let Err(e) = written() {
            tracing::debug!("cannot save the listing of `{repo}`: {e:?}");
        }
    }
}

fn listing_path(hub: &Hub, repo: &RepoId, commit: &str) -> PathBuf {
    hub.settings.listings.join(repo.for_hub().folder_name()).join(format!("{commit}.json"))
}

/// True if the relative path `file` cannot point outside the folder that it is joined to.
fn is_inside(file: &str) -> bool {
    !file.is_empty()
        && !file.contains('\\')
        && file.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

/// A repository at one commit. Files are downloaded on demand.
#[derive(Debug)]
pub struct Snapshot<'h> {
    hub: &'h Hub,
    repo: RepoId,
    listing: Listing,
    /// True if files that are not in the cache may be downloaded.
    can_download: bool,
    /// True if the listing was created from the files in the cache. The repository may then contain
    /// more files.
    partial: bool,
}

const README: &str = "README.md";
/// Maximum size of a README in bytes.
const MAX_README_BYTES: u64 = 1 << 24;

impl<'h> Snapshot<'h> {
    pub(super) fn listed(hub: &'h Hub, repo: &RepoId, listing: Listing) -> Self {
        Self { hub, repo: repo.clone(), listing, can_download: true, partial: false }
    }

    /// Looks up the repository in the cache.
    pub(super) fn cached(hub: &'h Hub, repo: &RepoId) -> Result<Self> {
        let folder = hub.settings.cache.join(repo.for_hub().folder_name());
        let missing = || {
            Error::new(format!(
                "the {} `{repo}` is not in the cache at `{}`",
                repo.kind.word(),
                hub.settings.cache.display()
            ))
        };
        let snapshots = folder.join("snapshots");
        let named = match std::fs::read_to_string(folder.join("refs").join(&repo.revision)) {
            Ok(commit) => Some(commit.trim().to_owned()),
            Err(_) if repo.is_commit() => Some(repo.revision.clone()),
            // A manually filled cache does not contain refs. If the cache contains only one
            // snapshot, use that snapshot as `main`.
            Err(_) => only_subfolder(&snapshots).filter(|_| repo.revision == "main"),
        };
        let commit = named
            .filter(|c| is_inside(c) && !c.contains('/') && snapshots.join(c).is_dir())
            .ok_or_else(missing)?;
        let (listing, partial) = match Listing::stored(hub, repo, &commit) {
            Some(listing) => (listing, false),
            None => (Listing::of_folder(&snapshots.join(&commit), repo, commit)?, true),
        };
        Ok(Self { hub, repo: repo.clone(), listing, can_download: false, partial })
    }

    /// Returns the full hash of the commit.
    pub fn commit(&self) -> &str {
        &self.listing.commit
    }

    /// Returns the repository's id with the commit hash as its revision. This id always refers to
    /// the same files.
    pub fn pinned(&self) -> RepoId {
        self.repo.at(&self.listing.commit)
    }

    /// Returns the sorted paths of all files in the repository.
    pub fn files(&self) -> &[String] {
        &self.listing.files
    }

    /// True if the repository contains a file with this path.
    pub fn has(&self, file: &str) -> bool {
        self.listing.files.binary_search_by(|f| f.as_str().cmp(file)).is_ok()
    }

    /// Returns the metadata from the front matter of the README, as JSON. The metadata is null if
    /// there is no front matter, or if the client is offline and the README is not in the cache.
    pub fn card(&self) -> &Value {
        &self.listing.card
    }

    /// Returns the snapshot's folder in the cache. The folder only contains downloaded files.
    pub fn folder(&self) -> PathBuf {
        self.hub.cached(self.repo.for_hub()).pointer_path(&self.listing.commit)
    }

    /// Returns the path of a file in the cache. Downloads the file if it is not in the cache yet.
    ///
    /// # Errors
    /// Fails if the file does not exist in the repository, or if the user has no access to the
    /// file. Also fails if the download fails or is corrupted. If the client is offline, fails if
    /// the file is not in the cache.
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
        if !self.can_download {
            let dataset =
                if self.repo.kind == RepoKind::Dataset { " --repo-type dataset" } else { "" };
            return Err(Error::new(format!(
                "`{file}` of `{}` is not in the cache at `{}`",
                self.repo,
                self.hub.settings.cache.display()
            ))
            .hint(format!(
                "run `hf download{dataset} {} {}` on a machine with network access",
                self.repo.name,
                quoted(file)
            )));
        }
        let pinned = self.pinned();
        fetch::File { hub: self.hub, repo: &pinned, name: file, gated: self.listing.gated }
            .fetch()
            .within(|| format!("cannot fetch `{file}` of `{}`", self.repo))?;
        if !self.repo.is_commit() {
            // Save the commit of the branch or tag, so that offline runs can find the snapshot.
            let reference = self.hub.cached(self.repo.for_hub()).create_ref(&self.listing.commit);
            reference.within(|| {
                format!("cannot write to the cache `{}`", self.hub.settings.cache.display())
            })?;
        }
        Ok(path)
    }

    /// Downloads several files, unless they are already in the cache, and returns the snapshot's
    /// folder.
    ///
    /// # Errors
    /// Fails in the same cases as [`get`](Self::get).
    pub fn get_all<S: AsRef<str>>(&self, files: impl IntoIterator<Item = S>) -> Result<PathBuf> {
        files.into_iter().try_for_each(|file| self.get(file.as_ref()).map(drop))?;
        Ok(self.folder())
    }
}

/// Returns the name of the only subfolder, or `None` if there is not exactly one.
fn only_subfolder(folder: &Path) -> Option<String> {
    let mut folders =
        std::fs::read_dir(folder).ok()?.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.is_dir());
    let first = folders.next()?;
    folders
        .next()
        .is_none()
        .then(|| first.file_name().map(|n| n.to_string_lossy().into_owned()))
        .flatten()
}

/// Appends the files in a folder and its subfolders to `files`, as relative paths that start with
/// `prefix`.
fn walk(folder: &Path, prefix: &str, files: &mut Vec<String>) -> Result<()> {
    let entries =
        std::fs::read_dir(folder).within(|| format!("cannot read `{}`", folder.display()))?;
    for entry in entries.filter_map(std::result::Result::ok) {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let path = entry.path();
        // In the cache, files are symlinks to blobs. Only descend into real folders: Hugging Face
        // tools never create symlinks to folders.
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(&path, &format!("{name}/"), files)?;
        } else if path.is_file() {
            files.push(name);
        }
    }
    Ok(())
}
