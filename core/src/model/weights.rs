//! Gives access to the tensors of a checkpoint while a model is built. Each tensor is removed when
//! it is used. A tensor that remains at the end is an error.

use std::cell::RefCell;
use std::fmt::Display;
use std::sync::Arc;

use indexmap::IndexMap;
use tch::Tensor;

use super::linear::{Linear, Stored};
use crate::api::{Frozen, Weight};
use crate::error::{Error, Result};
use crate::weights::{Loaded, Shards};

/// The tensors of a checkpoint that have not been used yet, by name.
#[derive(Debug)]
pub struct Checkpoint {
    tensors: RefCell<IndexMap<String, Loaded>>,
    /// The shapes of the tensors that were used, by their names in the model.
    used: RefCell<IndexMap<String, Vec<i64>>>,
    /// `base_model_prefix` of transformers. Tensor names in a checkpoint may lack this prefix, or
    /// contain it twice.
    base: &'static str,
    /// Divides matrices among the ranks; `None` if each rank keeps them whole.
    shards: Option<Arc<Shards>>,
}

/// The tensors of a checkpoint under one path: `weights.at("layers").at(0)` reads `layers.0.…`.
#[derive(Clone, Debug)]
pub struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    /// The path, which is empty or ends with a dot.
    path: String,
}

/// The name of the model's tensor `name` in a checkpoint. It is `name` itself, or `name` with the
/// prefix `base.` removed or added, as in `rename_source_key` of transformers. `None` if `has`
/// returns false for all of these names.
pub fn stored_name(name: &str, base: &str, has: impl Fn(&str) -> bool) -> Option<String> {
    let without =
        name.strip_prefix(base).and_then(|rest| rest.strip_prefix('.')).map(str::to_owned);
    [Some(name.to_owned()), without, Some(format!("{base}.{name}"))]
        .into_iter()
        .flatten()
        .find(|name| has(name))
}

impl Checkpoint {
    /// Wraps the tensors of a checkpoint. `base` is the `base_model_prefix` of the architecture.
    /// `shards` divides matrices that are created from the tensors.
    pub fn new(
        tensors: IndexMap<String, Loaded>,
        base: &'static str,
        shards: Option<Arc<Shards>>,
    ) -> Self {
        Self { tensors: RefCell::new(tensors), used: RefCell::default(), base, shards }
    }

    /// All tensors, under their full names.
    pub fn weights(&self) -> Weights<'_> {
        Weights { checkpoint: self, path: String::new() }
    }

    fn stored_name(&self, name: &str) -> Option<String> {
        let tensors = self.tensors.borrow();
        stored_name(name, self.base, |name| tensors.contains_key(name))
    }

    fn remove(&self, name: &str) -> Option<Loaded> {
        self.stored_name(name).and_then(|stored| self.tensors.borrow_mut().swap_remove(&stored))
    }

    /// Replaces the prefix `from` with `to` in the names of all tensors that start with `from`.
    pub fn rename(&self, from: &str, to: &str) {
        let renamed = |name: String| {
            name.strip_prefix(from).map(|rest| format!("{to}{rest}")).unwrap_or(name)
        };
        let tensors = self.tensors.take();
        self.tensors.replace(tensors.into_iter().map(|(name, t)| (renamed(name), t)).collect());
    }

    /// Drops all tensors whose names begin with `prefix`, because the model does not use this part
    /// of the checkpoint.
    pub fn forget_all(&self, prefix: &str) {
        self.tensors.borrow_mut().retain(|name, _| !name.starts_with(prefix));
    }

    /// Checks that all tensors were used. Returns the shapes of the used tensors, by their names in
    /// the model.
    ///
    /// # Errors
    /// Fails if a tensor was not used. The checkpoint then probably belongs to a different
    /// architecture.
    pub fn finish(self) -> Result<IndexMap<String, Vec<i64>>> {
        // Ignore the `rotary_emb.inv_freq` buffers of old checkpoints. They are computed, not
        // loaded.
        let tensors = self.tensors.into_inner();
        let left: Vec<&String> =
            tensors.keys().filter(|n| !n.ends_with("rotary_emb.inv_freq")).collect();
        match left.first() {
            None => Ok(self.used.into_inner()),
            Some(name) => {
                let e = Error::new(format!(
                    "the model's weights contain `{name}`, which its architecture does not use \
                        (such tensors: {})",
                    left.len()
                ));
                Err(match renamed_by(left.iter().copied(), self.base) {
                    Some(cause) => e.hint(cause),
                    None => e,
                })
            }
        }
    }
}

impl<'a> Weights<'a> {
    /// The tensors under `name`.
    #[must_use]
    pub fn at(&self, name: impl Display) -> Self {
        Self { checkpoint: self.checkpoint, path: format!("{}{name}.", self.path) }
    }

    /// The whole checkpoint. It is needed to rename tensors.
    pub fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// The full name of the tensor called `name` under this path.
    pub fn name(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// The error for a missing tensor, with the likely cause as a hint.
    pub fn missing(&self, name: &str) -> Error {
        let e = Error::new(format!(
            "the tensor `{}` is missing from the model's weights",
            self.name(name)
        ));
        let cause = renamed_by(self.checkpoint.tensors.borrow().keys(), self.checkpoint.base);
        e.hint(cause.unwrap_or(
            "check that config.json belongs to this checkpoint and that no \
            shard is missing",
        ))
    }

    /// Removes and returns the tensor `name`, which must have the shape `shape`.
    ///
    /// # Errors
    /// Fails if the tensor is missing or has the wrong shape.
    pub fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        self.loaded(name, shape)?.dense()
    }

    /// Like [`tensor`](Self::tensor), for a matrix that may stay in the blocks of a file.
    ///
    /// # Errors
    /// Fails if it is missing or has the wrong shape.
    pub fn matrix(&self, name: &str, shape: [i64; 2]) -> Result<Weight> {
        Ok(match self.loaded(name, &shape)? {
            Loaded::Stored { matrix, transposed: false } => Weight::Stored(Box::new(matrix)),
            Loaded::Sharded(matrix) => Weight::Stored(Box::new(matrix)),
            loaded => Weight::Dense(loaded.dense()?),
        })
    }

    fn loaded(&self, name: &str, shape: &[i64]) -> Result<Loaded> {
        let Some(tensor) = self.checkpoint.remove(&self.name(name)) else {
            return Err(self.missing(name));
        };
        if tensor.size() != shape {
            return Err(Error::new(format!(
                "`{}` in the model's weights must have the shape {shape:?} according to \
                    config.json, got {:?}",
                self.name(name),
                tensor.size()
            )));
        }
        self.checkpoint.used.borrow_mut().insert(self.name(name), shape.to_vec());
        Ok(tensor)
    }

    /// Builds a linear module from `name.weight` `[outputs inputs]`, and from `name.bias` if `bias`
    /// is true.
    ///
    /// # Errors
    /// Fails if a tensor is missing or has the wrong shape.
    pub fn linear(&self, name: &str, inputs: i64, outputs: i64, bias: bool) -> Result<Linear> {
        let at = self.at(name);
        let weight = at.matrix("weight", [outputs, inputs])?;
        let bias = if bias { Some(at.tensor("bias", &[outputs])?) } else { None };
        Ok(Linear::new(self.name(name), Frozen::from_weight(weight, bias), Stored::OutIn))
    }

    /// Builds a module that is a `Conv1D` in transformers, from `name.weight` `[inputs outputs]`
    /// and `name.bias`.
    ///
    /// # Errors
    /// Fails if a tensor is missing or has the wrong shape.
    pub fn conv1d(&self, name: &str, inputs: i64, outputs: i64) -> Result<Linear> {
        let at = self.at(name);
        let weight = match at.loaded("weight", &[inputs, outputs])? {
            // GGUF stores `[outputs inputs]`, which is the matrix of the module.
            Loaded::Stored { matrix, transposed: true } => Weight::Stored(Box::new(matrix)),
            loaded => {
                let matrix = loaded.dense()?.f_tr()?.f_contiguous()?;
                match &self.checkpoint.shards {
                    Some(shards) => Weight::Stored(Box::new(shards.divide(&matrix)?)),
                    None => Weight::Dense(matrix),
                }
            }
        };
        Ok(Linear::new(
            self.name(name),
            Frozen::from_weight(weight, Some(at.tensor("bias", &[outputs])?)),
            Stored::InOut,
        ))
    }

    /// True if the checkpoint has an unused tensor with this name.
    pub fn has(&self, name: &str) -> bool {
        self.checkpoint.stored_name(&self.name(name)).is_some()
    }

    /// Drops a tensor that the model does not need, if the checkpoint has it.
    pub fn forget(&self, name: &str) {
        self.checkpoint.remove(&self.name(name));
    }
}

/// Substrings of tensor names, and a hint. The substrings show how the checkpoint was saved.
const RENAMED: [(&[&str], &str); 9] = [
    (
        &["_orig_mod."],
        "the file was saved from a model compiled by torch.compile: save the original module \
            instead (`model._orig_mod.save_pretrained(FOLDER)`)",
    ),
    (
        &["base_model.model.", ".lora_A.", ".lora_B.", ".base_layer.", ".modules_to_save."],
        "the file was saved from a PEFT model: save it after `merge_and_unload()`, or give the \
            base model here and the adapter's folder with `run --init-adapter` or `score \
            --load-adapter`",
    ),
    (
        &["_fsdp_wrapped_module.", "_flat_param"],
        "the file was saved from inside FSDP: save a full state dict (`fsdp_state_dict_type: \
            FULL_STATE_DICT`), without its wrappers",
    ),
    (
        &["_forward_module."],
        "the file was saved from inside a wrapper of Lightning or DeepSpeed: save the wrapped \
            model itself with `save_pretrained`",
    ),
    (
        &[
            ".qweight",
            ".qzeros",
            ".g_idx",
            ".weight_packed",
            ".weight_scale",
            ".weight_scale_inv",
            ".input_scale",
        ],
        "the weights are quantised (GPTQ, AWQ, FP8 or compressed-tensors), but config.json has no \
            `quantization_config`: use the unquantised model, or a GGUF file of it",
    ),
    (
        &[".absmax", ".quant_map", ".nested_absmax", ".quant_state.", ".SCB"],
        "the weights are quantised by bitsandbytes, but config.json has no \
            `quantization_config`: use the unquantised model, or a GGUF file of it",
    ),
    (
        &[".experts.", ".block_sparse_moe."],
        "these are the weights of a mixture of experts, but the architecture in config.json is \
            dense",
    ),
    (
        &["module."],
        "the file was saved from inside DistributedDataParallel or DataParallel: save \
            `model.module` instead",
    ),
    (
        &["transformer.h.", "blk."],
        "the tensors are named as in a different program or architecture: save the model with \
            transformers (`save_pretrained`)",
    ),
];

/// Returns the hint of the first entry of [`RENAMED`] that matches one of the names.
///
/// Ignores texts in [`RENAMED`] that begin with `base`, the prefix of the expected architecture.
fn renamed_by<'a>(names: impl Iterator<Item = &'a String>, base: &str) -> Option<&'static str> {
    let names: Vec<&String> = names.collect();
    // A substring that starts with a dot may occur anywhere in a name. Other substrings must be at
    // the start of the name or after a dot.
    let contains = |name: &str, part: &str| {
        if part.starts_with('.') {
            name.contains(part)
        } else {
            name.starts_with(part) || name.contains(&format!(".{part}"))
        }
    };
    let foreign = |part: &&&str| part.strip_prefix(base).is_none_or(|rest| !rest.starts_with('.'));
    let occurs = |parts: &[&str]| {
        names.iter().any(|name| parts.iter().filter(foreign).any(|part| contains(name, part)))
    };
    RENAMED.iter().find(|(parts, _)| occurs(parts)).map(|(_, cause)| *cause)
}
