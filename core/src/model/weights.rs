//! A checkpoint's tensors while a model is put together from them: each is taken once, by PyTorch's name.

use indexmap::IndexMap;
use tch::Tensor;

use super::linear::Linear;
use crate::api::Frozen;
use crate::error::{Error, Result};

/// Tensors by name.
#[derive(Debug)]
pub struct Weights {
    tensors: IndexMap<String, Tensor>,
    /// `base_model_prefix` of transformers. The names in a checkpoint may lack it, or have it
    /// twice.
    base: &'static str,
}

/// The name in a checkpoint of the tensor that the whole model calls `name`. It is `name`, or
/// `name` with the prefix `base.` removed or added, as in `rename_source_key` of transformers.
/// `None` if the checkpoint `has` none of these.
pub fn stored_name(name: &str, base: &str, has: impl Fn(&str) -> bool) -> Option<String> {
    let without = name.strip_prefix(base).and_then(|rest| rest.strip_prefix('.')).map(str::to_owned);
    [Some(name.to_owned()), without, Some(format!("{base}.{name}"))].into_iter().flatten().find(|name| has(name))
}

impl Weights {
    /// The tensors of a checkpoint, for an architecture with this `base_model_prefix`.
    pub fn new(tensors: IndexMap<String, Tensor>, base: &'static str) -> Self {
        Self { tensors, base }
    }

    fn stored_name(&self, name: &str) -> Option<String> {
        stored_name(name, self.base, |name| self.tensors.contains_key(name))
    }

    /// The error for a tensor that the checkpoint does not have, with the likely cause as a hint.
    pub fn missing(&self, name: &str) -> Error {
        let e = Error::new(format!("the model's weights have no `{name}`"));
        e.hint(renamed_by(self.tensors.keys()).unwrap_or("the checkpoint is of another architecture than its config.json says, or a shard is missing"))
    }

    /// The tensor of that name, which has to be of that shape.
    ///
    /// # Errors
    /// Fails if it is missing or has another shape.
    pub fn take(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let stored = self.stored_name(name).and_then(|stored| self.tensors.swap_remove(&stored));
        let Some(tensor) = stored else { return Err(self.missing(name)) };
        if tensor.size() != shape {
            return Err(Error::new(format!("the model's `{name}` is {:?}, but its config.json asks for {shape:?}", tensor.size())));
        }
        Ok(tensor)
    }

    /// A linear module with `name.weight` `[outputs inputs]`, and `name.bias` where there is one.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn linear(&mut self, name: &str, inputs: i64, outputs: i64, bias: bool) -> Result<Linear> {
        let weight = self.take(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = if bias { Some(self.take(&format!("{name}.bias"), &[outputs])?) } else { None };
        Ok(Linear::new(name, Frozen::new(weight, bias)))
    }

    /// Whether there is a tensor of that name that has not been taken.
    pub fn has(&self, name: &str) -> bool {
        self.stored_name(name).is_some()
    }

    /// Gives every tensor whose name begins with `from` one that begins with `to` instead.
    pub fn rename(&mut self, from: &str, to: &str) {
        let renamed = |name: String| name.strip_prefix(from).map(|rest| format!("{to}{rest}")).unwrap_or(name);
        self.tensors = std::mem::take(&mut self.tensors).into_iter().map(|(name, t)| (renamed(name), t)).collect();
    }

    /// Tensors of a part that is not run.
    pub fn forget_all(&mut self, prefix: &str) {
        self.tensors.retain(|name, _| !name.starts_with(prefix));
    }

    /// A tensor that the model may carry without needing it.
    pub fn forget(&mut self, name: &str) {
        if let Some(stored) = self.stored_name(name) {
            self.tensors.swap_remove(&stored);
        }
    }

    /// Nothing may be left over.
    ///
    /// # Errors
    /// Where a tensor was not taken: the architecture would compute something else than the checkpoint was trained for.
    pub fn finish(self) -> Result<()> {
        // Buffers that old checkpoints saved.
        let left: Vec<&String> = self.tensors.keys().filter(|n| !n.ends_with("rotary_emb.inv_freq")).collect();
        match left.first() {
            None => Ok(()),
            Some(name) => {
                let e = Error::new(format!("the model's weights hold `{name}`, which its architecture does not know ({} such tensors)", left.len()));
                Err(match renamed_by(left.iter().copied()) {
                    Some(cause) => e.hint(cause),
                    None => e,
                })
            }
        }
    }
}

/// Parts of tensor names that show how a checkpoint was saved, and a hint for each.
const RENAMED: [(&[&str], &str); 9] = [
    (
        &["_orig_mod."],
        "the file was saved from a model compiled by torch.compile: save the original module instead (`model._orig_mod.save_pretrained(FOLDER)`)",
    ),
    (
        &["base_model.model.", ".lora_A.", ".lora_B.", ".base_layer.", ".modules_to_save."],
        "the file was saved from a PEFT model: save it after `merge_and_unload()`, or give the base model here and the adapter's folder with `run --init-adapter` or `score --load-adapter`",
    ),
    (
        &["_fsdp_wrapped_module.", "_flat_param"],
        "the file was saved from inside FSDP: save a full state dict (`fsdp_state_dict_type: FULL_STATE_DICT`), without its wrappers",
    ),
    (&["_forward_module."], "the file was saved from inside a wrapper of Lightning or DeepSpeed: save the wrapped model itself with `save_pretrained`"),
    (
        &[".qweight", ".qzeros", ".g_idx", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".input_scale"],
        "the weights are quantised (GPTQ, AWQ, FP8 or compressed-tensors), and config.json has lost its `quantization_config`: take the unquantised model, or a GGUF file of it",
    ),
    (
        &[".absmax", ".quant_map", ".nested_absmax", ".quant_state.", ".SCB"],
        "the weights are quantised by bitsandbytes, and config.json has lost its `quantization_config`: take the unquantised model, or a GGUF file of it",
    ),
    (&[".experts.", ".block_sparse_moe."], "the weights are of a mixture of experts, but config.json names a dense architecture"),
    (&["module."], "the file was saved from inside DistributedDataParallel or DataParallel: save `model.module` instead"),
    (&["transformer.h.", "blk."], "the names are those of another program or architecture: save the model with transformers (`save_pretrained`)"),
];

/// The hint for the first entry of [`RENAMED`] that occurs in one of the names.
fn renamed_by<'a>(names: impl Iterator<Item = &'a String>) -> Option<&'static str> {
    let names: Vec<&String> = names.collect();
    // A mark that starts with a dot may be anywhere in a name. Others start a dotted word of it.
    let marked =
        |name: &str, mark: &str| if mark.starts_with('.') { name.contains(mark) } else { name.starts_with(mark) || name.contains(&format!(".{mark}")) };
    RENAMED.iter().find(|(marks, _)| names.iter().any(|name| marks.iter().any(|mark| marked(name, mark)))).map(|(_, cause)| *cause)
}
