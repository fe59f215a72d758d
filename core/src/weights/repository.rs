//! Which files of a repository a model, a tokenizer or an adapter is made of.

use std::path::PathBuf;

use serde_json::Value;

use super::gguf;
use crate::error::{Error, Result};
use crate::files::read_json;
use crate::hub::Snapshot;

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const TOKENIZER: &str = "tokenizer.json";
/// What goes with a tokenizer, where it is there. Of `tokenizer.model` only its presence is of use, to an error.
const BESIDE: [&str; 4] = ["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "tokenizer.model"];
const ADAPTER: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// How much of a model is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Whole,
    /// Its tokenizer.
    Tokenizer,
}

/// A model's files on this machine: the folder of a checkpoint, or a GGUF file. `file` is the path of one within the
/// repository, where the user named one.
pub fn model(snapshot: &Snapshot<'_>, file: Option<&str>, extent: Extent) -> Result<PathBuf> {
    if let Some(file) = file {
        return parts(snapshot, file);
    }
    let beside = || BESIDE.into_iter().filter(|f| snapshot.has(f));
    if extent == Extent::Tokenizer && snapshot.has(TOKENIZER) {
        return snapshot.get_all(beside().chain([TOKENIZER]));
    }
    let ggufs: Vec<&str> = snapshot.files().iter().map(String::as_str).filter(|f| is_model(f)).collect();
    match (snapshot.has(CONFIG) && (snapshot.has(SINGLE) || snapshot.has(INDEX)), ggufs.as_slice()) {
        (true, _) => {}
        (false, [only]) => return parts(snapshot, only),
        (false, []) => return Err(none(snapshot)),
        (false, several) => {
            let id = snapshot.pinned().name;
            return Err(Error::new(format!("`{id}` holds {} GGUF files", several.len())).hint(format!(
                "name one, as `{id}/{}`; there are: {}",
                several[0],
                several.join(", ")
            )));
        }
    }
    // What costs least first: a configuration that is not honoured is found before the weights are fetched.
    let folder = snapshot.get_all(beside().chain([CONFIG]).chain(Some(TOKENIZER).filter(|f| snapshot.has(f))))?;
    if snapshot.has(SINGLE) {
        snapshot.get(SINGLE)?;
    } else {
        let index = read_json(&snapshot.get(INDEX)?)?;
        let map = index.get("weight_map").and_then(Value::as_object);
        let mut shards: Vec<&str> = map.into_iter().flatten().filter_map(|(_, shard)| shard.as_str()).collect();
        shards.sort_unstable();
        shards.dedup();
        snapshot.get_all(shards)?;
    }
    Ok(folder)
}

/// An adapter's folder on this machine.
pub fn adapter(snapshot: &Snapshot<'_>) -> Result<PathBuf> {
    if let Some(missing) = ADAPTER.iter().find(|f| !snapshot.has(f)) {
        let e = Error::new(format!("`{}` is no adapter in PEFT's format: it has no {missing}", snapshot.pinned().name));
        return Err(if snapshot.has("adapter_model.bin") { e.hint("its adapter_model.bin is a pickle, which can run code and is never read") } else { e });
    }
    snapshot.get_all(ADAPTER)
}

/// A GGUF file with the other parts of a split one.
fn parts(snapshot: &Snapshot<'_>, file: &str) -> Result<PathBuf> {
    let parts = gguf::names(file.as_ref());
    snapshot.get_all(parts.iter().map(|part| part.to_string_lossy()))?;
    snapshot.get(file)
}

/// Whether a file is a model's GGUF: no later part of one, and not what an image is read with.
fn is_model(file: &str) -> bool {
    let first = gguf::names(file.as_ref()).first().is_some_and(|first| first.as_os_str() == file);
    first && file.ends_with(".gguf") && !file.rsplit('/').next().unwrap_or(file).contains("mmproj")
}

fn none(snapshot: &Snapshot<'_>) -> Error {
    let id = snapshot.pinned().name;
    let e = Error::new(format!("`{id}` holds no model that is read: neither {CONFIG} with safetensors, nor GGUF"));
    if snapshot.files().iter().any(|f| f.ends_with(".bin") || f.ends_with(".pth") || f.ends_with(".pt")) {
        e.hint("its weights are a pickle, which can run code and is never read")
    } else if snapshot.has(ADAPTER[0]) {
        e.hint(format!("it is an adapter: `reprpo run --init-adapter {id}` starts from it, `reprpo generate {id}` lets it speak"))
    } else {
        e
    }
}
