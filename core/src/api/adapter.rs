//! Adapters: trainable changes to a frozen model, saved in PEFT's format.

use std::path::PathBuf;

use tch::Tensor;

use super::{Frozen, Init, LinearInfo, ModelInfo, Parameter, PartInfo, Plugin, Selection, Targets};
use crate::error::{Error, Result};

/// A linear module, or one part of a fused module, to which an adapter is attached.
pub struct LinearSite<'a> {
    /// Name and widths of the module.
    pub info: &'a LinearInfo,
    /// Frozen weights of the module.
    pub frozen: &'a Frozen,
    /// The tensors from [`Adapter::shared`], which all modules share.
    pub shared: &'a [Parameter],
    /// The adapters of this module that [`Adapter::sources`] names, in the same order. An entry is
    /// `None` if the source is not set or does not change this module. The slice is empty if the
    /// adapter has no sources, or if its values will be read from a file.
    pub sources: &'a [Option<&'a dyn AdaptedLinear>],
}

impl std::fmt::Debug for LinearSite<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sources: Vec<bool> = self.sources.iter().map(Option::is_some).collect();
        f.debug_struct("LinearSite")
            .field("info", self.info)
            .field("frozen", self.frozen)
            .field("shared", &self.shared)
            .field("sources", &sources)
            .finish()
    }
}

/// A saved adapter that a new adapter is made of. See [`Adapter::sources`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterSource {
    /// Name of the configuration field that has the path, e.g. `plus`.
    pub field: String,
    /// Folder of a finished run, or of an adapter in PEFT's format; `None` if the field is not set.
    pub path: Option<PathBuf>,
    /// True if a new adapter cannot be made without this source.
    pub required: bool,
}

/// The adapter of one linear module.
pub trait AdaptedLinear: Send {
    /// Computes the output `[n out]` of the base module with the adapter, for the input x `[n in]`.
    /// Parameters are float32. Cast them if x has a lower precision.
    ///
    /// `train` is true in the passes of training, which apply dropout. Before each of them, the
    /// engine sets libtorch's generator to a seed of this module, of the step and of the
    /// micro-batch. A second call with the same seed must return the same values.
    ///
    /// # Errors
    /// Fails if the shapes or dtypes do not match.
    fn forward(&self, x: &Tensor, base: &Frozen, train: bool) -> Result<Tensor>;

    /// The parameters, in a fixed order. Those that require no gradient are saved, but not trained.
    /// Their dtype may be an integer.
    fn parameters(&self) -> Vec<Parameter>;

    /// Checks the values of the parameters after they have been read from a file.
    ///
    /// # Errors
    /// Fails if a value would be read as an index, but is out of range.
    fn validate(&self) -> Result<()> {
        Ok(())
    }

    /// Returns the adapter in the form in which it is saved. See [`Adapter::saved_form`].
    ///
    /// # Errors
    /// Fails if memory runs out.
    fn saved_form(&self) -> Result<Option<Box<dyn AdaptedLinear>>> {
        Ok(None)
    }

    /// Merges the adapter into the weights. The returned frozen module computes the same outputs,
    /// and has the dtype of `base`.
    ///
    /// # Errors
    /// Fails if the adapter cannot be merged into a linear module.
    fn merge(&self, base: &Frozen) -> Result<Frozen>;
}

/// One part of a fused module, with the parameters of its adapter. For example, the query rows of a
/// fused QKV projection are a part.
#[derive(Debug)]
pub struct AdaptedPart<'a> {
    /// Name and widths of the part, and its rows in the fused module.
    pub info: &'a PartInfo,
    /// Parameters of the adapter.
    pub parameters: Vec<Parameter>,
}

impl AdaptedPart<'_> {
    /// Returns the parameter whose key is `key`.
    ///
    /// # Errors
    /// Fails if the adapter has no such parameter.
    pub fn tensor(&self, key: &str) -> Result<Tensor> {
        let found = self.parameters.iter().find(|p| p.key == key).map(|p| p.tensor.shallow_clone());
        found.ok_or_else(|| {
            Error::internal(format!(
                "the adapter of `{}` has no parameter `{key}`",
                self.info.linear.name
            ))
        })
    }
}

/// A fused module with adapters on some of its parts.
#[derive(Debug)]
pub struct FusedSite<'a> {
    /// The whole module.
    pub module: LinearSite<'a>,
    /// The adapted parts in the order of their rows. There is at least one.
    pub parts: Vec<AdaptedPart<'a>>,
}

/// The result of [`Adapter::fuse`]: adapters on whole modules instead of on their parts.
pub struct Fused {
    /// The configured method of `modules`. The engine saves the
    /// [`peft_config`](Adapter::peft_config) of this method and adds the names of the modules.
    pub adapter: Box<dyn Adapter>,
    /// The adapter of each whole module, in the order of the modules passed to [`Adapter::fuse`].
    pub modules: Vec<Box<dyn AdaptedLinear>>,
}

/// The positions of the n tokens of a batch within their prompts.
#[derive(Debug)]
pub struct PromptPlaces {
    /// An int64 tensor `[n]`: the distance in tokens from the first token of the prompt. Tokens of
    /// completions have the value −1.
    pub from_start: Tensor,
    /// An int64 tensor `[n]`: the distance in tokens to the last token of the prompt. Tokens of
    /// completions have the value −1.
    pub from_end: Tensor,
}

/// An adapter that changes the output of one block.
pub trait AdaptedResidual: Send {
    /// Returns the changed output of the block. h is the original output. Both tensors are
    /// `[n hidden]`.
    ///
    /// # Errors
    /// Fails if the shapes or dtypes do not match.
    fn forward(&self, h: &Tensor, places: &PromptPlaces) -> Result<Tensor>;

    /// The trainable parameters, in a fixed order.
    fn parameters(&self) -> Vec<Parameter>;
}

/// The linear modules that an adapter changes.
///
/// `#[adapter(…)]` implements this trait for structs with a field `target_modules`, and also uses
/// the fields `layers_to_transform` and `exclude_modules` if they exist.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not implement `TargetModules`",
    note = "add a field `target_modules: Targets` to the struct, or write `impl TargetModules for \
        {Self} {{}}` if it adapts no linear modules"
)]
pub trait TargetModules {
    /// The linear modules that the adapter changes.
    fn targets(&self) -> Targets {
        Targets::Suffixes(Vec::new())
    }

    /// The blocks whose modules the adapter changes; `None` stands for all blocks.
    fn layers_to_transform(&self) -> Option<Vec<usize>> {
        None
    }

    /// Modules that are not adapted although [`targets`](Self::targets) select them. As in PEFT, a
    /// list contains the ends of names, and a pattern must match a whole name.
    fn exclude_modules(&self) -> Targets {
        Targets::default()
    }
}

/// A configured adapter method. It changes linear modules, the outputs of blocks, or both.
pub trait Adapter: TargetModules + Send {
    /// Fields besides the targets that select adapted modules, e.g. `rank_pattern`. If an entry
    /// matches no adapted module, a new configuration is rejected, but a saved adapter only causes
    /// a warning.
    fn selections(&self) -> Vec<Selection> {
        Vec::new()
    }

    /// The saved adapters that a new adapter is made of, such as those of other runs. The engine
    /// loads them and passes the adapters of a module to [`attach`](Self::attach) in
    /// [`LinearSite::sources`]. They may be of any method that only changes linear modules. An
    /// adapter that is itself loaded from a file does not need its sources any more.
    ///
    /// If the targets are an empty list, the adapter is attached to every module that a source
    /// changes. Otherwise, a source must change each of the targets.
    fn sources(&self) -> Vec<AdapterSource> {
        Vec::new()
    }

    /// False if no parameter is trained. The adapter can then be evaluated, saved and merged, but
    /// only with an intervention that takes no steps.
    fn is_trainable(&self) -> bool {
        true
    }

    /// Creates the tensors that all modules share. Each tensor may be frozen or trainable. In the
    /// saved file, its key does not begin with the name of a module.
    ///
    /// # Errors
    /// Fails if the targets cannot share the tensors, e.g. because their widths differ.
    fn shared(&self, _targets: &[&LinearInfo], _init: &mut Init) -> Result<Vec<Parameter>> {
        Ok(Vec::new())
    }

    /// Creates the adapter of one module.
    ///
    /// # Errors
    /// Fails if the configuration does not fit the module.
    fn attach(&self, site: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>>;

    /// Creates the adapter of the embedding, for an adapter that was saved by PEFT. The embedding
    /// is a linear module `[hidden vocab]` whose input is 1 at the place of the token, and 0
    /// elsewhere. The engine merges the adapter into its matrix, and does not train it.
    ///
    /// # Errors
    /// Fails if PEFT does not support this method for embeddings, or if the configuration does not
    /// fit the embedding.
    fn attach_embedding(
        &self,
        _site: &LinearSite<'_>,
        _init: &mut Init,
    ) -> Result<Box<dyn AdaptedLinear>> {
        Err(Error::new("the method does not support adapters of the embedding"))
    }

    /// Indices of the blocks whose output the adapter changes, counted from 0.
    ///
    /// # Errors
    /// Fails if the configuration names a block that the model does not have.
    fn blocks(&self, _model: &ModelInfo) -> Result<Vec<usize>> {
        Ok(Vec::new())
    }

    /// Creates the adapter that changes the output of block `block`.
    ///
    /// # Errors
    /// Fails if the configuration does not fit the model.
    fn attach_block(
        &self,
        block: usize,
        _model: &ModelInfo,
        _init: &mut Init,
    ) -> Result<Box<dyn AdaptedResidual>> {
        Err(Error::internal(format!(
            "the adapter changes the output of block {block}, but does not implement `attach_block`"
        )))
    }

    /// True if PEFT supports this method for `Conv1D`, the class of GPT-2's linear modules. If so,
    /// the engine sets `fan_in_fan_out` in the saved [`peft_config`](Self::peft_config) to true
    /// when a `Conv1D` is adapted.
    fn peft_has_conv1d(&self) -> bool {
        false
    }

    /// True if a new adapter does not change what the model computes, except for rounding.
    fn starts_as_identity(&self) -> bool {
        true
    }

    /// Checks that users may multiply the adapter's change by a coefficient c. For each module or
    /// block, the engine computes y = base(x) + c·(adapted(x) − base(x)), so c = 0 is off, c = 1 is
    /// as trained, and c = −1 is the opposite change. 0 and 1 are always possible.
    ///
    /// # Errors
    /// Fails if multiples have no meaning. For example, the adapter may rotate the inputs of a
    /// module, and a multiple of its change is not a rotation. The error names the method.
    fn accepts_coefficient(&self) -> Result<()> {
        Ok(())
    }

    /// Returns the method in the form in which it is saved, if it differs from the form in which it
    /// is trained. [`AdaptedLinear::saved_form`] then returns the adapter of a module in this form,
    /// which computes the same outputs, and only this form is passed to [`fuse`](Self::fuse).
    fn saved_form(&self) -> Option<Box<dyn Adapter>> {
        None
    }

    /// Converts adapters on parts of fused modules to adapters on the whole modules. The outputs
    /// stay the same. Adapters are saved in this form, because PEFT only adapts whole modules.
    ///
    /// Returns `None` if the method has no such conversion. The adapters are then saved under the
    /// names of the parts, which only reprpo can read.
    ///
    /// # Errors
    /// Fails if the shapes do not match, or if memory runs out.
    fn fuse(&self, _modules: &[FusedSite<'_>]) -> Result<Option<Fused>> {
        Ok(None)
    }

    /// The fields of PEFT's `adapter_config.json` that are specific to the method, as a JSON
    /// object. The engine adds `peft_type`, `target_modules` and the fields that all methods share.
    fn peft_config(&self) -> String;
}

/// A configuration that builds an [`Adapter`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not implement `AdapterPlugin`",
    label = "write `impl AdapterPlugin for {Self}`"
)]
pub trait AdapterPlugin: Plugin {
    /// Checks the configuration and builds the adapter.
    ///
    /// # Errors
    /// Fails if a value is out of range.
    fn build(self) -> Result<Box<dyn Adapter>>;

    /// Reads the configuration from the text of an `adapter_config.json`.
    ///
    /// # Errors
    /// Fails if a field has a value that this method does not support.
    fn from_peft(json: &str) -> Result<Self>;

    /// Adjusts the configuration from [`from_peft`](Self::from_peft). Implement this if the meaning
    /// of a field depends on the saved tensors or on the version of PEFT. Returns warnings for the
    /// user.
    ///
    /// # Errors
    /// Fails if the adapter cannot compute the same outputs as PEFT does for these files.
    fn reconcile(&mut self, _file: &PeftFile<'_>) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

/// The configuration and the tensor shapes of a saved PEFT adapter. [`AdapterPlugin::reconcile`]
/// receives them.
#[derive(Clone, Copy, Debug)]
pub struct PeftFile<'a> {
    /// Text of `adapter_config.json`.
    pub json: &'a str,
    /// Key and shape of every tensor in `adapter_model.safetensors`.
    pub shapes: &'a [(String, Vec<i64>)],
}
