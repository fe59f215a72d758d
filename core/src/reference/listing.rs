//! Lists and clears the values on disk.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use super::disk::{ABOUT, Contents, Folder, collection_folders, pairs_of, stored};
use crate::error::{Context, Error, Result};

/// The cached values of one quantity of one reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Collection {
    /// Name of the collection, as a hexadecimal number.
    pub key: String,
    /// Description of the quantity; empty if the description is missing.
    pub values: String,
    /// The model and its adapter; empty if the description is missing.
    pub model: String,
    /// Data type of the model.
    pub dtype: String,
    /// The device that computed the values.
    pub device: String,
    /// Number of pairs. A pair counts once for each block that contains it.
    pub pairs: usize,
    /// Number of files, one for each block.
    pub blocks: usize,
    /// Size of all files in bytes.
    pub bytes: u64,
    /// Time of the last use, in seconds since 1970.
    pub last_used: u64,
}

impl Collection {
    fn read(folder: &Path) -> Self {
        let files = stored(folder);
        let contents: Option<Contents> = std::fs::read(folder.join(ABOUT))
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok());
        let name =
            |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let seconds = |time: SystemTime| {
            time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |t| t.as_secs())
        };
        let of = |text: fn(&Contents) -> String| contents.as_ref().map(text).unwrap_or_default();
        Self {
            key: name(folder),
            values: of(|contents| contents.values.clone()),
            model: of(|contents| contents.about.to_string()),
            dtype: of(|contents| contents.about.dtype.clone()),
            device: of(|contents| contents.about.device.clone()),
            pairs: files.iter().filter_map(|file| pairs_of(&name(&file.path))).sum(),
            blocks: files.len(),
            bytes: files.iter().map(|file| file.bytes).sum(),
            last_used: files.iter().map(|file| seconds(file.used)).max().unwrap_or_default(),
        }
    }
}

/// The folder with all cached values in the cache folder `cache`.
pub fn folder(cache: &Path) -> PathBuf {
    Folder::within(cache)
}

/// Lists the cached values in the cache folder `cache`. The collection that was used last comes
/// first.
pub fn collections(cache: &Path) -> Vec<Collection> {
    let mut all: Vec<Collection> = collection_folders(&Folder::within(cache))
        .iter()
        .map(|folder| Collection::read(folder))
        .filter(|collection| collection.blocks > 0)
        .collect();
    all.sort_by(|a, b| b.last_used.cmp(&a.last_used).then_with(|| a.key.cmp(&b.key)));
    all
}

/// Removes the collection whose key begins with `key`, or all collections if there is no key.
/// Returns the removed collections.
///
/// # Errors
/// Fails if no collection or more than one has that key, or if a file cannot be removed.
pub fn clear(cache: &Path, key: Option<&str>) -> Result<Vec<Collection>> {
    let mut all = collections(cache);
    if let Some(key) = key {
        let keys: Vec<String> = all.iter().map(|collection| collection.key.clone()).collect();
        all.retain(|collection| !key.is_empty() && collection.key.starts_with(key));
        if all.is_empty() {
            return Err(Error::unknown("key", key, keys));
        }
        if all.len() > 1 {
            let found: Vec<String> = all.iter().map(|one| format!("`{}`", one.key)).collect();
            let text = format!("`{key}` is the beginning of several keys: {}", found.join(", "));
            return Err(Error::new(text).hint("give more digits of the key"));
        }
    }
    for collection in &all {
        let path = Folder::within(cache).join(&collection.key);
        std::fs::remove_dir_all(&path)
            .within(|| format!("cannot remove the folder `{}`", path.display()))?;
    }
    Ok(all)
}
