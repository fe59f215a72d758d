//! Exports models as Hugging Face folders, for use in other programs.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::error::{Context, Error, Result};
use crate::files::write_whole;
use crate::model::replacements::Replacements;
use crate::model::{Adapted, Model};
use crate::text::Tokenizer;
use crate::weights::{ModelFiles, type_name, write_safetensors};

/// The weights of a merged model, before they are written.
#[derive(Debug)]
pub struct Export {
    tensors: IndexMap<String, Tensor>,
    kind: Kind,
    /// True if the embedding matrix is also the output head.
    tied: bool,
}

impl Export {
    /// Merges `adapted` into the weights of `files`. `model` must have been loaded from `files` in
    /// float32. The weights are rounded only once, in the conversion to `kind`.
    ///
    /// # Errors
    /// Fails if the adapter cannot be merged into the weights, or if memory runs out.
    pub fn merged(
        files: &ModelFiles,
        model: &Model,
        adapted: Option<&Adapted>,
        kind: Kind,
    ) -> Result<Self> {
        let mut tensors = files.load(Kind::Float, tch::Device::Cpu)?;
        let changed = adapted
            .map(|a| match (a.changes_blocks(), a.edits().act_afterwards()) {
                (true, _) => Err(blocks()),
                (false, true) => Err(edits()),
                (false, false) => a.merged(model),
            })
            .transpose()?;
        for (module, frozen) in changed.into_iter().flatten() {
            let weight = frozen.dense()?;
            let weight = if model.is_conv1d(&module) { weight.f_tr()? } else { weight };
            let bias = frozen.bias().map(Tensor::shallow_clone);
            for (part, tensor) in [("weight", Some(weight)), ("bias", bias)] {
                let Some(tensor) = tensor else { continue };
                set(&mut tensors, model, &module, part, &tensor)?;
            }
        }
        let replaced = adapted.map(Adapted::replacements);
        let outside = |name: &str| model.info().linears.iter().all(|l| l.name != name);
        for (module, part, tensor) in replaced.into_iter().flat_map(Replacements::tensors) {
            if outside(module) && !model.vocabulary_modules().iter().any(|name| name == module) {
                set(&mut tensors, model, module, part, tensor)?;
            }
        }
        let tied = match replaced {
            Some(replaced) => vocabulary(&mut tensors, model, replaced)?,
            None => model.is_tied(),
        };
        for tensor in tensors.values_mut().filter(|t| t.is_floating_point()) {
            *tensor = tensor.f_to_kind(kind)?.f_contiguous()?;
        }
        Ok(Self { tensors, kind, tied })
    }

    /// Writes a new folder that transformers can load. It contains config.json, the weights in
    /// files of at most `shard` bytes, and the tokenizer. The folder is created atomically. Returns
    /// the paths of the new files.
    ///
    /// # Errors
    /// Fails if the folder already exists, or if a file cannot be written.
    pub fn write(
        &self,
        files: &ModelFiles,
        tokenizer: &Tokenizer,
        out: &Path,
        shard: u64,
    ) -> Result<Vec<PathBuf>> {
        if out.exists() {
            return Err(Error::new(format!("`{}` already exists", out.display()))
                .hint("choose a different `--out`, or remove the existing folder"));
        }
        let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent)
            .within(|| format!("cannot create the folder `{}`", parent.display()))?;
        let context = || format!("cannot create a folder in `{}`", parent.display());
        let partial =
            tempfile::Builder::new().prefix(".export-").tempdir_in(parent).within(context)?;
        self.weights(partial.path(), shard)?;
        let config = self.config(files.config())?;
        let text =
            serde_json::to_string_pretty(&config).map_err(|e| Error::internal(e.to_string()))?;
        write_whole(&partial.path().join("config.json"), text.as_bytes())?;
        tokenizer_files(files.path(), tokenizer, partial.path())?;
        let folder = partial.keep();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755))
                .within(context)?;
        }
        std::fs::rename(&folder, out).within(|| format!("cannot create `{}`", out.display()))?;
        let mut written: Vec<PathBuf> =
            std::fs::read_dir(out).within(context)?.flatten().map(|entry| entry.path()).collect();
        written.sort();
        Ok(written)
    }

    /// Returns the original configuration, updated for the exported weights.
    ///
    /// # Errors
    /// Fails if transformers does not support the configuration.
    fn config(&self, original: &Value) -> Result<Value> {
        let rope =
            original.get("rope_parameters").into_iter().flat_map(|p| [p, &p["full_attention"]]);
        if rope.into_iter().any(|p| p.get("dimension_count").is_some_and(|n| !n.is_null())) {
            return Err(Error::new(
                "the GGUF file rotates only a part of each head, which \
                transformers does not support for this architecture",
            )
            .hint("use the adapter with the GGUF file, for example with `reprpo eval RUN`"));
        }
        let mut config = original.clone();
        if let Some(map) = config.as_object_mut() {
            for gone in ["quantization_config", "torch_dtype", "_name_or_path"] {
                map.shift_remove(gone);
            }
            map.insert("dtype".to_owned(), json!(type_name(self.kind)));
            // If the original value contradicts the weights, the weights take precedence, as in
            // transformers.
            map.insert("tie_word_embeddings".to_owned(), json!(self.tied));
            if let Some(text) = map.get_mut("text_config").and_then(Value::as_object_mut) {
                text.insert("tie_word_embeddings".to_owned(), json!(self.tied));
            }
        }
        Ok(config)
    }

    fn weights(&self, folder: &Path, shard: u64) -> Result<()> {
        let bytes = |t: &Tensor| (t.numel() * t.kind().elt_size_in_bytes()) as u64;
        let mut shards: Vec<Vec<(String, Tensor)>> = vec![Vec::new()];
        let mut filled = 0;
        for (name, tensor) in &self.tensors {
            let size = bytes(tensor);
            if filled > 0 && filled + size > shard {
                shards.push(Vec::new());
                filled = 0;
            }
            filled += size;
            if let Some(last) = shards.last_mut() {
                last.push((name.clone(), tensor.shallow_clone()));
            }
        }
        if let [only] = &shards[..] {
            return write_safetensors(&folder.join("model.safetensors"), only);
        }
        let mut places = serde_json::Map::new();
        for (i, tensors) in shards.iter().enumerate() {
            let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
            write_safetensors(&folder.join(&file), tensors)?;
            places.extend(tensors.iter().map(|(name, _)| (name.clone(), json!(file))));
        }
        places.sort_keys();
        let total: u64 = self.tensors.values().map(bytes).sum();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": places });
        write_whole(&folder.join("model.safetensors.index.json"), format!("{index:#}\n").as_bytes())
    }
}

/// Replaces the tensor `module.part` of a checkpoint.
///
/// # Errors
/// Fails if the checkpoint does not contain the weight of the module.
fn set(
    tensors: &mut IndexMap<String, Tensor>,
    model: &Model,
    module: &str,
    part: &str,
    tensor: &Tensor,
) -> Result<()> {
    // The file may not have a bias yet, so the name of the bias is derived from the name of the
    // weight.
    let weight = model.stored_name(&format!("{module}.weight"), |name| tensors.contains_key(name));
    let stored =
        weight.and_then(|weight| Some(format!("{}.{part}", weight.strip_suffix(".weight")?)));
    let stored = stored.ok_or_else(|| {
        Error::new(format!(
            "cannot save the merged `{module}.weight`: the model's files do not contain a tensor \
                with this name"
        ))
        .hint(
            "save the model again with a recent version of transformers, which writes the current \
                tensor names",
        )
    })?;
    tensors.insert(stored, tensor.f_detach()?.f_to_device(tch::Device::Cpu)?);
    Ok(())
}

/// Replaces the matrices of the embedding and of the head in a checkpoint. Returns true if they are
/// the same matrix afterwards.
///
/// # Errors
/// Fails if the checkpoint does not contain the matrices.
fn vocabulary(
    tensors: &mut IndexMap<String, Tensor>,
    model: &Model,
    replaced: &Replacements,
) -> Result<bool> {
    let modules = model.vocabulary_modules();
    let weight = |module: &String| replaced.module(module).and_then(|m| m.weight.as_ref());
    let [embedding, head] = [weight(&modules[0]), weight(&modules[1])];
    if !model.is_tied() {
        for (module, weight) in [(&modules[0], embedding), (&modules[1], head)] {
            if let Some(weight) = weight {
                set(tensors, model, module, "weight", weight)?;
            }
        }
        return Ok(false);
    }
    if embedding.is_none() && head.is_none() {
        return Ok(true);
    }
    let own = model.embeddings()?;
    let matrices = [embedding.unwrap_or(&own[0]), head.unwrap_or(&own[1])];
    let tied = matrices[0].f_equal(matrices[1])?;
    // A file of a tied model may have only one of the two matrices.
    for (module, matrix) in modules.iter().zip(matrices) {
        let name = format!("{module}.weight");
        let stored = model.stored_name(&name, |name| tensors.contains_key(name));
        match stored {
            Some(stored) => drop(tensors.insert(stored, matrix.f_to_device(tch::Device::Cpu)?)),
            None if tied => {}
            None => drop(tensors.insert(name, matrix.f_to_device(tch::Device::Cpu)?)),
        }
    }
    Ok(tied)
}

fn blocks() -> Error {
    Error::new("the adapter changes the outputs of blocks, so it cannot be merged into the weights")
        .hint("use it without merging, for example with `reprpo eval RUN`")
}

/// The error for an adapter that was saved with edits of the residual stream.
pub(super) fn edits() -> Error {
    Error::new(
        "the adapter was saved with edits of the residual stream, which cannot be merged into the \
            weights",
    )
    .hint("use it without merging, for example with `reprpo eval RUN`")
    .hint("`reprpo export RUN --control-vector` writes directions that are added, for llama.cpp")
}

/// Copies the tokenizer's files if the model is a folder. Otherwise, creates equivalent files.
fn tokenizer_files(model: &Path, tokenizer: &Tokenizer, out: &Path) -> Result<()> {
    const OWN: [&str; 9] = [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
    ];
    if model.join("tokenizer.json").is_file() {
        for file in OWN.iter().map(|name| model.join(name)).filter(|file| file.is_file()) {
            let name = file.file_name().unwrap_or_default();
            std::fs::copy(&file, out.join(name))
                .within(|| format!("cannot copy `{}`", file.display()))?;
        }
        return Ok(());
    }
    for (name, text) in tokenizer.files()? {
        write_whole(&out.join(name), text.as_bytes())?;
    }
    Ok(())
}
