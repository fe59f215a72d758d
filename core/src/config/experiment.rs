//! The configuration of an experiment. The doc comments of the fields appear in the output of
//! `reprpo config schema`. The schema extension `flags` declares a field's command-line flags.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::flag::{Flag, Group};
use super::{
    CacheConfig, Choice, Dtype, EvalConfig, Origins, PluginFile, Sources, TrainConfig, toml_text,
};
use crate::model::attention::Kernel;
use crate::registry::Kind;

/// The complete configuration of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// The recipe whose values override the defaults; none = no recipe.
    #[schemars(extend("flags" = [
        Flag::new(Group::Method, "NAME").help(
            "Recipe with published values, which all other settings override.",
        ),
    ]))]
    pub recipe: Option<String>,
    /// The plugin files that the experiment uses. In a configuration file, this list may include
    /// unused files, and an entry may be a path instead of a table.
    #[schemars(schema_with = "PluginFile::list_schema")]
    pub plugins: Vec<PluginFile>,
    /// Name of a known model, a folder in Hugging Face's layout, a GGUF file, or a Hugging Face
    /// repository.
    #[schemars(extend("flags" = [
        Flag::new(Group::Model, "ID|DIR|FILE").help(
            "Model: the name of a known model (see `reprpo list models`), a folder in Hugging \
             Face's layout, a GGUF file, or a Hugging Face repository (`org/name`, \
             `org/name@revision` or `org/name/FILE.gguf`).",
        ),
    ]))]
    pub model: String,
    /// Device to compute on: `auto`, `cpu`, `cuda` or `cuda:N`.
    #[schemars(extend("flags" = [Flag::new(Group::Model, "DEVICE")]))]
    pub device: String,
    /// Precision of the frozen model. f16 is not one of the choices, because its range is too small
    /// for the states and gradients that methods read; a model that is stored in f16 is converted.
    #[schemars(extend("flags" = [
        Flag::new(Group::Model, "DTYPE").help("Precision of the frozen model: `auto`, `f32` or \
            `bf16`."),
    ]))]
    pub dtype: Dtype,
    /// Keep the frozen matrices of a GGUF file as the file stores them, and decode each matrix when
    /// it is used. All results stay the same. The model takes less memory and more time. Only on
    /// the CPU.
    #[schemars(extend("flags" = [
        Flag::switch(Group::Model, "quantize-base", "true").help(
            "Keep the frozen matrices of a GGUF file as the file stores them. All results stay \
             the same; the model takes less memory and more time. Only on the CPU.",
        ),
    ]))]
    pub quantize_base: bool,
    /// Divide the frozen matrices among the ranks, so that each rank keeps a part of them. A matrix
    /// is gathered from all ranks while the ones before it are used. All results stay the same; the
    /// model needs less memory on each rank, and more communication. Has no effect on one rank.
    #[schemars(extend("flags" = [
        Flag::switch(Group::Model, "shard-base", "true").help(
            "Divide the frozen matrices among the ranks of torchrun or srun. All results stay the \
             same; the model takes less memory on each rank and more time.",
        ),
    ]))]
    pub shard_base: bool,
    /// The implementation of attention.
    pub attention: Kernel,
    /// Allow TF32 in float32 matrix products on a GPU, which is faster and less precise.
    pub tf32: bool,
    /// Use only deterministic kernels, which give the same bytes every time. An operation without a
    /// deterministic kernel is an error. `false` is faster.
    pub deterministic: bool,
    /// Folder of the run; none = a new folder in `runs/`.
    #[schemars(extend("flags" = [Flag::new(Group::Output, "DIR")]))]
    pub out: Option<PathBuf>,
    /// Saved adapter in PEFT format to start from: a folder or a Hugging Face repository.
    #[schemars(extend("flags" = [
        Flag::new(Group::Start, "ID|DIR").under("Model").help(
            "Start from a saved adapter in PEFT format: a folder or a Hugging Face repository.",
        ),
    ]))]
    pub init_adapter: Option<PathBuf>,
    /// Folder of saved transforms to start from; none = start with new transforms.
    #[schemars(extend("flags" = [
        Flag::new(Group::Start, "DIR").under("Method").help(
            "Start from the transforms of an earlier run, given as its `transform` folder.",
        ),
    ]))]
    pub init_transform: Option<PathBuf>,
    /// The training objective.
    #[schemars(extend("flags" = [Flag::new(Group::Method, "NAME")]))]
    pub intervention: Choice,
    /// The trainable change to the model.
    #[schemars(extend("flags" = [Flag::new(Group::Method, "NAME")]))]
    pub adapter: Choice,
    /// The map that is applied to activations before a loss compares them.
    #[schemars(extend("flags" = [Flag::new(Group::Method, "NAME")]))]
    pub transform: Choice,
    /// The location in the model where activations are read.
    #[schemars(extend("flags" = [
        Flag::new(Group::Method, "NAME"),
        Flag::new(Group::Method, "SPEC").of("layers").hyphens().help(
            "Layers that the tap reads, e.g. `10,20`, `-2,-1`, `0.33,0.66` or `range(.3,-2)`.",
        ),
    ]))]
    pub tap: Choice,
    /// The preference pairs.
    #[schemars(extend("flags" = [
        Flag::new(Group::Data, "NAME|FILE|ID").help(
            "Preference pairs: the name of a data set, `NAME:PART`, a file, `-` for standard \
             input, or a Hugging Face repository such as `org/name`.",
        ),
        Flag::new(Group::Data, "DIR").of("data_dir").help("Folder with the data set's files."),
    ]))]
    pub dataset: Choice,
    /// The settings of the training loop.
    pub train: TrainConfig,
    /// The settings of the evaluation.
    pub eval: EvalConfig,
    /// The values that are kept for later runs.
    pub cache: CacheConfig,
    /// The origins of the values, for error messages and fingerprint checks.
    #[serde(skip)]
    pub sources: Sources,
}

/// The built-in defaults. The model and the plugins are left empty, because the binary chooses
/// them.
impl Default for Experiment {
    fn default() -> Self {
        Self {
            recipe: None,
            plugins: Vec::new(),
            model: String::new(),
            device: "auto".to_owned(),
            dtype: Dtype::default(),
            quantize_base: false,
            shard_base: false,
            attention: Kernel::default(),
            tf32: false,
            deterministic: true,
            out: None,
            init_adapter: None,
            init_transform: None,
            intervention: Choice::default(),
            adapter: Choice::default(),
            transform: Choice::default(),
            tap: Choice::default(),
            dataset: Choice::default(),
            train: TrainConfig::default(),
            eval: EvalConfig::default(),
            cache: CacheConfig::default(),
            sources: Sources::default(),
        }
    }
}

impl Experiment {
    /// The plugin chosen for `kind`.
    pub fn choice(&self, kind: Kind) -> &Choice {
        match kind {
            Kind::Intervention => &self.intervention,
            Kind::Adapter => &self.adapter,
            Kind::Transform => &self.transform,
            Kind::Tap => &self.tap,
            Kind::Dataset => &self.dataset,
        }
    }

    /// Names the intervention and the adapter, for messages.
    pub fn methods(&self) -> String {
        format!("intervention `{}` and adapter `{}`", self.intervention.name, self.adapter.name)
    }

    /// Describes the controls in the experiment that change the labels or the prompts, for the
    /// title of its tables.
    pub fn controls(&self) -> Vec<String> {
        let mut controls = Vec::new();
        if self.train.swap_labels > 0.0 {
            let percent = 100.0 * self.train.swap_labels;
            controls.push(format!("labels of {percent} % of the training pairs swapped"));
        }
        if self.eval.instruction.is_some() {
            controls.push("with an instruction in the prompts".to_owned());
        }
        controls
    }

    /// Mutable version of [`choice`](Self::choice).
    pub(super) fn choice_mut(&mut self, kind: Kind) -> &mut Choice {
        match kind {
            Kind::Intervention => &mut self.intervention,
            Kind::Adapter => &mut self.adapter,
            Kind::Transform => &mut self.transform,
            Kind::Tap => &mut self.tap,
            Kind::Dataset => &mut self.dataset,
        }
    }

    /// Writes the experiment as TOML, which [`read`](Self::read) can read back. An unset value is
    /// written as `"none"`, because leaving it out would select the default.
    pub fn to_toml(&self) -> String {
        toml_text::write(&self.to_json(), &Origins::default())
    }

    /// Writes the experiment as JSON.
    pub fn to_json(&self) -> Value {
        // This cannot fail, because the experiment only contains strings, numbers, booleans, lists,
        // and maps with string keys.
        serde_json::to_value(self).unwrap_or_default()
    }
}
