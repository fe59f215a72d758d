//! Adapters: trainable changes of a frozen model, on disk as PEFT has them.

use tch::Tensor;

use super::{Frozen, Init, LinearInfo, ModelInfo, Parameter, PartInfo, Plugin, Selection, Targets};
use crate::error::{Error, Result};

/// The module, or part of one, that an adapter is attached to.
#[derive(Debug)]
pub struct LinearSite<'a> {
    /// Its name and widths.
    pub info: &'a LinearInfo,
    /// Its frozen weights.
    pub frozen: &'a Frozen,
    /// The tensors that [`Adapter::shared`] made for all modules together.
    pub shared: &'a [Parameter],
}

/// One linear module with its adapter.
pub trait AdaptedLinear: Send {
    /// y of x `[n in]`, base and adapter together. Parameters are float32 whatever x is; a lower
    /// precision casts them.
    ///
    /// # Errors
    /// Fails if shapes or kinds do not fit.
    fn forward(&self, x: &Tensor, base: &Frozen, train: bool) -> Result<Tensor>;

    /// The trainable parameters, in a fixed order.
    fn parameters(&self) -> Vec<Parameter>;

    /// A frozen module without adapter that computes the same, in the kind of `base`.
    ///
    /// # Errors
    /// Fails if the adapter cannot be expressed as one.
    fn merge(&self, base: &Frozen) -> Result<Frozen>;
}

/// A part of a fused module with its adapter.
#[derive(Debug)]
pub struct AdaptedPart<'a> {
    /// Its name, its widths, and its rows in the module.
    pub info: &'a PartInfo,
    /// The parameters of its adapter.
    pub parameters: Vec<Parameter>,
}

impl AdaptedPart<'_> {
    /// The trained tensor of that key.
    ///
    /// # Errors
    /// Fails if its adapter has none.
    pub fn tensor(&self, key: &str) -> Result<Tensor> {
        let found = self.parameters.iter().find(|p| p.key == key).map(|p| p.tensor.shallow_clone());
        found.ok_or_else(|| {
            Error::internal(format!("the adapter of `{}` has no `{key}`", self.info.linear.name))
        })
    }
}

/// A fused module some of whose parts have adapters.
#[derive(Debug)]
pub struct FusedSite<'a> {
    /// The whole module.
    pub module: LinearSite<'a>,
    /// Its adapted parts, one or more, in the order of their rows.
    pub parts: Vec<AdaptedPart<'a>>,
}

/// Adapters of whole modules, which [`Adapter::fuse`] makes from those of their parts.
pub struct Fused {
    /// The configured method whose `peft_config` fits the whole modules. The engine writes their
    /// names itself.
    pub adapter: Box<dyn Adapter>,
    /// The adapter of each whole module, in the order in which the modules were given.
    pub modules: Vec<Box<dyn AdaptedLinear>>,
}

/// The places of the rows of a stream `[n hidden]` in their prompts.
#[derive(Debug)]
pub struct PromptPlaces {
    /// Tokens between the prompt's first one and this one `[n]`, int64; −1 in completions.
    pub from_start: Tensor,
    /// Tokens between this one and the prompt's last one `[n]`, int64; −1 in completions.
    pub from_end: Tensor,
}

/// The output of one block with its adapter.
pub trait AdaptedResidual: Send {
    /// The residual stream `[n hidden]` that the next block reads.
    ///
    /// # Errors
    /// Fails if shapes or kinds do not fit.
    fn forward(&self, h: &Tensor, places: &PromptPlaces) -> Result<Tensor>;

    /// The trainable parameters, in a fixed order.
    fn parameters(&self) -> Vec<Parameter>;
}

/// The linear modules that an adapter changes.
///
/// `#[adapter(…)]` implements it for a struct with the field `target_modules`, which may have
/// `layers_to_transform` besides.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say which linear modules it adapts",
    note = "give the struct a field `target_modules: Targets`, or write `impl TargetModules for \
        {Self} {{}}` if it changes none"
)]
pub trait TargetModules {
    /// The linear modules it changes.
    fn targets(&self) -> Targets {
        Targets::Suffixes(Vec::new())
    }

    /// The blocks whose modules it changes; `None`: all.
    fn layers_to_transform(&self) -> Option<Vec<usize>> {
        None
    }
}

/// A kind of adapter, configured. It changes linear modules, the output of blocks, or both.
pub trait Adapter: TargetModules + Send {
    /// The fields besides the targets that select some of the adapted modules, such as
    /// `rank_pattern`. An entry that matches no adapted module is an error in a new configuration,
    /// and a warning in a saved adapter.
    fn selections(&self) -> Vec<Selection> {
        Vec::new()
    }

    /// Tensors that all modules share, frozen or trained. On disk their key has no module's name
    /// before it.
    ///
    /// # Errors
    /// Targets that cannot share them.
    fn shared(&self, _targets: &[&LinearInfo], _init: &mut Init) -> Result<Vec<Parameter>> {
        Ok(Vec::new())
    }

    /// The adapter of one module.
    ///
    /// # Errors
    /// A configuration that does not fit the module.
    fn attach(&self, site: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>>;

    /// The blocks, from 0, whose output it changes.
    ///
    /// # Errors
    /// A block that the model does not have.
    fn blocks(&self, _model: &ModelInfo) -> Result<Vec<usize>> {
        Ok(Vec::new())
    }

    /// The adapter of the output of block `block`.
    ///
    /// # Errors
    /// A configuration that does not fit the model.
    fn attach_block(
        &self,
        block: usize,
        _model: &ModelInfo,
        _init: &mut Init,
    ) -> Result<Box<dyn AdaptedResidual>> {
        Err(Error::internal(format!("the adapter changes block {block}, but does not say how")))
    }

    /// True if PEFT has this adapter for `Conv1D`, the linear modules of GPT-2, and not only for
    /// `torch.nn.Linear`. The engine then writes `fan_in_fan_out` of
    /// [`peft_config`](Self::peft_config) for the modules that are adapted.
    fn peft_has_conv1d(&self) -> bool {
        false
    }

    /// True if it leaves the model unchanged at the start, to rounding.
    fn starts_as_identity(&self) -> bool {
        true
    }

    /// For fused modules whose parts have adapters, adapters of the whole modules that compute the
    /// same. They are what is saved, because PEFT only adapts whole modules, and what is read back.
    /// `None`: the method cannot be put so; it is saved under the parts' names, which only this
    /// program knows.
    ///
    /// # Errors
    /// Fails if shapes do not fit, or if memory runs out.
    fn fuse(&self, _modules: &[FusedSite<'_>]) -> Result<Option<Fused>> {
        Ok(None)
    }

    /// The method's own fields of PEFT's `adapter_config.json`, as a JSON object. The engine adds
    /// `peft_type`, `target_modules` and what all methods share.
    fn peft_config(&self) -> String;
}

/// A configuration that makes an [`Adapter`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say how it is built",
    label = "write `impl AdapterPlugin for {Self}`"
)]
pub trait AdapterPlugin: Plugin {
    /// Checks the configuration and makes the adapter.
    ///
    /// # Errors
    /// A value out of range.
    fn build(self) -> Result<Box<dyn Adapter>>;

    /// The configuration that an `adapter_config.json` stands for.
    ///
    /// # Errors
    /// A field that this method does not know how to honour.
    fn from_peft(json: &str) -> Result<Self>;

    /// Adjusts the configuration that [`from_peft`](Self::from_peft) returned to the tensors and
    /// the version of a saved adapter, for types whose meaning in PEFT depends on them. Returns
    /// warnings for the user.
    ///
    /// # Errors
    /// Fails if the saved adapter cannot be computed as PEFT computes it.
    fn reconcile(&mut self, _file: &PeftFile<'_>) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

/// A saved adapter in PEFT's format, as [`AdapterPlugin::reconcile`] sees it.
#[derive(Clone, Copy, Debug)]
pub struct PeftFile<'a> {
    /// The text of its `adapter_config.json`.
    pub json: &'a str,
    /// Key and shape of every tensor in its `adapter_model.safetensors`.
    pub shapes: &'a [(String, Vec<i64>)],
}
