//! A checkpoint's tensors while a model is put together from them: each is taken once, by PyTorch's
//! name.

use std::cell::RefCell;
use std::fmt::Display;

use indexmap::IndexMap;
use tch::Tensor;

use super::linear::{Linear, Stored};
use crate::api::Frozen;
use crate::error::{Error, Result};

/// The tensors of a checkpoint that have not been taken yet, by name.
#[derive(Debug)]
pub struct Checkpoint {
    tensors: RefCell<IndexMap<String, Tensor>>,
    /// `base_model_prefix` of transformers. The names in a checkpoint may lack it, or have it
    /// twice.
    base: &'static str,
}

/// The tensors of a checkpoint below one path: `weights.at("layers").at(0)` reads `layers.0.…`.
#[derive(Clone, Debug)]
pub struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    /// The path, empty or with a dot at its end.
    path: String,
}

/// The name in a checkpoint of the tensor that the whole model calls `name`. It is `name`, or
/// `name` with the prefix `base.` removed or added, as in `rename_source_key` of transformers.
/// `None` if the checkpoint `has` none of these.
pub fn stored_name(name: &str, base: &str, has: impl Fn(&str) -> bool) -> Option<String> {
    let without =
        name.strip_prefix(base).and_then(|rest| rest.strip_prefix('.')).map(str::to_owned);
    [Some(name.to_owned()), without, Some(format!("{base}.{name}"))]
        .into_iter()
        .flatten()
        .find(|name| has(name))
}

impl Checkpoint {
    /// The tensors of a checkpoint, for an architecture with this `base_model_prefix`.
    pub fn new(tensors: IndexMap<String, Tensor>, base: &'static str) -> Self {
        Self { tensors: RefCell::new(tensors), base }
    }

    /// All its tensors.
    pub fn weights(&self) -> Weights<'_> {
        Weights { checkpoint: self, path: String::new() }
    }

    fn stored_name(&self, name: &str) -> Option<String> {
        let tensors = self.tensors.borrow();
        stored_name(name, self.base, |name| tensors.contains_key(name))
    }

    fn remove(&self, name: &str) -> Option<Tensor> {
        self.stored_name(name).and_then(|stored| self.tensors.borrow_mut().swap_remove(&stored))
    }

    /// Gives every tensor whose name begins with `from` one that begins with `to` instead.
    pub fn rename(&self, from: &str, to: &str) {
        let renamed = |name: String| {
            name.strip_prefix(from).map(|rest| format!("{to}{rest}")).unwrap_or(name)
        };
        let tensors = self.tensors.take();
        self.tensors.replace(tensors.into_iter().map(|(name, t)| (renamed(name), t)).collect());
    }

    /// Drops the tensors of a part of the model that is not run.
    pub fn forget_all(&self, prefix: &str) {
        self.tensors.borrow_mut().retain(|name, _| !name.starts_with(prefix));
    }

    /// Checks that no tensor is left over.
    ///
    /// # Errors
    /// Fails if a tensor was not taken: the architecture would compute something else than the
    /// checkpoint was trained for.
    pub fn finish(self) -> Result<()> {
        // Buffers that old checkpoints saved.
        let tensors = self.tensors.into_inner();
        let left: Vec<&String> =
            tensors.keys().filter(|n| !n.ends_with("rotary_emb.inv_freq")).collect();
        match left.first() {
            None => Ok(()),
            Some(name) => {
                let e = Error::new(format!(
                    "the model's weights hold `{name}`, which its architecture does not know ({} \
                        such tensors)",
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
    /// The tensors below `name`.
    #[must_use]
    pub fn at(&self, name: impl Display) -> Self {
        Self { checkpoint: self.checkpoint, path: format!("{}{name}.", self.path) }
    }

    /// The checkpoint as a whole, for architectures whose tensors have had other names.
    pub fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// The whole name of `name`.
    pub fn name(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// The error for a tensor that the checkpoint does not have, with the likely cause as a hint.
    pub fn missing(&self, name: &str) -> Error {
        let e = Error::new(format!("the model's weights have no `{}`", self.name(name)));
        let cause = renamed_by(self.checkpoint.tensors.borrow().keys(), self.checkpoint.base);
        e.hint(cause.unwrap_or(
            "the checkpoint is of another architecture than its config.json \
            says, or a shard is missing",
        ))
    }

    /// Takes the tensor of that name, which must have that shape.
    ///
    /// # Errors
    /// Fails if it is missing or has another shape.
    pub fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let Some(tensor) = self.checkpoint.remove(&self.name(name)) else {
            return Err(self.missing(name));
        };
        if tensor.size() != shape {
            return Err(Error::new(format!(
                "the model's `{}` is {:?}, but its config.json asks for {shape:?}",
                self.name(name),
                tensor.size()
            )));
        }
        Ok(tensor)
    }

    /// A linear module with `name.weight` `[outputs inputs]`, and with `name.bias` if `bias` is
    /// true.
    ///
    /// # Errors
    /// Fails if a tensor is missing or has another shape.
    pub fn linear(&self, name: &str, inputs: i64, outputs: i64, bias: bool) -> Result<Linear> {
        let at = self.at(name);
        let weight = at.tensor("weight", &[outputs, inputs])?;
        let bias = if bias { Some(at.tensor("bias", &[outputs])?) } else { None };
        Ok(Linear::new(self.name(name), Frozen::new(weight, bias), Stored::OutIn))
    }

    /// The linear module that is a `Conv1D` in transformers, with `name.weight` `[inputs outputs]`
    /// and `name.bias`.
    ///
    /// # Errors
    /// Fails if a tensor is missing or has another shape.
    pub fn conv1d(&self, name: &str, inputs: i64, outputs: i64) -> Result<Linear> {
        let at = self.at(name);
        let weight = at.tensor("weight", &[inputs, outputs])?.f_tr()?.f_contiguous()?;
        Ok(Linear::new(
            self.name(name),
            Frozen::new(weight, Some(at.tensor("bias", &[outputs])?)),
            Stored::InOut,
        ))
    }

    /// True if there is a tensor of that name that has not been taken.
    pub fn has(&self, name: &str) -> bool {
        self.checkpoint.stored_name(&self.name(name)).is_some()
    }

    /// Drops a tensor that a checkpoint may hold although the model does not need it.
    pub fn forget(&self, name: &str) {
        self.checkpoint.remove(&self.name(name));
    }
}

/// Parts of tensor names that show how a checkpoint was saved, and a hint for each.
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
        "the weights are quantised (GPTQ, AWQ, FP8 or compressed-tensors), and config.json has \
            lost its `quantization_config`: take the unquantised model, or a GGUF file of it",
    ),
    (
        &[".absmax", ".quant_map", ".nested_absmax", ".quant_state.", ".SCB"],
        "the weights are quantised by bitsandbytes, and config.json has lost its \
            `quantization_config`: take the unquantised model, or a GGUF file of it",
    ),
    (
        &[".experts.", ".block_sparse_moe."],
        "the weights are of a mixture of experts, but config.json names a dense architecture",
    ),
    (
        &["module."],
        "the file was saved from inside DistributedDataParallel or DataParallel: save \
            `model.module` instead",
    ),
    (
        &["transformer.h.", "blk."],
        "the names are those of another program or architecture: save the model with transformers \
            (`save_pretrained`)",
    ),
];

/// The hint for the first entry of [`RENAMED`] that occurs in one of the names.
///
/// The prefix `base` of an architecture is not a sign of another one.
fn renamed_by<'a>(names: impl Iterator<Item = &'a String>, base: &str) -> Option<&'static str> {
    let names: Vec<&String> = names.collect();
    // A mark that starts with a dot may be anywhere in a name. Others start a dotted word of it.
    let marked = |name: &str, mark: &str| {
        if mark.starts_with('.') {
            name.contains(mark)
        } else {
            name.starts_with(mark) || name.contains(&format!(".{mark}"))
        }
    };
    let foreign = |mark: &&&str| mark.strip_prefix(base).is_none_or(|rest| !rest.starts_with('.'));
    let occurs = |marks: &[&str]| {
        names.iter().any(|name| marks.iter().filter(foreign).any(|mark| marked(name, mark)))
    };
    RENAMED.iter().find(|(marks, _)| occurs(marks)).map(|(_, cause)| *cause)
}
