//! Tensors of a model that an adapter replaces while it is on.
//!
//! PEFT can save whole tensors of the base model in the file of an adapter: full modules, biases,
//! and rows of the embedding. They act while the adapter is on. Without the adapter, the model
//! computes with its own tensors. They are not trained.

use indexmap::IndexMap;
use serde_json::{Map, Value};
use tch::Tensor;

use crate::api::Frozen;
use crate::error::Result;

/// The tensors of one module that are replaced, in the dtype and on the device of the model. The
/// weight of a linear module is `[out in]`. A tensor that is `None` is not replaced.
#[derive(Debug, Default)]
pub struct ReplacedModule {
    /// The weight.
    pub weight: Option<Tensor>,
    /// The bias.
    pub bias: Option<Tensor>,
}

/// The tensors of a model that an adapter replaces while it is on.
#[derive(Debug, Default)]
pub struct Replacements {
    /// The replaced modules by name.
    pub(super) modules: IndexMap<String, ReplacedModule>,
    /// The tensors of the adapter's file that these tensors come from, under the names in the file.
    /// They are written again when the adapter is saved.
    pub(super) file: Vec<(String, Tensor)>,
    /// The fields of `adapter_config.json` that belong to these tensors.
    pub(super) fields: Map<String, Value>,
    /// Names of modules that `target_modules` selects besides the linear modules of the blocks.
    pub(super) targets: Vec<String>,
}

impl Replacements {
    /// The replaced tensors of the module `name`; `None` if the module is not replaced.
    pub fn module(&self, name: &str) -> Option<&ReplacedModule> {
        self.modules.get(name)
    }

    /// True if no tensor is replaced.
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    /// The names of the replaced tensors.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.tensors().map(|(module, tensor, _)| format!("{module}.{tensor}"))
    }

    /// The replaced tensors: the name of the module, `weight` or `bias`, and the values.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &'static str, &Tensor)> {
        self.modules.iter().flat_map(|(name, module)| {
            let tensors = [("weight", &module.weight), ("bias", &module.bias)];
            tensors.into_iter().filter_map(|(tensor, value)| {
                value.as_ref().map(|value| (name.as_str(), tensor, value))
            })
        })
    }

    /// Returns the linear module `name` with its replaced tensors. Returns `None` if the module is
    /// not replaced. `frozen` has the model's own tensors.
    pub fn linear(&self, name: &str, frozen: &Frozen) -> Option<Frozen> {
        let replaced = self.module(name)?;
        let module = match &replaced.weight {
            Some(weight) => frozen.with_weight(weight.shallow_clone()),
            None => frozen.shared(),
        };
        Some(match &replaced.bias {
            Some(bias) => module.with_bias(bias),
            None => module,
        })
    }

    /// Copies the tensors of the file to the CPU as float32, so that they can be saved.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn snapshot(&self) -> Result<Vec<(String, Tensor)>> {
        let copied = |(name, t): &(String, Tensor)| {
            let kind = if t.is_floating_point() { tch::Kind::Float } else { t.kind() };
            Ok((name.clone(), t.f_to_device(tch::Device::Cpu)?.f_to_kind(kind)?.f_contiguous()?))
        };
        self.file.iter().map(copied).collect()
    }
}
