//! The experiment. The doc comments are the documentation that `reprpo config schema` prints, and
//! `flags` declares the flags of a field on the command line.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::flag::{Flag, Group};
use super::{Choice, Dtype, EvalConfig, Origins, PluginFile, Sources, TrainConfig, written};
use crate::model::attention::Kernel;
use crate::registry::Kind;

/// Everything that a run depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// The recipe whose values hold where nothing else was said; none = none.
    #[schemars(extend("flags" = [
        Flag::new(Group::Method, "NAME").help(
            "Values that belong together, as published: everything else said wins over them.",
        ),
    ]))]
    pub recipe: Option<String>,
    /// The plugin files that the experiment uses; a configuration may name more, and each as its
    /// path alone.
    #[schemars(schema_with = "PluginFile::list_schema")]
    pub plugins: Vec<PluginFile>,
    /// A known model's name, a folder in Hugging Face's layout or a GGUF file.
    #[schemars(extend("flags" = [
        Flag::new(Group::Model, "ID|DIR|FILE").help(
            "A known model's name, a folder in Hugging Face's layout, a GGUF file, or a \
                repository of the hub: \
             `org/name`, `org/name@revision`, `org/name/FILE.gguf`.",
        ),
    ]))]
    pub model: String,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    #[schemars(extend("flags" = [Flag::new(Group::Model, "DEVICE")]))]
    pub device: String,
    /// Precision of the frozen model. f16 is not one of the choices, because its range is too small
    /// for the states and gradients that methods read; a model that is stored in f16 is converted.
    #[schemars(extend("flags" = [
        Flag::new(Group::Model, "DTYPE").help("Precision of the frozen model: `auto`, `f32` or \
            `bf16`."),
    ]))]
    pub dtype: Dtype,
    /// What computes attention.
    pub attention: Kernel,
    /// Let a card round the factors of float32 products to TF32, which is faster and less exact.
    pub tf32: bool,
    /// Use only deterministic kernels, which give the same bytes every time. An operation that has
    /// none on a card is an error that names it. `false` is faster.
    pub deterministic: bool,
    /// Folder of the run; none = a new one below `runs/`.
    #[schemars(extend("flags" = [Flag::new(Group::Output, "DIR")]))]
    pub out: Option<PathBuf>,
    /// Folder of a saved adapter in PEFT's format to start from.
    #[schemars(extend("flags" = [
        Flag::new(Group::Start, "ID|DIR").under("Model").help(
            "Start from a saved adapter in PEFT's format: a folder, or a repository of the hub.",
        ),
    ]))]
    pub init_adapter: Option<PathBuf>,
    /// Folder of a run's saved transforms to start from; none = new ones.
    #[schemars(extend("flags" = [
        Flag::new(Group::Start, "DIR").under("Method").help(
            "Start from the transforms of an earlier run, its `transform` folder.",
        ),
    ]))]
    pub init_transform: Option<PathBuf>,
    /// The training objective.
    #[schemars(extend("flags" = [Flag::new(Group::Method, "NAME")]))]
    pub intervention: Choice,
    /// The trainable change of the model.
    #[schemars(extend("flags" = [Flag::new(Group::Method, "NAME")]))]
    pub adapter: Choice,
    /// The map of the activations before a loss compares them.
    #[schemars(extend("flags" = [Flag::new(Group::Method, "NAME")]))]
    pub transform: Choice,
    /// Where activations are read.
    #[schemars(extend("flags" = [
        Flag::new(Group::Method, "NAME"),
        Flag::new(Group::Method, "SPEC").of("layers").hyphens().help(
            "Which layers the tap reads: `10,20`, `-2,-1`, `0.33,0.66`, `range(.3,-2)`.",
        ),
    ]))]
    pub tap: Choice,
    /// The preference pairs.
    #[schemars(extend("flags" = [
        Flag::new(Group::Data, "NAME|FILE|ID").help(
            "The preference pairs: a name, `NAME:PART`, a file, `-` for standard input, or a \
                repository of the \
             hub, as `org/name`.",
        ),
        Flag::new(Group::Data, "DIR").of("data_dir").help("Where the data set's files lie."),
    ]))]
    pub dataset: Choice,
    /// How the run trains.
    pub train: TrainConfig,
    /// How the run is judged.
    pub eval: EvalConfig,
    /// The origins of its values, for errors about paths.
    #[serde(skip)]
    pub sources: Sources,
}

/// The engine's own values. The model and the plugins are empty, because the program chooses them.
impl Default for Experiment {
    fn default() -> Self {
        Self {
            recipe: None,
            plugins: Vec::new(),
            model: String::new(),
            device: "auto".to_owned(),
            dtype: Dtype::default(),
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

    /// The intervention and the adapter, in words.
    pub fn methods(&self) -> String {
        format!("intervention `{}` and adapter `{}`", self.intervention.name, self.adapter.name)
    }

    /// The plugin chosen for `kind`, to be changed.
    pub(super) fn choice_mut(&mut self, kind: Kind) -> &mut Choice {
        match kind {
            Kind::Intervention => &mut self.intervention,
            Kind::Adapter => &mut self.adapter,
            Kind::Transform => &mut self.transform,
            Kind::Tap => &mut self.tap,
            Kind::Dataset => &mut self.dataset,
        }
    }

    /// As TOML that [`read`](Self::read) takes back to the same experiment. A value that is not set
    /// reads `"none"`, because its default may be one that is.
    pub fn to_toml(&self) -> String {
        written::toml(&self.to_json(), &Origins::default())
    }

    /// As JSON.
    pub fn to_json(&self) -> Value {
        // Strings, numbers, lists and maps with string keys: nothing that serde_json refuses.
        serde_json::to_value(self).unwrap_or_default()
    }
}
