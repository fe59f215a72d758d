//! Reads the configuration and the weights from a Hugging Face model folder. The weights are stored
//! in the safetensors format, in a single file or in shards with an index.

use std::path::Path;

use indexmap::IndexMap;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::safetensors::SafetensorsFile;
use crate::error::{Error, Result};
use crate::files::read_json;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The configuration and the weight files of a model folder.
#[derive(Debug)]
pub struct Checkpoint {
    config: Value,
    files: Vec<SafetensorsFile>,
    /// For each tensor, the index of its file in `files`. The tensors are sorted by file and then
    /// by position in the file.
    tensors: IndexMap<String, usize>,
}

impl Checkpoint {
    /// Reads the configuration and validates the headers of the weight files.
    ///
    /// # Errors
    /// Fails if a file is missing, incomplete or not valid.
    pub fn open(folder: &Path) -> Result<Self> {
        if !folder.join("config.json").exists() && folder.join("adapter_config.json").exists() {
            return Err(no_weights(folder));
        }
        if !folder.join("config.json").exists() {
            return Err(Error::new(format!(
                "`{}` is missing",
                folder.join("config.json").display()
            ))
            .hint(
                "give a folder with config.json, model.safetensors (or its shards) and \
                tokenizer.json",
            ));
        }
        let config = configuration(folder)?;
        let (files, tensors) = if folder.join(SINGLE).exists() {
            let file = SafetensorsFile::open(&folder.join(SINGLE))?;
            let tensors = file.names().map(|name| (name.to_owned(), 0)).collect();
            (vec![file], tensors)
        } else if folder.join(INDEX).exists() {
            open_shards(folder)?
        } else {
            return Err(no_weights(folder));
        };
        Ok(Self { config, files, tensors })
    }

    /// The content of config.json.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The tensors' names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Reads one tensor to `device`. Floating-point tensors are converted to `kind`, and all other
    /// tensors keep their type.
    ///
    /// # Errors
    /// Fails if the tensor does not exist, or if memory runs out.
    pub fn read(&self, name: &str, kind: Kind, device: Device) -> Result<Tensor> {
        let file = self.tensors.get(name).and_then(|&i| self.files.get(i));
        file.ok_or_else(|| Error::internal(format!("no tensor `{name}` in the checkpoint")))?
            .read_as(name, kind, device)
    }

    /// The weight files, in the order of their shards.
    pub fn files(&self) -> &[SafetensorsFile] {
        &self.files
    }

    /// Name of the file format. Includes the number of shards if there are several.
    pub fn format(&self) -> String {
        match self.files.len() {
            1 => "safetensors".to_owned(),
            n => format!("safetensors in {n} shards"),
        }
    }

    /// The dtypes of the tensors, comma-separated and without duplicates.
    pub fn types(&self) -> String {
        let mut kinds = Vec::new();
        for kind in self.files.iter().flat_map(SafetensorsFile::kinds) {
            let kind = super::type_name(kind);
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        kinds.join(", ")
    }
}

/// Reads the configuration of a checkpoint. The folder does not need to contain the weights.
///
/// # Errors
/// Fails if config.json is missing or not a JSON object, or if the model is quantised.
pub fn configuration(folder: &Path) -> Result<Value> {
    let config = read_json(&folder.join("config.json"))?;
    if !config.is_object() {
        return Err(Error::new(format!(
            "`{}` is not a JSON object",
            folder.join("config.json").display()
        )));
    }
    if let Some(quantised) = config.get("quantization_config").filter(|q| !q.is_null()) {
        let method =
            quantised.get("quant_method").and_then(Value::as_str).unwrap_or("an unnamed method");
        return Err(Error::new(format!(
            "the model in `{}` is quantised with {method}, which is not supported",
            folder.display()
        ))
        .hint("use the unquantised model, or a GGUF file of it"));
    }
    Ok(config)
}

fn open_shards(folder: &Path) -> Result<(Vec<SafetensorsFile>, IndexMap<String, usize>)> {
    let path = folder.join(INDEX);
    let index = read_json(&path)?;
    let wrong = |what: String| Error::new(format!("`{}` {what}", path.display()));
    let map = index
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| wrong("has no `weight_map`".into()))?;
    let mut shards: IndexMap<&str, Vec<&str>> = IndexMap::new();
    for (name, shard) in map {
        let shard = shard
            .as_str()
            .ok_or_else(|| wrong(format!("does not specify a file for tensor `{name}`")))?;
        // The index must not refer to files outside the folder.
        if Path::new(shard).file_name().is_none_or(|f| f != shard) {
            return Err(wrong(format!(
                "must refer to a file in the same folder for tensor `{name}`, got `{shard}`"
            )));
        }
        shards.entry(shard).or_default().push(name);
    }
    shards.sort_keys();
    let (mut files, mut tensors) = (Vec::new(), IndexMap::new());
    for (shard, expected) in shards {
        let at = folder.join(shard);
        if !at.exists() {
            return Err(Error::new(format!(
                "the shard `{}` with {} tensors is missing",
                at.display(),
                expected.len()
            ))
            .hint("download it again; the last download may have been incomplete"));
        }
        let file = SafetensorsFile::open(&at)?;
        let there: IndexMap<&str, ()> = file.names().map(|n| (n, ())).collect();
        if let Some(lost) = expected.iter().find(|n| !there.contains_key(*n)) {
            return Err(Error::new(format!(
                "the shard `{}` does not contain tensor `{lost}`, although the index lists it for \
                    this shard",
                at.display()
            )));
        }
        let known: IndexMap<&str, ()> = expected.iter().map(|n| (*n, ())).collect();
        tensors.extend(
            file.names().filter(|n| known.contains_key(n)).map(|n| (n.to_owned(), files.len())),
        );
        files.push(file);
    }
    Ok((files, tensors))
}

fn no_weights(folder: &Path) -> Error {
    let e = Error::new(format!("`{}` contains neither {SINGLE} nor {INDEX}", folder.display()));
    if ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|f| folder.join(f).exists())
    {
        e.hint(
            "convert pytorch_model.bin, which is never read because pickles can run code: run \
            `AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER, \
            safe_serialization=True)` in Python",
        )
    } else if folder.join("adapter_config.json").exists() {
        e.hint(
            "use a model here, and pass this folder with `--init-adapter`, because it contains an \
            adapter",
        )
    } else {
        e.hint(
            "give a folder with config.json, model.safetensors (or its shards) and tokenizer.json",
        )
    }
}
