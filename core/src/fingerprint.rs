//! Fingerprints: digests of the inputs of a run, so that a later command can detect changes.
//!
//! A checkpoint stores the fingerprints of everything that affects the training steps. The
//! `config.toml` of a run stores the fingerprints of its model and its data.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tch::{Device, Tensor};

use crate::api::Dataset;
use crate::error::{Context, Error, Result};
use crate::files::hex;
use crate::text::{TokenPair, Tokenizer};
use crate::weights::{Located, ModelFiles};

/// A SHA-256 digest, and a short description of the hashed data for messages.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fingerprint {
    pub(crate) sha256: String,
    of: String,
}

impl PartialEq for Fingerprint {
    fn eq(&self, other: &Self) -> bool {
        self.sha256 == other.sha256
    }
}

impl Fingerprint {
    /// Compares this recorded fingerprint with the current fingerprint `found`. Returns a
    /// description of the difference, or `None` if the fingerprints are equal.
    pub fn change(&self, found: &Self) -> Option<String> {
        match (self == found, self.of == found.of) {
            (true, _) => None,
            (false, true) => Some(format!("{}, with different contents", self.of)),
            (false, false) => Some(format!("{} then, {} now", self.of, found.of)),
        }
    }
}

/// An incremental hash of several values. The length of each value is hashed too, so that for
/// example `ab`, `c` and `a`, `bc` have different hashes.
pub(crate) struct Parts(Sha256);

impl Parts {
    /// Starts a hash. `kind` is hashed first, so that hashes of different kinds of data never
    /// coincide.
    pub(crate) fn new(kind: &str) -> Self {
        let mut parts = Self(Sha256::new());
        parts.add(kind.as_bytes());
        parts
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    pub(crate) fn ids(&mut self, ids: &[i64]) {
        self.0.update((ids.len() as u64).to_le_bytes());
        for id in ids {
            self.0.update(id.to_le_bytes());
        }
    }

    pub(crate) fn hex(self) -> String {
        hex(&self.digest())
    }

    pub(crate) fn digest(self) -> [u8; 32] {
        self.0.finalize().into()
    }

    pub(crate) fn describing(self, of: impl Into<String>) -> Fingerprint {
        Fingerprint { sha256: self.hex(), of: of.into() }
    }
}

/// Number of evenly spaced blocks that are read from a large file, in addition to its last block.
const BLOCKS: u64 = 64;
/// Length in bytes of a block in a model file.
const MODEL_BLOCK: u64 = 1 << 16;
/// Length in bytes of a block in a data file.
const DATA_BLOCK: u64 = 1 << 20;

/// Returns the offset and length of each block to read from a file of `len` bytes. The first block
/// is at the start of the file and the last one at its end. A small file is read completely, as a
/// single block.
fn blocks(len: u64, block: u64) -> Vec<(u64, u64)> {
    if len <= BLOCKS * block {
        return vec![(0, len)];
    }
    (0..BLOCKS)
        .map(|i| (i * ((len - block) / (BLOCKS - 1)), block))
        .chain([(len - block, block)])
        .collect()
}

/// Hashes the token ids of a truncated pair.
pub(crate) fn pair_digest(pair: &TokenPair) -> String {
    let mut parts = Parts::new("pair");
    for ids in [&pair.prompt, &pair.chosen, &pair.rejected] {
        parts.ids(ids);
    }
    parts.hex()
}

/// Computes the fingerprint of the tokens of truncated pairs. The fingerprint depends on the order
/// of the pairs.
pub fn of_pairs(pairs: &[TokenPair]) -> Fingerprint {
    let mut parts = Parts::new("pairs");
    for pair in pairs {
        parts.add(pair_digest(pair).as_bytes());
    }
    let (n, tokens): (usize, usize) = (pairs.len(), pairs.iter().map(TokenPair::tokens).sum());
    parts.describing(format!("{n} {} of {tokens} tokens", if n == 1 { "pair" } else { "pairs" }))
}

/// Computes the fingerprint of a model. For a model from the hub, only the id and the commit are
/// hashed. For other models, the configuration and the weight files are hashed. Only the name, the
/// length, the header and up to 65 evenly spaced blocks of each weight file are read.
pub fn of_model(source: &Located, files: &ModelFiles) -> Fingerprint {
    if source.repository.is_some() {
        let commit = source.pinned("");
        let mut parts = Parts::new("hub model");
        parts.add(commit.as_bytes());
        return parts.describing(format!("`{commit}`"));
    }
    let mut parts = Parts::new("model");
    parts.add(files.config().to_string().as_bytes());
    let mut names = Vec::new();
    let mut total = 0;
    for (path, bytes, header) in files.parts() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        parts.add(name.as_bytes());
        parts.add(&(bytes.len() as u64).to_le_bytes());
        parts.add(&bytes[..header.min(bytes.len())]);
        for (at, len) in blocks(bytes.len() as u64, MODEL_BLOCK) {
            parts.add(&bytes[at as usize..(at + len) as usize]);
        }
        total += bytes.len();
        names.push(format!("`{name}`"));
    }
    let names = if names.len() > 2 {
        format!("{} files from {}", names.len(), names[0])
    } else {
        names.join(" and ")
    };
    parts.describing(format!("{names} of {total} bytes"))
}

/// Extends the fingerprint of a model with the modification times of its weight files, because the
/// fingerprint only covers a part of a large file. A file from the hub is identified by its commit.
///
/// # Errors
/// Fails if the modification time of a file cannot be read.
pub fn of_weights(
    model: &Fingerprint,
    source: &Located,
    files: &ModelFiles,
) -> Result<Fingerprint> {
    let mut parts = Parts::new("weights");
    parts.add(model.sha256.as_bytes());
    if source.repository.is_none() {
        for (path, ..) in files.parts() {
            let modified = std::fs::metadata(path).and_then(|about| about.modified());
            let modified = modified.within(|| format!("cannot read `{}`", path.display()))?;
            parts.add(format!("{modified:?}").as_bytes());
        }
    }
    Ok(parts.describing(model.of.clone()))
}

/// Computes the fingerprint of a tokenizer. Hashes the files that saving the tokenizer would write.
///
/// # Errors
/// Fails if the tokenizer cannot be saved.
pub fn of_tokenizer(tokenizer: &Tokenizer) -> Result<Fingerprint> {
    let mut parts = Parts::new("tokenizer");
    for (name, text) in tokenizer.files()? {
        parts.add(name.as_bytes());
        parts.add(text.as_bytes());
    }
    Ok(parts.describing(format!("a tokenizer of {} tokens", tokenizer.vocab_size())))
}

/// Computes the fingerprint of named tensors and their configuration. `of` describes the tensors in
/// messages.
///
/// # Errors
/// Fails if a tensor cannot be copied to the CPU.
pub fn of_tensors(
    of: &str,
    config: &Value,
    tensors: &IndexMap<String, Tensor>,
) -> Result<Fingerprint> {
    let mut parts = Parts::new("tensors");
    parts.add(config.to_string().as_bytes());
    let mut names: Vec<&String> = tensors.keys().collect();
    names.sort();
    for name in names {
        let tensor = tensors[name].f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
        let mut bytes = vec![0; tensor.numel() * tensor.f_kind()?.elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        parts.add(name.as_bytes());
        parts.add(format!("{:?} {:?}", tensor.f_kind()?, tensor.size()).as_bytes());
        parts.add(&bytes);
    }
    Ok(parts.describing(of))
}

/// Combines several fingerprints into one.
pub(crate) fn together(kind: &str, all: &[&Fingerprint]) -> Fingerprint {
    let mut parts = Parts::new(kind);
    for one in all {
        parts.add(one.sha256.as_bytes());
    }
    parts.describing(all.iter().map(|one| one.of.as_str()).collect::<Vec<_>>().join(" and "))
}

/// Computes the fingerprint of the contents of files, without their names, in the given order.
/// Files of up to 64 MiB are read completely. From larger files, only 65 blocks of 1 MiB are read.
fn of_files(files: &[PathBuf]) -> Result<Fingerprint> {
    let mut parts = Parts::new("files");
    let mut total = 0;
    for path in files {
        let within = || format!("cannot read `{}`", path.display());
        let mut file = File::open(path).within(within)?;
        let len = file.metadata().within(within)?.len();
        total += len;
        parts.0.update(len.to_le_bytes());
        let mut buffer = vec![0; 1 << 16];
        for (at, len) in blocks(len, DATA_BLOCK) {
            file.seek(SeekFrom::Start(at)).within(within)?;
            let mut rest = Read::by_ref(&mut file).take(len);
            loop {
                let read = rest.read(&mut buffer).within(within)?;
                if read == 0 {
                    break;
                }
                parts.0.update(&buffer[..read]);
            }
        }
    }
    let names = match files {
        [one] => format!("`{}`", one.file_name().unwrap_or_default().to_string_lossy()),
        several => format!("{} files", several.len()),
    };
    Ok(parts.describing(format!("{names} of {total} bytes")))
}

/// Number of pairs to hash if the files of a split are unknown.
const FIRST: usize = 64;

/// Computes the fingerprint of each split of a data set. The files of the split are hashed, or its
/// first pairs if the files are unknown. Splits that cannot be read are omitted. If the data set is
/// pinned, splits with unknown files are omitted too, because their pairs never change.
pub fn of_splits(dataset: &dyn Dataset) -> BTreeMap<String, Fingerprint> {
    let pinned = dataset.pinned().is_some();
    let of = |split: &str| -> Result<Fingerprint> {
        let files = dataset.files(split);
        if !files.is_empty() {
            return of_files(&files);
        }
        if pinned {
            return Err(Error::new("a split of a pinned data set needs no fingerprint"));
        }
        let mut parts = Parts::new("first pairs");
        let mut n = 0;
        for pair in dataset.pairs(split)?.take(FIRST) {
            parts.add(&serde_json::to_vec(&pair?).map_err(|e| Error::internal(e.to_string()))?);
            n += 1;
        }
        Ok(parts.describing(format!("the first {n} pairs")))
    };
    dataset
        .splits()
        .into_iter()
        .filter_map(|split| Some((split.name.clone(), of(&split.name).ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(index: usize, chosen: &[i64]) -> TokenPair {
        TokenPair {
            index,
            row: index,
            prompt: vec![1, 2],
            chosen: chosen.to_vec(),
            rejected: vec![9],
        }
    }

    #[test]
    fn fingerprints_of_pairs_depend_on_tokens_and_order() {
        let (a, b) = (pair(0, &[3, 4]), pair(1, &[3, 5]));
        let both = of_pairs(&[a.clone(), b.clone()]);
        assert_eq!(both.change(&of_pairs(&[a.clone(), b.clone()])), None);
        assert_eq!(
            both.change(&of_pairs(&[b.clone(), a.clone()])).as_deref(),
            Some("2 pairs of 14 tokens, with different contents")
        );
        assert_eq!(
            both.change(&of_pairs(std::slice::from_ref(&a))).as_deref(),
            Some("2 pairs of 14 tokens then, 1 pair of 7 tokens now")
        );
        // Moving a token from the completion to the prompt changes the fingerprint.
        let moved = TokenPair {
            index: 0,
            row: 0,
            prompt: vec![1, 2, 3],
            chosen: vec![4],
            rejected: vec![9],
        };
        assert_ne!(of_pairs(&[moved]), of_pairs(std::slice::from_ref(&a)));
    }

    #[test]
    fn blocks_cover_a_small_file_and_the_ends_of_a_large_one() {
        assert_eq!(blocks(10, 4), [(0, 10)]);
        let large = blocks(10_000, 4);
        assert_eq!((large[0], large[large.len() - 1], large.len()), ((0, 4), (9996, 4), 65));
        assert!(large.windows(2).all(|w| w[0].0 <= w[1].0));
    }

    #[test]
    fn files_with_the_same_length_but_different_bytes_have_different_fingerprints() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let (a, b, c) = (write("a", b"one"), write("b", b"two"), write("c", b"one"));
        let of = |paths: &[&PathBuf]| {
            of_files(&paths.iter().map(|p| (*p).clone()).collect::<Vec<_>>()).unwrap()
        };
        assert_eq!(of(&[&a]), of(&[&c]), "file names must not affect the fingerprint");
        assert_ne!(of(&[&a]), of(&[&b]));
        assert_ne!(of(&[&a, &b]), of(&[&b, &a]));
        assert!(of_files(&[dir.path().join("none")]).is_err());
    }
}
