//! Model files: where they are, and their tensors under PyTorch's names.
//!
//! safetensors (one file or shards) and GGUF are read, both mapped into memory with every length
//! checked; a pickle is never read. No architecture is known here: what a tensor is for, the model
//! files say.

pub(crate) mod checkpoint;
mod gguf;
mod header;
mod locate;
mod memory;
mod repository;
mod safetensors;

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

pub use gguf::{Gguf, Metadata};
pub use locate::{
    KnownModel, Located, fetch_adapter, fetch_repository, known_models, locate, locate_adapter,
};
pub use repository::Extent;
pub use safetensors::{SafetensorsFile, read_safetensors, write_safetensors};

use crate::error::{Error, Result};
use crate::files::read_json;
use checkpoint::Checkpoint;

/// A model on disk: a Hugging Face folder or a GGUF file, with its headers checked and its weights
/// still unread.
#[derive(Debug)]
pub struct ModelFiles {
    path: PathBuf,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Folder(Checkpoint),
    Gguf(Gguf),
}

impl ModelFiles {
    /// Opens what [`locate`] found: a folder with `config.json` and safetensors, a `.gguf` file, or
    /// a folder with just one of those (a split one counts as one).
    ///
    /// # Errors
    /// Files that are missing, cut off or foreign, and checkpoints that are pickled or quantised in
    /// a way that is not read.
    pub fn open(path: &Path) -> Result<Self> {
        let source = if path.is_dir() && !path.join("config.json").exists() {
            match gguf_files(path).as_slice() {
                [] => Source::Folder(Checkpoint::open(path)?),
                [only] => Source::Gguf(Gguf::open(only)?),
                many => {
                    let names: Vec<String> =
                        many.iter().map(|p| format!("`{}`", p.display())).collect();
                    return Err(Error::new(format!(
                        "`{}` holds {} GGUF files",
                        path.display(),
                        many.len()
                    ))
                    .hint(format!("name one: {}", names.join(", "))));
                }
            }
        } else if path.is_dir() {
            Source::Folder(Checkpoint::open(path)?)
        } else if path.extension().is_some_and(|e| e == "safetensors" || e == "bin" || e == "json")
        {
            return Err(Error::new(format!("`{}` is one file of a model", path.display()))
                .hint("name the folder: config.json and the tokenizer are read from there too"));
        } else {
            Source::Gguf(Gguf::open(path)?)
        };
        Ok(Self { path: path.to_owned(), source })
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hugging Face's config.json; for GGUF the same keys, made from the file's metadata.
    pub fn config(&self) -> &Value {
        match &self.source {
            Source::Folder(c) => c.config(),
            Source::Gguf(g) => g.config(),
        }
    }

    /// The tensors' names, as PyTorch has them, in the files' order.
    pub fn names(&self) -> Vec<String> {
        match &self.source {
            Source::Folder(c) => c.names().map(str::to_owned).collect(),
            Source::Gguf(g) => g.names().map(str::to_owned).collect(),
        }
    }

    /// Reads all tensors in the files' order. Those of floating point become `kind`; others, which
    /// some checkpoints carry as constants, stay what they are. None requires gradients.
    ///
    /// # Errors
    /// A `kind` that is not of floating point, or not enough memory.
    pub fn load(&self, kind: Kind, device: Device) -> Result<IndexMap<String, Tensor>> {
        if !matches!(kind, Kind::Float | Kind::BFloat16 | Kind::Half | Kind::Double) {
            return Err(Error::internal(format!("weights cannot be loaded as {kind:?}")));
        }
        let read = |name: &str| match &self.source {
            Source::Gguf(g) => Ok(g.read(name, kind)?.f_to_device(device)?),
            Source::Folder(c) => c.read(name, kind, device),
        };
        self.names().into_iter().map(|name| Ok((name.clone(), read(&name)?))).collect()
    }

    /// Ids of the tokens that end a completion. In a folder these are all of `eos_token_id` in
    /// config.json and generation_config.json; in a GGUF file, the tokens that end a text, a turn
    /// or a message.
    ///
    /// # Errors
    /// Fails if generation_config.json cannot be read, or if a value is not an id or a list of ids.
    pub fn ends(&self) -> Result<Vec<i64>> {
        const KEY: &str = "eos_token_id";
        let config = self.config();
        let mut ends = token_ids(config.get(KEY), "config.json")?;
        ends.extend(token_ids(
            config.get("text_config").and_then(|text| text.get(KEY)),
            "config.json",
        )?);
        match &self.source {
            Source::Folder(_) => {
                let path = self.path.join("generation_config.json");
                if path.is_file() {
                    ends.extend(token_ids(read_json(&path)?.get(KEY), "generation_config.json")?);
                }
            }
            Source::Gguf(g) => {
                for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
                    ends.extend(g.metadata().unsigned(key)?.and_then(|id| i64::try_from(id).ok()));
                }
            }
        }
        Ok(ends)
    }

    /// The metadata of a GGUF file; `None` for a folder.
    pub(crate) fn metadata(&self) -> Option<&Metadata> {
        match &self.source {
            Source::Folder(_) => None,
            Source::Gguf(g) => Some(g.metadata()),
        }
    }

    /// For each weight file, its path, its bytes, and the length of its header in bytes.
    pub(crate) fn parts(&self) -> Vec<(&Path, &[u8], usize)> {
        match &self.source {
            Source::Folder(c) => c
                .files()
                .iter()
                .map(SafetensorsFile::bytes)
                .map(|(map, header)| (map.path(), &map[..], header))
                .collect(),
            Source::Gguf(g) => {
                g.bytes().map(|(map, header)| (map.path(), &map[..], header)).collect()
            }
        }
    }

    /// One line for logs: path, format, number types.
    pub fn describe(&self) -> String {
        let (format, types) = match &self.source {
            Source::Folder(c) => (c.format(), c.types()),
            Source::Gguf(g) if g.files() == 1 => ("GGUF".to_owned(), g.formats().join(", ")),
            Source::Gguf(g) => (format!("GGUF in {} parts", g.files()), g.formats().join(", ")),
        };
        format!("{} ({format}, {} tensors: {types})", self.path.display(), self.names().len())
    }
}

/// The ids in the value of an `eos_token_id`, which may be one id, a list, null or missing.
fn token_ids(value: Option<&Value>, file: &str) -> Result<Vec<i64>> {
    let wrong = |value: &Value| {
        Error::new(format!("`eos_token_id` in {file} is `{value}`, which is not a token id"))
            .hint("write a whole number, or a list of whole numbers")
    };
    let id = |value: &Value| value.as_i64().ok_or_else(|| wrong(value));
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(id).collect(),
        Some(one) => Ok(vec![id(one)?]),
    }
}

/// A number type by the name that PyTorch's users know.
pub fn type_name(kind: Kind) -> String {
    match kind {
        Kind::Double => "float64".to_owned(),
        Kind::Float => "float32".to_owned(),
        Kind::Half => "float16".to_owned(),
        Kind::BFloat16 => "bfloat16".to_owned(),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// The GGUF files in a folder, sorted; of a split model the first part alone.
fn gguf_files(folder: &Path) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(folder).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()));
    let mut files: Vec<PathBuf> = entries
        .filter(|p| {
            p.extension().is_some_and(|e| e == "gguf") && p.is_file() && !gguf::is_later_part(p)
        })
        .collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests;
