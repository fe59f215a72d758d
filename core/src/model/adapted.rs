//! The adapter of a whole model: one adapted linear module a target.

use indexmap::IndexMap;
use tch::{Device, Kind, Tensor};

use super::Model;
use crate::api::{AdaptedLinear, Adapter, Init, LinearInfo, LinearSite};
use crate::error::{Context, Error, Result};

/// Adapted modules by name, in the model's order.
pub struct Adapted {
    modules: IndexMap<String, Box<dyn AdaptedLinear>>,
}

impl std::fmt::Debug for Adapted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.modules.keys()).finish()
    }
}

impl Adapted {
    /// Attaches `adapter` to its targets among the first `blocks` blocks: what lies past them would get no gradient.
    ///
    /// # Errors
    /// Targets that fit no module, or what the adapter says of one.
    pub fn attach(adapter: &dyn Adapter, model: &Model, blocks: usize, seed: u64) -> Result<Self> {
        let kind = if model.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let layers = adapter.layers_to_transform();
        if let Some(bad) = layers.iter().flatten().find(|l| **l >= model.info().layers) {
            return Err(Error::new(format!("layers_to_transform holds {bad}, but the model's layers are 0 to {}", model.info().layers - 1)));
        }
        let wanted = |l: &LinearInfo| l.layer.is_none_or(|k| k < blocks && layers.as_ref().is_none_or(|some| some.contains(&k)));
        let mut modules = IndexMap::new();
        for info in adapter.targets().resolve(model.info())?.into_iter().filter(|l| wanted(l)) {
            let frozen = model.frozen(&info.name)?;
            let mut init = Init::new(seed, &info.name, kind, model.device());
            let adapted = adapter.attach(&LinearSite { info, frozen }, &mut init).within(|| format!("no adapter for `{}`", info.name))?;
            modules.insert(info.name.clone(), adapted);
        }
        if modules.is_empty() {
            return Err(Error::new(format!("the adapter has no module to change within the first {blocks} blocks that this run computes"))
                .hint("move the taps to later layers, or widen target_modules or layers_to_transform"));
        }
        Ok(Self { modules })
    }

    /// The adapted module of that name.
    pub fn get(&self, name: &str) -> Option<&dyn AdaptedLinear> {
        self.modules.get(name).map(|m| &**m)
    }

    /// The names of the adapted modules, in the model's order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.modules.keys().map(String::as_str)
    }

    /// All trainable tensors, as `module.key`, in a fixed order.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        self.modules.iter().flat_map(|(name, m)| m.parameters().into_iter().map(move |p| (format!("{name}.{}", p.key), p.tensor))).collect()
    }

    /// Overwrites every trainable tensor with the one of the same name in `values`.
    ///
    /// # Errors
    /// A tensor that is not given, one that fits no module, or one of another shape. Nothing is changed then.
    pub fn restore(&self, mut values: IndexMap<String, Tensor>) -> Result<()> {
        let mut pending = Vec::new();
        for (name, tensor) in self.parameters() {
            let Some(value) = values.shift_remove(&name) else {
                return Err(Error::new(format!("the file has no tensor for `{name}`, which would stay at its initial value")));
            };
            if value.size() != tensor.size() {
                return Err(Error::new(format!("`{name}` is {:?} in the file, but the model needs {:?}", value.size(), tensor.size())));
            }
            pending.push((tensor, value));
        }
        if let Some(name) = values.keys().next() {
            return Err(Error::new(format!("the file's `{name}` fits no module that the adapter targets ({} tensors do not)", values.len())));
        }
        let _guard = tch::no_grad_guard();
        for (mut tensor, value) in pending {
            tensor.f_copy_(&value)?;
        }
        Ok(())
    }

    /// Elements in all.
    pub fn elements(&self) -> i64 {
        self.parameters().iter().map(|(_, t)| t.numel() as i64).sum()
    }

    /// The tensors on the CPU in float32, for a file.
    ///
    /// # Errors
    /// Where the copy fails.
    pub fn snapshot(&self) -> Result<Vec<(String, Tensor)>> {
        self.parameters().into_iter().map(|(name, t)| Ok((name, t.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?))).collect()
    }
}
