//! The adapter of a whole model: one adapted linear module, or part of one, a target, and adapted
//! blocks.

use std::rc::Rc;

use indexmap::IndexMap;
use tch::{Device, Kind, Tensor};

use crate::api::{AdaptedLinear, AdaptedResidual, ModelInfo, Parameter, PartInfo, Site};
use crate::error::{Error, Result};

/// Adapted modules and parts by name and adapted blocks by number, in the model's order.
pub struct Adapted {
    pub(super) modules: IndexMap<String, Rc<dyn AdaptedLinear>>,
    pub(super) blocks: IndexMap<usize, Rc<dyn AdaptedResidual>>,
    pub(super) shared: Vec<Parameter>,
}

impl std::fmt::Debug for Adapted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.modules.keys()).entries(self.blocks.keys()).finish()
    }
}

/// One place that an adapter changes.
#[derive(Debug)]
pub struct Changed {
    /// The site of its input, in a pass without the adapter.
    pub input: Site,
    /// The site of its output.
    pub output: Site,
    /// Its trainable parameters.
    pub parameters: Vec<Parameter>,
}

impl Adapted {
    /// The adapted module, or part of one, of that name.
    pub fn get(&self, name: &str) -> Option<&dyn AdaptedLinear> {
        self.modules.get(name).map(|m| &**m)
    }

    /// The adapter of the output of block `k`.
    pub fn block(&self, k: usize) -> Option<&dyn AdaptedResidual> {
        self.blocks.get(&k).map(|b| &**b)
    }

    /// True if it changes the output of any block.
    pub fn changes_blocks(&self) -> bool {
        !self.blocks.is_empty()
    }

    /// The names of the adapted modules and parts, in the model's order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.modules.keys().map(String::as_str)
    }

    /// The adapted ones of a model's parts, in its order.
    pub fn parts<'m>(&self, model: &'m ModelInfo) -> impl Iterator<Item = &'m PartInfo> {
        model.parts.iter().filter(|part| self.modules.contains_key(&part.linear.name))
    }

    /// How many modules, parts of modules and blocks of `model` it changes, in words.
    pub fn describe(&self, model: &ModelInfo) -> String {
        let parts = self.parts(model).count();
        let counts = [
            (self.modules.len() - parts, "modules"),
            (parts, "parts of modules"),
            (self.blocks.len(), "blocks"),
        ];
        counts
            .into_iter()
            .filter(|(n, _)| *n > 0)
            .map(|(n, what)| format!("{n} {what}"))
            .collect::<Vec<_>>()
            .join(" and ")
    }

    /// The blocks whose output it changes, in the model's order.
    pub fn blocks(&self) -> impl Iterator<Item = usize> {
        self.blocks.keys().copied()
    }

    /// Everything it changes: the modules, then the blocks.
    pub fn changed(&self) -> impl Iterator<Item = Changed> {
        let modules = self.modules.iter().map(|(name, m)| Changed {
            input: Site::Input(name.clone()),
            output: Site::Output(name.clone()),
            parameters: m.parameters(),
        });
        let blocks = self.blocks.iter().map(|(k, b)| Changed {
            input: Site::Block(*k),
            output: Site::Block(*k),
            parameters: b.parameters(),
        });
        modules.chain(blocks)
    }

    /// All tensors, as `module.key`, in a fixed order: what the adapter is, on disk.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let named = |place: String, parameters: Vec<Parameter>| {
            parameters.into_iter().map(move |p| (format!("{place}.{}", p.key), p.tensor))
        };
        let modules = self.modules.iter().flat_map(|(name, m)| named(name.clone(), m.parameters()));
        let blocks = self
            .blocks
            .iter()
            .flat_map(|(k, b)| named(Site::Block(*k).to_string(), b.parameters()));
        modules
            .chain(blocks)
            .chain(self.shared.iter().map(|p| (p.key.clone(), p.tensor.shallow_clone())))
            .collect()
    }

    /// The trainable ones among [`tensors`](Self::tensors).
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        self.tensors().into_iter().filter(|(_, t)| t.requires_grad()).collect()
    }

    /// True if the tensor of that name belongs to all modules together.
    pub fn is_shared(&self, name: &str) -> bool {
        self.shared.iter().any(|p| p.key == name)
    }

    /// Overwrites every tensor with the one of the same name in `values`.
    ///
    /// # Errors
    /// A tensor that is not given, one that fits no module, or one of another shape. Nothing is
    /// changed then.
    pub fn restore(&self, values: &IndexMap<String, Tensor>) -> Result<()> {
        let mut pending = Vec::new();
        let mut left: Vec<&String> = values.keys().collect();
        for (name, tensor) in self.tensors() {
            left.retain(|key| **key != name);
            let Some(value) = values.get(&name) else {
                return Err(Error::new(format!(
                    "the file has no tensor for `{name}`, which would stay at its initial value"
                )));
            };
            if value.size() != tensor.size() {
                return Err(Error::new(format!(
                    "`{name}` is {:?} in the file, but the model needs {:?}",
                    value.size(),
                    tensor.size()
                )));
            }
            pending.push((tensor, value));
        }
        if let Some(name) = left.first() {
            return Err(Error::new(format!(
                "the file's `{name}` fits no module that the adapter targets ({} tensors do not)",
                left.len()
            )));
        }
        let _guard = tch::no_grad_guard();
        for (mut tensor, value) in pending {
            tensor.f_copy_(value)?;
        }
        Ok(())
    }

    /// Trainable elements in all.
    pub fn elements(&self) -> i64 {
        self.parameters().iter().map(|(_, t)| t.numel() as i64).sum()
    }

    /// The tensors on the CPU in float32, for a file.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn snapshot(&self) -> Result<Vec<(String, Tensor)>> {
        self.tensors()
            .into_iter()
            .map(|(name, t)| {
                Ok((
                    name,
                    t.f_detach()?
                        .f_to_device(Device::Cpu)?
                        .f_to_kind(Kind::Float)?
                        .f_contiguous()?,
                ))
            })
            .collect()
    }
}
