//! The types of the experiment. Their doc comments are the documentation that `reprpo config schema` prints.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Layering, Origins, PluginFile, Sources, written};
use crate::error::Result;
use crate::model::attention::Kernel;
use crate::registry::{Kind, Registry};

/// A chosen plugin: its name, and beside it the plugin's own fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Choice {
    /// Which plugin.
    pub name: String,
    /// Its configuration, complete.
    #[serde(flatten)]
    pub config: Map<String, Value>,
}

impl Choice {
    /// The configuration as the JSON text that the registry takes.
    pub fn json(&self) -> String {
        Value::Object(self.config.clone()).to_string()
    }
}

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

/// How the learning rate moves after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Stays.
    Constant,
    /// Falls in a line to 0 at the last step.
    #[default]
    Linear,
    /// Falls along half a cosine to 0.
    Cosine,
    /// Warm-up, stable, decay: stays, and falls in a line over the share `decay` at the end.
    Wsd,
}

/// What the policy is compared with while it is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReferenceModel {
    /// The model as training finds it: the base, with `init_adapter` where one is given, as TRL has it.
    #[default]
    Start,
    /// The base model, whatever training starts from.
    Base,
}

/// What two completions are compared by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Score {
    /// Mean log-probability of a completion token.
    #[default]
    Mean,
    /// Log-probability of the whole completion.
    Sum,
}

/// How the run trains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Peak learning rate of the adapter. The chosen intervention can bring its own default, and the chosen adapter can
    /// multiply the default by a factor.
    pub lr: f64,
    /// How the learning rate moves after the warm-up.
    pub schedule: Schedule,
    /// Linear warm-up: a share of all steps where below 1, else a number of steps.
    pub warmup: f64,
    /// Share of all steps over which `wsd` decays; the other schedules do not read it.
    pub decay: f64,
    /// Pairs in a micro-batch.
    pub batch: usize,
    /// Micro-batches in an optimiser step.
    pub accumulate: usize,
    /// Passes over the training pairs; may be a fraction.
    pub epochs: f64,
    /// Largest global norm of the gradient; 0 = no clipping.
    pub clip: f64,
    /// Decoupled weight decay of AdamW, per unit of learning rate.
    pub weight_decay: f64,
    /// AdamW's decay of the first moment.
    pub beta1: f64,
    /// AdamW's decay of the second moment.
    pub beta2: f64,
    /// AdamW's addition to the denominator.
    pub eps: f64,
    /// Draw the pairs in a new random order every epoch.
    pub shuffle: bool,
    /// Most tokens of prompt and completion together.
    pub max_length: usize,
    /// Most tokens of the prompt, the last ones are kept; none = as `max_length` leaves it.
    pub max_prompt_length: Option<usize>,
    /// The split to train on, or a part of one: `train[:750]`, `train[10%:20%]`, `train[-100:]`, several with `+`.
    pub split: String,
    /// Train on the first so many pairs; none = all.
    pub max_pairs: Option<usize>,
    /// Seed of initial values, order and dropout.
    pub seed: u64,
    /// Train the transform's own parameters together with the adapter.
    pub transform: bool,
    /// Peak learning rate of the transform; none = `lr`.
    pub transform_lr: Option<f64>,
    /// One transform for all taps, which then need the same width, instead of one each.
    pub share_transform: bool,
    /// What the policy is compared with.
    pub reference: ReferenceModel,
    /// Optimiser steps between two checkpoints; none = only when interrupted.
    pub checkpoint_every: Option<usize>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            lr: 5e-4,
            schedule: Schedule::Linear,
            warmup: 0.03,
            decay: 0.15,
            batch: 4,
            accumulate: 2,
            epochs: 1.0,
            clip: 1.0,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            shuffle: true,
            max_length: 512,
            max_prompt_length: None,
            split: "train".to_owned(),
            max_pairs: None,
            seed: 0,
            transform: true,
            transform_lr: None,
            share_transform: false,
            reference: ReferenceModel::default(),
            checkpoint_every: None,
        }
    }
}

/// How the run is judged, against the base model and per split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// Evaluate after training.
    pub enabled: bool,
    /// Score the first so many pairs of each split; none = all.
    pub max_pairs: Option<usize>,
    /// What two completions are compared by.
    pub score: Score,
    /// Which splits, or parts of them as in `train.split`; none = all that the data set has.
    pub splits: Option<Vec<String>>,
    /// Most tokens in one forward pass.
    pub tokens: usize,
    /// Let the model continue so many prompts, before and after training, to hear whether it still speaks; 0 = none. A
    /// sweep has none where this is not set.
    pub completions: usize,
    /// Most tokens of such a completion.
    pub completion_tokens: usize,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self { enabled: true, max_pairs: Some(100), score: Score::Mean, splits: None, tokens: 2048, completions: 2, completion_tokens: 48 }
    }
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

impl Experiment {
    /// The values that hold whatever plugins there are. The plugins' names and the model are the program's to choose.
    pub(super) fn base() -> Value {
        json!({
            "recipe": null, "plugins": [], "device": "auto", "dtype": Dtype::default(), "attention": Kernel::default(), "tf32": false, "deterministic": true, "out": null,
            "init_adapter": null, "init_transform": null,
            "train": TrainConfig::default(), "eval": EvalConfig::default(),
        })
    }

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

    /// The experiment that a run's `config.toml` describes.
    ///
    /// # Errors
    /// A file that cannot be read, or that holds what this program's plugins do not know.
    pub fn read(path: &Path, registry: &Registry) -> Result<Self> {
        let mut layers = Layering::new(registry);
        layers.file(path)?;
        Ok(layers.resolve()?.experiment)
    }
}

/// The JSON schema of the whole experiment, with the fields of every plugin.
///
/// # Errors
/// Where a plugin's description of its own configuration fails.
pub fn schema(registry: &Registry) -> Result<Value> {
    let mut root = schemars::schema_for!(Experiment).to_value();
    for kind in Kind::ALL {
        let choices: Vec<Value> = registry
            .of(kind)
            .map(|entry| {
                let mut schema = entry.about().schema()?;
                if let Some(defs) = schema.get_mut("$defs").map(Value::take) {
                    // References start at the document's root, where two plugins may have a type of one name.
                    let prefix = format!("{}-{}-", kind.name(), entry.about().name);
                    rename_references(&mut schema, &prefix);
                    for (name, mut definition) in defs.as_object().cloned().unwrap_or_default() {
                        rename_references(&mut definition, &prefix);
                        root["$defs"][format!("{prefix}{name}")] = definition;
                    }
                }
                if let Some(map) = schema.as_object_mut() {
                    map.remove("$schema");
                    map.remove("$defs");
                    map.insert("title".into(), json!(entry.about().name));
                    map.insert("description".into(), json!(entry.about().summary));
                    map.insert("required".into(), json!(["name"]));
                }
                schema["properties"]["name"] = json!({ "const": entry.about().name });
                Ok(schema)
            })
            .collect::<Result<_>>()?;
        root["properties"][kind.name()]["anyOf"] = Value::Array(choices);
        if let Some(section) = root["properties"][kind.name()].as_object_mut() {
            section.remove("$ref");
        }
    }
    if let Some(map) = root.as_object_mut() {
        // A file may leave any of it to the layers below.
        map.remove("required");
        if let Some(defs) = map.get_mut("$defs").and_then(Value::as_object_mut) {
            defs.remove("Choice");
        }
    }
    Ok(root)
}

fn rename_references(schema: &mut Value, prefix: &str) {
    match schema {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(target) if key == "$ref" => *target = target.replace("#/$defs/", &format!("#/$defs/{prefix}")),
                    other => rename_references(other, prefix),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|v| rename_references(v, prefix)),
        _ => {}
    }
}
