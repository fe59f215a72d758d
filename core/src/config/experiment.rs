//! The experiment. The doc comments are the documentation that `reprpo config schema` prints.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Choice, EvalConfig, Origins, PluginFile, Sources, TrainConfig, written};
use crate::model::attention::Kernel;
use crate::registry::Kind;

/// Precision of the frozen model. Trained parameters are float32 whatever it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// bf16 on CUDA, f32 on the CPU.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// Brain floats of 16 bits.
    Bf16,
}

/// Everything that a run depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// The recipe whose values hold where nothing else was said; none = none.
    pub recipe: Option<String>,
    /// The plugin files that the experiment uses; a configuration may name more, and each as its path alone.
    #[schemars(schema_with = "PluginFile::list_schema")]
    pub plugins: Vec<PluginFile>,
    /// A known model's name, a folder in Hugging Face's layout or a GGUF file.
    pub model: String,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Precision of the frozen model.
    pub dtype: Dtype,
    /// What computes attention.
    pub attention: Kernel,
    /// Let a card round the factors of float32 products to TF32, which is faster and less exact.
    pub tf32: bool,
    /// Use only deterministic kernels, which give the same bytes every time. An operation that has none on a card is an
    /// error that names it. `false` is faster.
    pub deterministic: bool,
    /// Folder of the run; none = a new one below `runs/`.
    pub out: Option<PathBuf>,
    /// Folder of a saved adapter in PEFT's format to start from.
    pub init_adapter: Option<PathBuf>,
    /// Folder of a run's saved transforms to start from; none = new ones.
    pub init_transform: Option<PathBuf>,
    /// The training objective.
    pub intervention: Choice,
    /// The trainable change of the model.
    pub adapter: Choice,
    /// The map of the activations before a loss compares them.
    pub transform: Choice,
    /// Where activations are read.
    pub tap: Choice,
    /// The preference pairs.
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

    /// As TOML that [`read`](Self::read) takes back to the same experiment. A value that is not set reads `"none"`,
    /// because its default may be one that is.
    pub fn to_toml(&self) -> String {
        written::toml(&self.to_json(), &Origins::default())
    }

    /// As JSON.
    pub fn to_json(&self) -> Value {
        // Strings, numbers, lists and maps with string keys: nothing that serde_json refuses.
        serde_json::to_value(self).unwrap_or_default()
    }
}
