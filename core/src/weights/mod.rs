//! Finds model files and reads their tensors by PyTorch parameter name.
//!
//! The supported formats are safetensors (one file or shards) and GGUF. Both are mapped into
//! memory, and every length is checked. Pickles are never read, because they can run code. This
//! module does not know the model architectures. The model code assigns tensors to layers.

pub(crate) mod checkpoint;
mod gguf;
mod header;
mod locate;
mod memory;
mod repository;
mod safetensors;
mod sharded;
mod stored;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

#[cfg(test)]
pub(crate) use gguf::{FORMATS, Format};
pub use gguf::{Gguf, Metadata};
pub use locate::{
    KnownModel, Located, fetch_adapter, fetch_repository, known_models, locate, locate_adapter,
};
pub use repository::Extent;
pub(crate) use safetensors::write_safetensors_unsynced;
pub use safetensors::{SafetensorsFile, read_safetensors, write_safetensors};
pub use sharded::{ShardedMatrix, Shards};
pub use stored::{Loaded, StoredMatrix};

use crate::error::{Error, Result};
use crate::files::read_json;
use checkpoint::Checkpoint;

/// A model on disk: a Hugging Face folder or a GGUF file. Its headers have been checked, but its
/// weights have not been read yet.
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
    /// Opens a path that [`locate`] returned. The path is a folder with `config.json` and
    /// safetensors, a `.gguf` file, or a folder with a single GGUF model. This model may be split
    /// into several files.
    ///
    /// # Errors
    /// Fails if a file is missing, incomplete or malformed, if the checkpoint is a pickle, or if
    /// its quantisation is not supported.
    pub fn open(path: &Path) -> Result<Self> {
        let source = if path.is_dir() && !path.join("config.json").exists() {
            match gguf_files(path).as_slice() {
                [] => Source::Folder(Checkpoint::open(path)?),
                [only] => Source::Gguf(Gguf::open(only)?),
                many => {
                    let names: Vec<String> =
                        many.iter().map(|p| format!("`{}`", p.display())).collect();
                    return Err(Error::new(format!(
                        "`{}` contains {} GGUF files",
                        path.display(),
                        many.len()
                    ))
                    .hint(format!("choose one of them: {}", names.join(", "))));
                }
            }
        } else if path.is_dir() {
            Source::Folder(Checkpoint::open(path)?)
        } else if path.extension().is_some_and(|e| e == "safetensors" || e == "bin" || e == "json")
        {
            return Err(Error::new(format!("`{}` is only part of a model", path.display()))
                .hint("pass the folder, which also contains config.json and the tokenizer"));
        } else {
            Source::Gguf(Gguf::open(path)?)
        };
        Ok(Self { path: path.to_owned(), source })
    }

    /// Path of the folder or GGUF file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The content of config.json. For a GGUF file, the same keys are created from its metadata.
    pub fn config(&self) -> &Value {
        match &self.source {
            Source::Folder(c) => c.config(),
            Source::Gguf(g) => g.config(),
        }
    }

    /// PyTorch names of the tensors, in file order.
    pub fn names(&self) -> Vec<String> {
        match &self.source {
            Source::Folder(c) => c.names().map(str::to_owned).collect(),
            Source::Gguf(g) => g.names().map(str::to_owned).collect(),
        }
    }

    /// Reads all tensors, in file order. Floating-point tensors are converted to `kind`. Integer
    /// and boolean tensors are not converted; some checkpoints contain such constants. No tensor
    /// requires gradients.
    ///
    /// # Errors
    /// Fails if `kind` is not a floating-point type, or if memory runs out.
    pub fn load(&self, kind: Kind, device: Device) -> Result<IndexMap<String, Tensor>> {
        let read = |name: String| {
            let tensor = self.read(&name, kind, device)?;
            Ok((name, tensor))
        };
        self.names().into_iter().map(read).collect()
    }

    /// Reads all tensors like [`load`](Self::load), and divides the matrices among the ranks. One
    /// whole matrix at a time is in memory.
    ///
    /// # Errors
    /// Fails in the same cases as [`load`](Self::load).
    pub fn load_sharded(
        &self,
        kind: Kind,
        device: Device,
        shards: &Arc<Shards>,
    ) -> Result<IndexMap<String, Loaded>> {
        let read = |name: String| -> Result<(String, Loaded)> {
            let tensor = self.read(&name, kind, device)?;
            Ok((
                name,
                if tensor.dim() == 2 && tensor.is_floating_point() {
                    Loaded::Sharded(shards.divide(&tensor)?)
                } else {
                    Loaded::Dense(tensor)
                },
            ))
        };
        self.names().into_iter().map(read).collect()
    }

    fn read(&self, name: &str, kind: Kind, device: Device) -> Result<Tensor> {
        if !matches!(kind, Kind::Float | Kind::BFloat16 | Kind::Half | Kind::Double) {
            return Err(Error::internal(format!("cannot load weights as {kind:?}")));
        }
        match &self.source {
            Source::Gguf(g) => Ok(g.read(name, kind)?.f_to_device(device)?),
            Source::Folder(c) => c.read(name, kind, device),
        }
    }

    /// Reads all tensors of a GGUF file like [`load`](Self::load), but keeps a matrix as the file
    /// stores it if this takes less memory. All of these matrices are on the CPU.
    ///
    /// # Errors
    /// Fails if the model is not a GGUF file, and in the same cases as [`load`](Self::load).
    pub fn load_as_stored(&self, kind: Kind) -> Result<IndexMap<String, Loaded>> {
        let Source::Gguf(gguf) = &self.source else {
            return Err(Error::new(format!(
                "`quantize_base` needs a GGUF file, but `{}` is a folder in Hugging Face's layout",
                self.path.display()
            ))
            .hint("leave out `--quantize-base`, or choose a GGUF file of the same model"));
        };
        let read = |name: &str| -> Result<Loaded> {
            Ok(match gguf.read_stored(name, kind)? {
                Some(stored) => stored,
                None => Loaded::Dense(gguf.read(name, kind)?),
            })
        };
        gguf.names().map(|name| Ok((name.to_owned(), read(name)?))).collect()
    }

    /// Ids of the tokens that end a completion. For a folder, these are the values of
    /// `eos_token_id` in config.json and in generation_config.json. For a GGUF file, they are its
    /// end-of-text, end-of-turn and end-of-message tokens.
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

    /// Returns the path, contents and header size in bytes of each weight file.
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

    /// Describes the model in one line for logs: path, format, number of tensors and their types.
    pub fn describe(&self) -> String {
        let (format, types) = match &self.source {
            Source::Folder(c) => (c.format(), c.types()),
            Source::Gguf(g) if g.files() == 1 => ("GGUF".to_owned(), g.formats().join(", ")),
            Source::Gguf(g) => (format!("GGUF in {} parts", g.files()), g.formats().join(", ")),
        };
        format!("{} ({format}, {} tensors: {types})", self.path.display(), self.names().len())
    }
}

/// Parses an `eos_token_id`: one id, a list of ids, null or missing.
fn token_ids(value: Option<&Value>, file: &str) -> Result<Vec<i64>> {
    let wrong = |value: &Value| {
        Error::new(format!("`eos_token_id` in {file} is `{value}`, which is not a token id"))
            .hint("set it to an integer or a list of integers")
    };
    let id = |value: &Value| value.as_i64().ok_or_else(|| wrong(value));
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(id).collect(),
        Some(one) => Ok(vec![id(one)?]),
    }
}

/// PyTorch's name for a dtype, such as `float32`.
pub fn type_name(kind: Kind) -> String {
    match kind {
        Kind::Double => "float64".to_owned(),
        Kind::Float => "float32".to_owned(),
        Kind::Half => "float16".to_owned(),
        Kind::BFloat16 => "bfloat16".to_owned(),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// Lists the GGUF files in a folder, sorted by path. A split model is listed once, by its first
/// part.
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
