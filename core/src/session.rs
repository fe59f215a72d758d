//! What every command that computes begins with: a device, a model, its tokenizer and a data set.

use tch::{Cuda, Device, Kind};

use crate::api::{Adapter, Dataset};
use crate::config::{Dtype, Experiment, TrainConfig};
use crate::data;
use crate::error::{Context, Error, Result};
use crate::ffi;
use crate::fingerprint::{self, Fingerprint};
use crate::model::Model;
use crate::model::peft::Saved;
use crate::registry::{Entry, Kind as PluginKind, Make, Registry};
use crate::text::{Limits, Tokenised, Tokenizer, tokenise};
use crate::weights::checkpoint::configuration;
use crate::weights::{Extent, Located, ModelFiles, locate, type_name};

/// A model in memory and data to use it on.
pub struct Session {
    /// The frozen model.
    pub model: Model,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Where the model came from.
    pub source: Located,
    /// The model's fingerprint.
    pub fingerprint: Fingerprint,
    /// The data set.
    pub dataset: Box<dyn Dataset>,
    /// Whether the end-of-sequence text is appended to plain completions.
    pub add_eos: bool,
    /// What was loaded, for a log.
    pub describes: String,
}

/// A model in memory, without data.
pub struct Loaded {
    /// The frozen model.
    pub model: Model,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Where it came from.
    pub source: Located,
    /// The model's fingerprint.
    pub fingerprint: Fingerprint,
    /// What was loaded, for a log.
    pub describes: String,
}

impl Loaded {
    /// The experiment's model, on its device and with its kernels.
    ///
    /// # Errors
    /// A device that is not there, a model that cannot be opened, a tokenizer that does not fit.
    pub fn open(experiment: &Experiment) -> Result<Self> {
        let device = device(&experiment.device)?;
        ffi::set_tf32(experiment.tf32)?;
        ffi::set_deterministic(experiment.deterministic)?;
        // cuDNN's attention has a backward pass of its own that is not reproducible.
        ffi::set_attention_kernels(true, true, !experiment.deterministic, true)?;
        let kind = match experiment.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::Bf16 => Kind::BFloat16,
            Dtype::Auto if device.is_cuda() => Kind::BFloat16,
            Dtype::Auto => Kind::Float,
        };
        // Of a model that is still at the hub, it is found out what it is before its weights are fetched.
        let explained = |e| experiment.sources.explain("model", &experiment.model, e);
        let settings = locate(&experiment.model, Extent::Settings).map_err(explained)?;
        if settings.repository.is_some() && settings.path.is_dir() {
            Model::accepts(&configuration(&settings.path)?).within(|| format!("`{}` is not a model that can be used", experiment.model))?;
        }
        let source = locate(&settings.pinned(&experiment.model), Extent::Whole).map_err(explained)?;
        let files = ModelFiles::open(&source.path).map_err(explained)?;
        let fingerprint = fingerprint::of_model(&source, &files);
        experiment.sources.check_model(&experiment.model, &fingerprint)?;
        let tokenizer = files.tokenizer()?;
        let mut model = Model::load(&files, kind, device)?;
        model.set_attention_kernel(experiment.attention);
        tokenizer.check_fits(model.info().vocab)?;
        Ok(Self { model, tokenizer, source, fingerprint, describes: format!("{} as {} on {}", files.describe(), type_name(kind), device_name(device)) })
    }
}

impl Session {
    /// Opens the data set, then the model: what costs least fails first.
    ///
    /// # Errors
    /// A device that is not there, a data set or a model that cannot be opened, a tokenizer that does not fit.
    pub fn open(experiment: &Experiment, registry: &Registry) -> Result<Self> {
        device(&experiment.device)?;
        let dataset = data::open(experiment, registry)?;
        for change in experiment.sources.check_data(experiment, dataset.as_ref(), registry)? {
            tracing::warn!("not the data that the run recorded: {change}");
        }
        let Loaded { model, tokenizer, source, fingerprint, describes } = Loaded::open(experiment)?;
        Ok(Self { model, tokenizer, source, fingerprint, dataset, add_eos: true, describes })
    }

    /// How long pairs may be.
    pub fn limits(&self, train: &TrainConfig) -> Limits {
        Limits { max_length: train.max_length, max_prompt_length: train.max_prompt_length, add_eos: self.add_eos }
    }

    /// The first `max_pairs` usable pairs of a split, or of a part of one as `train[:750]`, as token ids.
    ///
    /// # Errors
    /// A split that is not there or cannot be read, or one without a usable pair.
    pub fn tokenise(&self, split: &str, train: &TrainConfig, max_pairs: Option<usize>) -> Result<Tokenised> {
        let tokenised = tokenise(&self.tokenizer, data::pairs(self.dataset.as_ref(), split)?, &self.limits(train), max_pairs)?;
        if tokenised.pairs.is_empty() {
            let reasons: Vec<String> = tokenised.dropped.iter().map(|(why, n)| format!("{n}: {why}")).collect();
            let mut e = Error::new(format!("the split `{split}` has no pair that can be used"));
            if !reasons.is_empty() {
                e = e.hint(format!("dropped {}; `train.max_length` is {} tokens", reasons.join(", "), train.max_length));
            }
            return Err(e);
        }
        Ok(tokenised)
    }
}

/// The name by which [`device`] finds it.
fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// The device of that name.
///
/// # Errors
/// A name that is none, or a card that is not there.
pub fn device(name: &str) -> Result<Device> {
    let cards = if Cuda::is_available() { Cuda::device_count() } else { 0 };
    let index = match name {
        "auto" => return Ok(if cards > 0 { Device::Cuda(0) } else { Device::Cpu }),
        "cpu" => return Ok(Device::Cpu),
        "cuda" => Some(0),
        other => other.strip_prefix("cuda:").and_then(|n| n.parse::<i64>().ok()),
    };
    let valid = || ["auto".to_owned(), "cpu".to_owned()].into_iter().chain((0..cards).map(|i| format!("cuda:{i}")));
    match index {
        Some(i) if (0..cards).contains(&i) => Ok(Device::Cuda(i as usize)),
        Some(_) => {
            let e = Error::new(format!("the device `{name}` is not there")).hint(format!("valid: {}", valid().collect::<Vec<_>>().join(", ")));
            Err(if ffi::CUDA_LINKED {
                e
            } else {
                e.hint("this program was built with libtorch for the CPU alone; `cargo xtask setup --cuda` fetches the other, then build again")
            })
        }
        None => Err(Error::unknown("device", name, valid())),
    }
}

/// The adapter of an experiment, its plugin, and values for its parameters where it starts from a saved one.
pub struct ChosenAdapter {
    /// The plugin.
    pub entry: &'static Entry,
    /// Configured.
    pub adapter: Box<dyn Adapter>,
    /// Read from disk.
    pub values: Option<indexmap::IndexMap<String, tch::Tensor>>,
}

impl ChosenAdapter {
    /// From `saved` where there is one, which brings its own configuration; otherwise from the experiment.
    ///
    /// # Errors
    /// A configuration that the adapter refuses.
    pub fn new(experiment: &Experiment, saved: Option<Saved>, registry: &Registry) -> Result<Self> {
        let (entry, json, values) = match saved {
            Some(s) => (s.entry, serde_json::Value::Object(s.config).to_string(), Some(s.values)),
            None => (registry.get(PluginKind::Adapter, &experiment.adapter.name)?, experiment.adapter.json(), None),
        };
        let Make::Adapter { build, .. } = entry.make else { return Err(wrong_kind(entry)) };
        Ok(Self { entry, adapter: build(&json)?, values })
    }
}

fn wrong_kind(entry: &Entry) -> Error {
    Error::internal(format!("`{}` is registered as another kind than it is", entry.about.name))
}
