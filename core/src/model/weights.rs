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
}

impl Weights {
    /// The tensors of a checkpoint.
    pub fn new(tensors: IndexMap<String, Tensor>) -> Self {
        Self { tensors }
    }

    /// The tensor of that name, which has to be of that shape.
    ///
    /// # Errors
    /// Where it is missing or of another shape.
    pub fn take(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let Some(tensor) = self.tensors.swap_remove(name) else {
            return Err(Error::new(format!("the model's weights have no `{name}`"))
                .hint("the checkpoint is of another architecture than its config.json says, or a shard is missing"));
        };
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
        Ok(Linear::new(name, Frozen { weight, bias }))
    }

    /// Whether there is a tensor of that name that has not been taken.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
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
        self.tensors.swap_remove(name);
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
            Some(name) => Err(Error::new(format!("the model's weights hold `{name}`, which its architecture does not know ({} such tensors)", left.len()))),
        }
    }
}
