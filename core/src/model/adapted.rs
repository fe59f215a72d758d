//! An adapter that is attached to a model. The adapter can change linear modules, parts of fused
//! modules, and blocks. Each of these targets has its own parameters.

use std::collections::HashMap;
use std::rc::Rc;

use indexmap::IndexMap;
use tch::{Device, Kind, Tensor};

use super::edits::Edits;
use super::replacements::Replacements;
use crate::api::{
    AdaptedLinear, AdaptedResidual, Adapter, Frozen, ModelInfo, Parameter, PartInfo, Site,
};
use crate::error::{Context, Error, Result};

/// An adapter attached to a model. Targets are keyed by module name or block index, in the model's
/// order.
pub struct Adapted {
    pub(super) modules: IndexMap<String, Rc<dyn AdaptedLinear>>,
    pub(super) blocks: IndexMap<usize, Rc<dyn AdaptedResidual>>,
    pub(super) shared: Vec<Parameter>,
    pub(super) edits: Edits,
    /// Factor of the change of each target.
    pub(super) coefficient: f64,
    /// Tensors of the model that are replaced while the adapter is on. They are not trained.
    pub(super) replacements: Rc<Replacements>,
}

impl std::fmt::Debug for Adapted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.modules.keys()).entries(self.blocks.keys()).finish()
    }
}

/// A module, a part or a block that an adapter changes.
#[derive(Debug)]
pub struct AdaptedTarget {
    /// The site of the adapter's input. To get the input, read the states at this site in a pass
    /// without the adapter. A block adapter's input is the output of the block.
    pub input: Site,
    /// The site of the adapter's output.
    pub output: Site,
    /// The parameters of the adapter on this target.
    pub parameters: Vec<Parameter>,
}

/// Checks that the change of `adapter` can be multiplied by `coefficient`.
///
/// # Errors
/// Fails if the coefficient is not finite, or if it is neither 0 nor 1 and the method only accepts
/// these.
pub fn check_coefficient(adapter: &dyn Adapter, coefficient: f64) -> Result<()> {
    if !coefficient.is_finite() {
        return Err(Error::new(format!(
            "a coefficient must be a finite number, got {coefficient}"
        )));
    }
    if coefficient == 0.0 || coefficient == 1.0 {
        return Ok(());
    }
    adapter.accepts_coefficient().within(|| {
        format!("the adapter's change cannot be multiplied by the coefficient {coefficient}")
    })
}

/// The dtype in which a change is multiplied: float32, or float64 if the model has this dtype.
fn wide(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

impl Adapted {
    /// Tensors of the model that are replaced while the adapter is on.
    pub fn replacements(&self) -> &Replacements {
        &self.replacements
    }

    /// The adapter on the module or part called `name`. `None` if this module or part is not
    /// adapted.
    pub fn get(&self, name: &str) -> Option<&dyn AdaptedLinear> {
        self.modules.get(name).map(|m| &**m)
    }

    /// The adapter on the output of block `k`. `None` if the block is not adapted.
    pub fn block(&self, k: usize) -> Option<&dyn AdaptedResidual> {
        self.blocks.get(&k).map(|b| &**b)
    }

    /// The edits of the residual stream that act together with the adapter.
    pub fn edits(&self) -> &Edits {
        &self.edits
    }

    /// Applies the edits to the output `h` of block `block`, `[n hidden]`, multiplied by the
    /// coefficient. `training` is true in the passes of training.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub(super) fn edited(&self, block: usize, h: Tensor, training: bool) -> Result<Tensor> {
        self.edits.apply(block, h, self.coefficient, training)
    }

    /// Replaces the edits of the residual stream.
    pub fn set_edits(&mut self, edits: Edits) {
        self.edits = edits;
    }

    /// Returns the adapter with its change multiplied by `coefficient`: 0 is off, 1 is as trained,
    /// and −1 is the opposite. `adapter` is the configured method. The parameters are shared with
    /// `self`. With a coefficient of 0, no target is left, so that the outputs have the same bytes
    /// as those of the base model.
    ///
    /// The coefficient is not a parameter, and is not saved.
    ///
    /// # Errors
    /// Fails in the same cases as [`check_coefficient`].
    pub fn with_coefficient(&self, adapter: &dyn Adapter, coefficient: f64) -> Result<Self> {
        check_coefficient(adapter, coefficient)?;
        if coefficient == 0.0 {
            let (modules, blocks) = (IndexMap::new(), IndexMap::new());
            return Ok(Self {
                modules,
                blocks,
                shared: Vec::new(),
                edits: Edits::default(),
                coefficient,
                replacements: Rc::default(),
            });
        }
        if coefficient != 1.0
            && let Some(name) = self.replacements.names().next()
        {
            return Err(Error::new(format!(
                "the adapter's change cannot be multiplied by the coefficient {coefficient}, \
                    because it replaces tensors of the base model, such as `{name}`"
            ))
            .hint("use 0 or 1, or an adapter that was saved without them"));
        }
        Ok(Self {
            modules: self.modules.clone(),
            blocks: self.blocks.clone(),
            shared: self.shared(),
            edits: self.edits.shallow_clone(),
            coefficient,
            replacements: self.replacements.clone(),
        })
    }

    /// The tensors that all modules share, which use the memory of this adapter's.
    pub(super) fn shared(&self) -> Vec<Parameter> {
        let same = |p: &Parameter| Parameter { axis: p.axis, ..Parameter::new(&p.key, &p.tensor) };
        self.shared.iter().map(same).collect()
    }

    /// Returns base + c·(changed − base), where c is the coefficient. `base` and `changed` compute
    /// the output of a target without and with the adapter. With c = 1, the result is `changed`,
    /// without further rounding.
    ///
    /// # Errors
    /// Fails in the same cases as the two functions.
    pub(super) fn blend(
        &self,
        base: impl FnOnce() -> Result<Tensor>,
        changed: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Tensor> {
        if self.coefficient == 1.0 {
            return changed();
        }
        let base = base()?;
        // The sum is rounded to the dtype of the model only once.
        let wide = base.f_to_kind(wide(base.kind()))?;
        let change = changed()?.f_to_kind(wide.kind())?.f_sub(&wide)?;
        Ok(change.f_mul_scalar(self.coefficient)?.f_add(&wide)?.f_to_kind(base.kind())?)
    }

    /// Merges `adapted`, the adapter of a module, into the weights of the module.
    ///
    /// # Errors
    /// Fails if the adapter cannot be merged, or if memory runs out.
    pub(super) fn merge(&self, adapted: &dyn AdaptedLinear, base: &Frozen) -> Result<Frozen> {
        if self.coefficient == 1.0 {
            return adapted.merge(base);
        }
        // The weights are rounded to the dtype of the model only once.
        let wide = base.to_kind(wide(base.kind()))?;
        let merged = adapted.merge(&wide)?;
        let weight = self.blend(|| wide.dense(), || merged.dense())?;
        let Some(changed) = merged.bias() else { return Ok(base.with_weight(weight)) };
        let of_base = || match wide.bias() {
            Some(bias) => Ok(bias.shallow_clone()),
            // The adapter adds a bias to a module that has none.
            None => Ok(changed.f_zeros_like()?),
        };
        let bias = self.blend(of_base, || Ok(changed.shallow_clone()))?;
        Ok(base.with_weight(weight).with_bias(&bias))
    }

    /// True if the output of any block is adapted.
    pub fn changes_blocks(&self) -> bool {
        !self.blocks.is_empty()
    }

    /// The names of the adapted modules and parts, in the model's order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.modules.keys().map(String::as_str)
    }

    /// The parts of `model` that are adapted, in the model's order.
    pub fn parts<'m>(&self, model: &'m ModelInfo) -> impl Iterator<Item = &'m PartInfo> {
        model.parts.iter().filter(|part| self.modules.contains_key(&part.linear.name))
    }

    /// Returns the numbers of adapted modules, parts of modules and blocks as text, such as
    /// `24 modules and 2 blocks`.
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

    /// Indices of the blocks whose output is adapted, in the model's order.
    pub fn blocks(&self) -> impl Iterator<Item = usize> {
        self.blocks.keys().copied()
    }

    /// All adapted targets: modules and parts first, then blocks.
    pub fn changed(&self) -> impl Iterator<Item = AdaptedTarget> {
        let modules = self.modules.iter().map(|(name, m)| AdaptedTarget {
            input: Site::Input(name.clone()),
            output: Site::Output(name.clone()),
            parameters: m.parameters(),
        });
        let blocks = self.blocks.iter().map(|(k, b)| AdaptedTarget {
            input: Site::Block(*k),
            output: Site::Block(*k),
            parameters: b.parameters(),
        });
        modules.chain(blocks)
    }

    /// All tensors of the adapter, named `module.key`, in a fixed order. These are the tensors that
    /// are saved.
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

    /// The trainable tensors among [`tensors`](Self::tensors).
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        self.tensors().into_iter().filter(|(_, t)| t.requires_grad()).collect()
    }

    /// True if all modules share the tensor `name`.
    pub fn is_shared(&self, name: &str) -> bool {
        self.shared.iter().any(|p| p.key == name)
    }

    /// Returns a trained tensor that several targets use, by name; `None` if there is no such
    /// tensor.
    pub fn shared_by_modules(&self) -> Option<String> {
        if let Some(shared) = self.shared.iter().find(|p| p.tensor.requires_grad()) {
            return Some(shared.key.clone());
        }
        let mut owners = HashMap::new();
        for (owner, target) in self.changed().enumerate() {
            for parameter in target.parameters.iter().filter(|p| p.tensor.requires_grad()) {
                let first = *owners.entry(parameter.tensor.data_ptr()).or_insert(owner);
                if first != owner {
                    return Some(parameter.key.clone());
                }
            }
        }
        None
    }

    /// Overwrites every tensor with the tensor of the same name in `values`.
    ///
    /// # Errors
    /// Fails, without changing any tensor, if `values` lacks a tensor, has a tensor that no target
    /// uses, or has a tensor of the wrong shape. Also fails, after changing the tensors, if the
    /// adapter of a module does not accept their values.
    pub fn restore(&self, values: &IndexMap<String, Tensor>) -> Result<()> {
        let mut pending = Vec::new();
        let mut left: Vec<&String> = values.keys().collect();
        for (name, tensor) in self.tensors() {
            left.retain(|key| **key != name);
            let Some(value) = values.get(&name) else {
                return Err(Error::new(format!(
                    "the file does not contain the adapter's tensor `{name}`"
                )));
            };
            if value.size() != tensor.size() {
                return Err(Error::new(format!(
                    "`{name}` has the shape {:?} in the file, but the model needs {:?}",
                    value.size(),
                    tensor.size()
                )));
            }
            pending.push((tensor, value));
        }
        if let Some(name) = left.first() {
            return Err(Error::new(format!(
                "the file contains `{name}`, which does not belong to any target of the adapter \
                    (such tensors: {})",
                left.len()
            )));
        }
        let _guard = tch::no_grad_guard();
        for (mut tensor, value) in pending {
            tensor.f_copy_(value)?;
        }
        for (name, module) in &self.modules {
            module.validate().within(|| format!("cannot restore the adapter of `{name}`"))?;
        }
        Ok(())
    }

    /// Total number of trainable elements.
    pub fn elements(&self) -> i64 {
        self.parameters().iter().map(|(_, t)| t.numel() as i64).sum()
    }

    /// Copies all tensors to the CPU, so that they can be saved. Floating-point numbers are
    /// converted to float32, and integers keep their dtype.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn snapshot(&self) -> Result<Vec<(String, Tensor)>> {
        self.tensors()
            .into_iter()
            .map(|(name, t)| {
                let kind = if t.is_floating_point() { Kind::Float } else { t.kind() };
                Ok((name, t.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(kind)?.f_contiguous()?))
            })
            .collect()
    }
}
