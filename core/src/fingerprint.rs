//! Fingerprints: digests of what a run was made with, so that a later command can tell whether it is the same.
//!
//! A checkpoint keeps the [`Fingerprints`] of its run. The `config.toml` of a run keeps those of its model and its data.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::api::Dataset;
use crate::config::{Experiment, equal};
use crate::error::{Context, Error, Result};
use crate::files::hex;
use crate::text::{TokenPair, Tokenizer};
use crate::weights::{Located, ModelFiles, type_name};

/// A SHA-256 digest, and a short description of what it covers, for messages.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fingerprint {
    sha256: String,
    of: String,
}

impl PartialEq for Fingerprint {
    fn eq(&self, other: &Self) -> bool {
        self.sha256 == other.sha256
    }
}

impl Fingerprint {
    /// Describes how `found` differs from this fingerprint, which was recorded; `None` if they are the same.
    pub fn change(&self, found: &Self) -> Option<String> {
        match (self == found, self.of == found.of) {
            (true, _) => None,
            (false, true) => Some(format!("{}, with other content", self.of)),
            (false, false) => Some(format!("{} then, {} now", self.of, found.of)),
        }
    }
}

/// A hash of several values. Each is preceded by its length, so that lists which split the same bytes differently have
/// different hashes.
struct Parts(Sha256);

impl Parts {
    /// A hash that begins with the name of what is hashed.
    fn new(sort: &str) -> Self {
        let mut parts = Self(Sha256::new());
        parts.add(sort.as_bytes());
        parts
    }

    fn add(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn ids(&mut self, ids: &[i64]) {
        self.0.update((ids.len() as u64).to_le_bytes());
        for id in ids {
            self.0.update(id.to_le_bytes());
        }
    }

    fn hex(self) -> String {
        hex(&self.0.finalize())
    }

    fn describing(self, of: impl Into<String>) -> Fingerprint {
        Fingerprint { sha256: self.hex(), of: of.into() }
    }
}

/// How many blocks of a large file are read, and their length in bytes.
const BLOCKS: u64 = 64;
const MODEL_BLOCK: u64 = 1 << 16;
const DATA_BLOCK: u64 = 1 << 20;

/// Offset and length of each block that is read of a file of `len` bytes. The first block is at its start and the last at
/// its end. A file that the blocks would cover is one block.
fn blocks(len: u64, block: u64) -> Vec<(u64, u64)> {
    if len <= BLOCKS * block {
        return vec![(0, len)];
    }
    (0..BLOCKS).map(|i| (i * ((len - block) / (BLOCKS - 1)), block)).chain([(len - block, block)]).collect()
}

/// A digest of the token ids of a pair, after truncation.
fn pair_digest(pair: &TokenPair) -> String {
    let mut parts = Parts::new("pair");
    for ids in [&pair.prompt, &pair.chosen, &pair.rejected] {
        parts.ids(ids);
    }
    parts.hex()
}

/// A name for each pair, by its index. The name only depends on the pair's tokens; pairs with the same tokens are numbered.
pub fn pair_names(pairs: &[TokenPair]) -> BTreeMap<usize, String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut name = |pair| {
        let digest = pair_digest(pair)[..32].to_owned();
        let number = seen.entry(digest.clone()).and_modify(|n| *n += 1).or_default();
        format!("{digest}-{number}")
    };
    pairs.iter().map(|pair| (pair.index, name(pair))).collect()
}

/// The fingerprint of the tokens of the pairs, in order, after truncation.
pub fn of_pairs(pairs: &[TokenPair]) -> Fingerprint {
    let mut parts = Parts::new("pairs");
    for pair in pairs {
        parts.add(pair_digest(pair).as_bytes());
    }
    let (n, tokens): (usize, usize) = (pairs.len(), pairs.iter().map(TokenPair::tokens).sum());
    parts.describing(format!("{n} {} of {tokens} tokens", if n == 1 { "pair" } else { "pairs" }))
}

/// The fingerprint of a model. It covers the commit on the hub if that is known. Otherwise it covers the configuration and,
/// of each weight file, the name, the length, the header and 64 blocks spread over the file.
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
    let names = if names.len() > 2 { format!("{} files from {}", names.len(), names[0]) } else { names.join(" and ") };
    parts.describing(format!("{names} of {total} bytes"))
}

/// The fingerprint of a tokenizer. It covers everything that the tokenizer's files would hold if it were saved.
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

/// The fingerprint of named tensors and the configuration that they belong to. `of` describes them in messages.
///
/// # Errors
/// Fails if a tensor cannot be copied to the CPU.
pub fn of_tensors(of: &str, config: &Value, tensors: &IndexMap<String, Tensor>) -> Result<Fingerprint> {
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
fn together(sort: &str, all: &[&Fingerprint]) -> Fingerprint {
    let mut parts = Parts::new(sort);
    for one in all {
        parts.add(one.sha256.as_bytes());
    }
    parts.describing(all.iter().map(|one| one.of.as_str()).collect::<Vec<_>>().join(" and "))
}

/// The fingerprint of the content of files in this order, without their names. A file of up to 64 MiB is read in full, and
/// of a larger one 64 blocks.
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

/// How many pairs stand for a split whose files are not known.
const FIRST: usize = 64;

/// The fingerprint of each split of a data set. It covers the content of the split's files, or its first pairs if its files
/// are not known. Splits that cannot be read are left out. So are splits without known files if the data set has a pinned
/// configuration, because that always gives the same pairs.
pub fn of_splits(dataset: &dyn Dataset) -> BTreeMap<String, Fingerprint> {
    let pinned = dataset.pinned().is_some();
    let of = |split: &str| -> Result<Fingerprint> {
        let files = dataset.files(split);
        if !files.is_empty() {
            return of_files(&files);
        }
        if pinned {
            return Err(Error::new("its configuration stands for it"));
        }
        let mut parts = Parts::new("first pairs");
        let mut n = 0;
        for pair in dataset.pairs(split)?.take(FIRST) {
            parts.add(&serde_json::to_vec(&pair?).map_err(|e| Error::internal(e.to_string()))?);
            n += 1;
        }
        Ok(parts.describing(format!("the first {n} pairs")))
    };
    dataset.splits().into_iter().filter_map(|split| Some((split.name.clone(), of(&split.name).ok()?))).collect()
}

/// Fields of the experiment that do not change the steps of a run, or whose content has a fingerprint of its own. Every other
/// field counts, including those that are added later.
const FREE: [&str; 9] = ["recipe", "plugins", "model", "device", "out", "init_adapter", "init_transform", "dataset", "eval"];
const FREE_IN_TRAIN: [&str; 1] = ["checkpoint_every"];

/// The fields that every step depends on, as `section.field`.
fn trajectory(experiment: &Experiment, kind: Kind) -> BTreeMap<String, Value> {
    let mut fields = flat(&experiment.to_json(), |path| {
        !(FREE.iter().any(|free| path == *free || path.starts_with(&format!("{free}."))) || FREE_IN_TRAIN.iter().any(|f| path == format!("train.{f}")))
    });
    // `auto` means another precision on another device.
    fields.insert("dtype".to_owned(), type_name(kind).into());
    // The path of a plugin's file changes nothing, but its code does.
    let plugins: Vec<Value> = experiment.plugins.iter().filter_map(|p| p.sha256.clone()).map(Value::from).collect();
    if !plugins.is_empty() {
        fields.insert("plugins".to_owned(), plugins.into());
    }
    fields
}

/// The fields of an experiment for which `counts` is true, as `section.field`.
pub(crate) fn flat(experiment: &Value, counts: impl Fn(&str) -> bool) -> BTreeMap<String, Value> {
    let none = Map::new();
    let mut fields = BTreeMap::new();
    for (name, value) in experiment.as_object().unwrap_or(&none) {
        match value {
            Value::Object(section) => fields.extend(section.iter().map(|(field, value)| (format!("{name}.{field}"), value.clone()))),
            value => {
                fields.insert(name.clone(), value.clone());
            }
        }
    }
    fields.retain(|path, _| counts(path));
    fields
}

/// The fields in which two experiments differ, with both values.
pub(crate) fn changed_fields(then: &BTreeMap<String, Value>, now: &BTreeMap<String, Value>) -> Vec<(String, Value, Value)> {
    let mut paths: Vec<&String> = then.keys().chain(now.keys()).collect();
    paths.sort();
    paths.dedup();
    let value = |fields: &BTreeMap<String, Value>, path: &String| fields.get(path).cloned().unwrap_or(Value::Null);
    let pairs = paths.into_iter().map(|path| (path.clone(), value(then, path), value(now, path)));
    pairs.filter(|(_, then, now)| !equal(then, now)).collect()
}

/// A value as messages show it.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => format!("`{text}`"),
        other => other.to_string(),
    }
}

/// The fingerprints of everything that the steps of a run depend on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fingerprints {
    data: Fingerprint,
    model: Fingerprint,
    tokenizer: Fingerprint,
    reference: Fingerprint,
    start: Fingerprint,
    configuration: BTreeMap<String, Value>,
}

/// The fingerprints of the saved values that a run begins with, besides the model.
#[derive(Debug)]
pub struct Begins {
    /// The saved adapter and transforms, if there are any.
    pub start: Vec<Fingerprint>,
    /// The adapter that the reference has, if it is not the base model.
    pub reference: Option<Fingerprint>,
}

impl Fingerprints {
    /// The fingerprints of a run of this experiment, whose model computes in `kind`.
    pub fn new(experiment: &Experiment, kind: Kind, model: Fingerprint, tokenizer: Fingerprint, pairs: &[TokenPair], begins: &Begins) -> Self {
        let named = |of: &str| Parts::new(of).describing(of);
        Self {
            data: of_pairs(pairs),
            model,
            tokenizer,
            reference: begins.reference.clone().unwrap_or_else(|| named("the base model")),
            start: if begins.start.is_empty() { named("new values") } else { together("start", &begins.start.iter().collect::<Vec<_>>()) },
            configuration: trajectory(experiment, kind),
        }
    }

    /// The differences between a checkpoint with these fingerprints and a run with `now`: the name and the details of each.
    pub fn differences(&self, now: &Self) -> Vec<(String, String)> {
        let parts = [
            ("the data", &self.data, &now.data),
            ("the model", &self.model, &now.model),
            ("the tokenizer", &self.tokenizer, &now.tokenizer),
            ("the reference", &self.reference, &now.reference),
            ("the values that training began with", &self.start, &now.start),
        ];
        let parts = parts.into_iter().filter_map(|(name, then, now)| Some((name.to_owned(), format!("{name}: {}", then.change(now)?))));
        let fields = changed_fields(&self.configuration, &now.configuration);
        let fields = fields.into_iter().map(|(path, then, now)| (format!("`{path}`"), format!("`{path}`: {} then, {} now", shown(&then), shown(&now))));
        parts.chain(fields).collect()
    }

    /// A digest of everything that the kept values of the reference depend on besides the tokens of their pair. Fields that
    /// only change how the policy is trained are left out.
    pub fn of_reference(&self) -> String {
        let mut parts = Parts::new("reference values");
        parts.add(self.model.sha256.as_bytes());
        parts.add(self.reference.sha256.as_bytes());
        for (path, value) in self.configuration.iter().filter(|(path, _)| !path.starts_with("train.") && !path.starts_with("adapter.")) {
            parts.add(path.as_bytes());
            parts.add(value.to_string().as_bytes());
        }
        parts.hex()
    }

    /// Reads the fingerprints of a checkpoint; `None` if it was written by a version that did not keep any.
    ///
    /// # Errors
    /// Fails if the file is damaged.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(path).within(|| format!("cannot read `{}`", path.display()))?;
        serde_json::from_str(&text).map(Some).map_err(|e| Error::new(format!("`{}` does not hold fingerprints", path.display())).because(e))
    }

    /// Writes the fingerprints as JSON.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::internal(e.to_string()))?;
        crate::files::write_whole(path, text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(index: usize, chosen: &[i64]) -> TokenPair {
        TokenPair { index, row: index, prompt: vec![1, 2], chosen: chosen.to_vec(), rejected: vec![9] }
    }

    #[test]
    fn pairs_are_told_apart_by_their_tokens_and_their_order() {
        let (a, b) = (pair(0, &[3, 4]), pair(1, &[3, 5]));
        let both = of_pairs(&[a.clone(), b.clone()]);
        assert_eq!(both.change(&of_pairs(&[a.clone(), b.clone()])), None);
        assert_eq!(both.change(&of_pairs(&[b.clone(), a.clone()])).as_deref(), Some("2 pairs of 14 tokens, with other content"));
        assert_eq!(both.change(&of_pairs(std::slice::from_ref(&a))).as_deref(), Some("2 pairs of 14 tokens then, 1 pair of 7 tokens now"));
        // A token that moves from the prompt to the completion is another pair.
        let moved = TokenPair { index: 0, row: 0, prompt: vec![1, 2, 3], chosen: vec![4], rejected: vec![9] };
        assert_ne!(of_pairs(&[moved]), of_pairs(std::slice::from_ref(&a)));
        // The row does not count, and pairs with the same tokens have different names.
        let names = pair_names(&[a.clone(), b, pair(7, &[3, 4])]);
        assert_eq!(names[&0][..33], names[&7][..33]);
        assert_ne!(names[&0], names[&7]);
        assert_ne!(names[&0], names[&1]);
    }

    #[test]
    fn blocks_cover_a_small_file_and_the_ends_of_a_large_one() {
        assert_eq!(blocks(10, 4), [(0, 10)]);
        let large = blocks(10_000, 4);
        assert_eq!((large[0], large[large.len() - 1], large.len()), ((0, 4), (9996, 4), 65));
        assert!(large.windows(2).all(|w| w[0].0 <= w[1].0));
    }

    #[test]
    fn files_of_the_same_length_with_other_bytes_have_other_fingerprints() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let (a, b, c) = (write("a", b"one"), write("b", b"two"), write("c", b"one"));
        let of = |paths: &[&PathBuf]| of_files(&paths.iter().map(|p| (*p).clone()).collect::<Vec<_>>()).unwrap();
        assert_eq!(of(&[&a]), of(&[&c]), "names do not count");
        assert_ne!(of(&[&a]), of(&[&b]));
        assert_ne!(of(&[&a, &b]), of(&[&b, &a]));
        assert!(of_files(&[dir.path().join("none")]).is_err());
    }

    #[test]
    fn numbers_are_equal_however_a_file_writes_them() {
        let of = |text: &str| flat(&serde_json::from_str(text).unwrap(), |path| path != "out");
        let (a, b) = (of(r#"{"out": "x", "train": {"lr": 1.0, "betas": [0, 1]}}"#), of(r#"{"out": "y", "train": {"lr": 1, "betas": [0.0, 1]}}"#));
        assert!(changed_fields(&a, &b).is_empty());
        let c = of(r#"{"train": {"lr": 2, "betas": [0, 1], "new": true}}"#);
        let changed: Vec<String> = changed_fields(&a, &c).into_iter().map(|(path, ..)| path).collect();
        assert_eq!(changed, ["train.lr", "train.new"], "a field that only one of them has counts");
    }
}
