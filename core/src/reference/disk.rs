//! The values on disk. Each quantity of a reference has a folder, with one file for each block.
//!
//! Several processes can use the cache at the same time. A file is written under a temporary name
//! and then renamed, so that a reader never finds a part of it. Two processes that compute the same
//! block write the same bytes. A file that does not have the expected content is computed again.

use std::borrow::Borrow;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::source::{About, Source};
use super::{Quantity, Values};
use crate::api::Sides;
use crate::error::{Error, Result};
use crate::files::write_whole;
use crate::fingerprint::Parts;
use crate::text::TokenPair;
use crate::weights::{read_safetensors, write_safetensors_unsynced};

/// Name of the folder with all cached values, in the cache folder of reprpo.
const FOLDER: &str = "reference";
/// Name of the file that describes a collection.
pub(super) const ABOUT: &str = "about.json";
/// Name of the file that a process locks while it removes old values.
const LOCK: &str = ".lock";
/// Start of the names of the files that a process locks while it computes values. The rest of the
/// name is the beginning of the digest of the block, so that few blocks share a file.
const TURN: &str = ".computing-";
/// Names of the tensors in a file.
const CHOSEN: &str = "chosen";
const REJECTED: &str = "rejected";
const CHECKSUM: &str = "sha256";
/// Temporary files that are older than this belong to processes that were killed.
const ABANDONED: Duration = Duration::from_secs(3600);

/// What a collection contains, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Contents {
    pub(super) values: String,
    #[serde(flatten)]
    pub(super) about: About,
}

/// A folder with cached values.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    most_bytes: u64,
    /// Number of bytes of all files when they were last counted, and of those that this process
    /// wrote since then. `None` if they have not been counted yet.
    bytes: Option<u64>,
    /// Number of bytes that this process wrote since the last count.
    written: u64,
    /// True after a failed write. Nothing more is then written.
    failed: bool,
}

/// A file with the values of a block.
pub(super) struct Stored {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) used: SystemTime,
}

impl Folder {
    pub(super) fn new(root: PathBuf, most_bytes: u64) -> Self {
        Self { root, most_bytes, bytes: None, written: 0, failed: false }
    }

    /// The folder with all cached values in the cache folder `cache`.
    pub(super) fn within(cache: &Path) -> PathBuf {
        cache.join(FOLDER)
    }

    /// Reads the values of the block with the key `key`. Returns `None` if they are missing. If the
    /// file is damaged, also removes it and logs a warning.
    pub(super) fn read<P: Borrow<TokenPair>>(
        &self,
        source: &Source,
        quantity: &Quantity,
        key: &str,
        pairs: &[P],
    ) -> Option<Values> {
        let path = self.collection(source, quantity).join(name(key, pairs.len()));
        if !path.is_file() {
            return None;
        }
        match read(&path, quantity, key, pairs) {
            Ok(values) => {
                // If the time cannot be set, the file is only removed earlier.
                let _ = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
                Some(values)
            }
            Err(e) => {
                tracing::warn!("cached values are computed again: {}", e.in_a_line());
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// Writes the values of the block with the key `key`. If they cannot be written, logs a
    /// warning, and writes nothing more.
    pub(super) fn write(
        &mut self,
        source: &Source,
        quantity: &Quantity,
        key: &str,
        pairs: usize,
        values: &Values,
    ) {
        if self.failed {
            return;
        }
        if let Err(e) = self.try_write(source, quantity, key, pairs, values) {
            tracing::warn!("cannot cache values of the reference on disk: {}", e.in_a_line());
            self.failed = true;
        }
    }

    fn try_write(
        &mut self,
        source: &Source,
        quantity: &Quantity,
        key: &str,
        pairs: usize,
        values: &Values,
    ) -> Result<()> {
        let collection = self.collection(source, quantity);
        let within = |e: std::io::Error| {
            Error::new(format!("cannot create the folder `{}`", collection.display())).because(e)
        };
        fs::create_dir_all(&collection).map_err(within)?;
        let about = collection.join(ABOUT);
        if !about.is_file() {
            let contents = Contents { values: quantity.to_string(), about: source.about().clone() };
            let text = serde_json::to_string_pretty(&contents)
                .map_err(|e| Error::internal(e.to_string()))?;
            write_whole(&about, text.as_bytes())?;
        }
        let path = collection.join(name(key, pairs));
        write_safetensors_unsynced(&path, &tensors(key, values)?)?;
        let bytes = fs::metadata(&path).map_or(0, |about| about.len());
        self.written += bytes;
        let total = match self.bytes {
            Some(before) => before + bytes,
            None => self.count(),
        };
        self.bytes = Some(total);
        // Other processes write too, so count again from time to time.
        if total > self.most_bytes || self.written > self.most_bytes / 16 {
            self.bytes = Some(self.remove_oldest());
            self.written = 0;
        }
        Ok(())
    }

    fn collection(&self, source: &Source, quantity: &Quantity) -> PathBuf {
        let mut parts = Parts::new("collection");
        parts.add(source.digest.as_bytes());
        parts.add(format!("{quantity:?}").as_bytes());
        self.root.join(&parts.hex()[..KEY_LENGTH])
    }

    /// Waits until no other process computes values of the block with the digest `block`, and keeps
    /// other processes waiting until the returned file is dropped. Returns `None` if the file
    /// system does not support locks. The lock of a process ends with the process.
    pub(super) fn turn(&self, block: &str) -> Option<File> {
        fs::create_dir_all(&self.root).ok()?;
        let file = File::create(self.root.join(format!("{TURN}{}", &block[..2]))).ok()?;
        file.lock().ok()?;
        Some(file)
    }

    /// Number of bytes of all files.
    fn count(&self) -> u64 {
        collection_folders(&self.root).iter().flat_map(|path| stored(path)).map(|f| f.bytes).sum()
    }

    /// If the files exceed the limit, removes those that were not used for the longest time, until
    /// nine tenths of the limit are left. Returns the number of bytes that are left.
    fn remove_oldest(&self) -> u64 {
        // While another process removes files, this one does not have to. The lock is released
        // even if its process is killed.
        let lock = File::create(self.root.join(LOCK));
        if lock.as_ref().is_ok_and(|lock| lock.try_lock().is_err_and(is_held)) {
            return self.count();
        }
        let folders = collection_folders(&self.root);
        folders.iter().for_each(|folder| remove_abandoned(folder));
        let mut files: Vec<Stored> = folders.iter().flat_map(|folder| stored(folder)).collect();
        files.sort_by_key(|file| file.used);
        let mut total: u64 = files.iter().map(|file| file.bytes).sum();
        if total <= self.most_bytes {
            return total;
        }
        for file in files {
            if total <= self.most_bytes / 10 * 9 {
                break;
            }
            if fs::remove_file(&file.path).is_ok() {
                total -= file.bytes;
            }
        }
        for folder in folders.iter().filter(|folder| stored(folder).is_empty()) {
            let _ = fs::remove_file(folder.join(ABOUT));
            // This fails if another process has just written a file into the folder.
            let _ = fs::remove_dir(folder);
        }
        total
    }
}

/// Number of hexadecimal digits in the name of a collection's folder.
const KEY_LENGTH: usize = 12;

fn is_held(e: fs::TryLockError) -> bool {
    matches!(e, fs::TryLockError::WouldBlock)
}

/// Name of the file of a block of `pairs` pairs.
fn name(key: &str, pairs: usize) -> String {
    format!("{}-{pairs}.safetensors", &key[..32])
}

/// The number of pairs in the block that the file `name` contains; `None` for other files.
pub(super) fn pairs_of(name: &str) -> Option<usize> {
    name.strip_suffix(".safetensors")?.split_once('-')?.1.parse().ok()
}

/// The folders of all collections in `root`.
pub(super) fn collection_folders(root: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_collection = |path: &PathBuf| {
        path.is_dir()
            && path.file_name().is_some_and(|name| {
                name.len() == KEY_LENGTH
                    && name.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit)
            })
    };
    folders.filter(is_collection).collect()
}

/// The files with values in the folder of a collection.
pub(super) fn stored(collection: &Path) -> Vec<Stored> {
    let entries = fs::read_dir(collection).into_iter().flatten().flatten();
    let files = entries.filter(|entry| pairs_of(&entry.file_name().to_string_lossy()).is_some());
    files
        .filter_map(|entry| {
            let about = entry.metadata().ok()?;
            let used = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            Some(Stored { path: entry.path(), bytes: about.len(), used })
        })
        .collect()
}

/// Removes temporary files of processes that were killed.
fn remove_abandoned(collection: &Path) {
    for entry in fs::read_dir(collection).into_iter().flatten().flatten() {
        let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if entry.file_name().as_encoded_bytes().starts_with(b".tmp")
            && age().is_some_and(|age| age > ABANDONED)
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The tensors that a file contains: the values of both sides, and the checksum.
fn tensors(key: &str, values: &Values) -> Result<Vec<(String, Tensor)>> {
    let Sides { chosen, rejected } = &values.sides;
    let flat = |bytes: &[u8]| -> Result<Tensor> {
        let n = bytes.len() / values.kind.elt_size_in_bytes();
        Ok(Tensor::f_from_data_size(bytes, &[n as i64], values.kind)?)
    };
    let checksum = checksum(key, values.kind, &chosen.bytes, &rejected.bytes);
    Ok(vec![
        (CHOSEN.to_owned(), flat(&chosen.bytes)?),
        (REJECTED.to_owned(), flat(&rejected.bytes)?),
        (CHECKSUM.to_owned(), Tensor::f_from_slice(&checksum)?),
    ])
}

/// Hashes the key and the values of a file.
fn checksum(key: &str, kind: Kind, chosen: &[u8], rejected: &[u8]) -> [u8; 32] {
    let mut parts = Parts::new("cached values");
    parts.add(key.as_bytes());
    parts.add(format!("{kind:?}").as_bytes());
    parts.add(chosen);
    parts.add(rejected);
    parts.digest()
}

/// Reads the values of a block.
fn read<P: Borrow<TokenPair>>(
    path: &Path,
    quantity: &Quantity,
    key: &str,
    pairs: &[P],
) -> Result<Values> {
    let tensors = read_safetensors(path)?;
    let damaged = || Error::new(format!("`{}` is damaged", path.display()));
    let bytes = |name: &str| -> Result<(Kind, Vec<u8>)> {
        let tensor = tensors.get(name).ok_or_else(damaged)?;
        let kind = tensor.f_kind()?;
        let mut bytes = vec![0; tensor.numel() * kind.elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        Ok((kind, bytes))
    };
    let ((kind, chosen), (_, rejected)) = (bytes(CHOSEN)?, bytes(REJECTED)?);
    if bytes(CHECKSUM)?.1 != checksum(key, kind, &chosen, &rejected) {
        return Err(damaged());
    }
    Values::of_bytes(kind, Sides { chosen, rejected }, quantity, pairs).ok_or_else(damaged)
}
