//! Opening an experiment: its device, model, tokenizer and data set.

mod precision;

use std::path::Path;
use std::sync::Once;

use serde_json::Value;
use tch::{Cuda, Device};

use crate::api::Dataset;
use crate::config::{Experiment, TrainConfig};
use crate::data;
use crate::error::{Context, Error, Result};
use crate::ffi::{self, CudaLibrary, libtorch_hint, load_cuda};
use crate::files::read_json;
use crate::fingerprint::{self, Fingerprint};
use crate::generate::stops;
use crate::model::Model;
use crate::reference::Source;
use crate::registry::Registry;
use crate::text::{Limits, SkipReason, TokenPair, Tokenised, Tokenizer, instructed, tokenise};
use crate::weights::checkpoint::configuration;
use crate::weights::{Extent, Located, ModelFiles, locate, type_name};
use crate::world;

pub use precision::precision;

/// An opened experiment: a loaded model, its tokenizer and a data set.
pub struct Session {
    /// The frozen model.
    pub model: Model,
    /// The model's tokenizer.
    pub tokenizer: Tokenizer,
    /// Location of the model's files.
    pub source: Located,
    /// The model's fingerprint.
    pub fingerprint: Fingerprint,
    /// The base model as a reference whose values can be cached.
    pub reference: Source,
    /// The data set.
    pub dataset: Box<dyn Dataset>,
    /// Ids of the tokens that end generated text.
    pub stops: Vec<i64>,
    /// True if the end-of-sequence token is appended to plain completions.
    pub add_eos: bool,
    /// True if the tokenizer's special tokens, such as BOS, are added to plain text.
    pub special_tokens: bool,
    /// The model's context length in tokens, if its configuration states it.
    pub context: Option<usize>,
    /// Description of the model, its precision and its device, for the log.
    pub describes: String,
}

/// A loaded model with its tokenizer, without data.
pub struct LoadedModel {
    /// The frozen model.
    pub model: Model,
    /// The model's tokenizer.
    pub tokenizer: Tokenizer,
    /// Ids of the tokens that end generated text.
    pub stops: Vec<i64>,
    /// Location of the model's files.
    pub source: Located,
    /// The model's context length in tokens, if its configuration states it.
    pub context: Option<usize>,
    /// The model's fingerprint.
    pub fingerprint: Fingerprint,
    /// The model as a reference whose values can be cached.
    pub reference: Source,
    /// Description of the model, its precision and its device, for the log.
    pub describes: String,
}

impl LoadedModel {
    /// Loads the experiment's model on its device, with its precision and kernels.
    ///
    /// # Errors
    /// Fails if the device is not available, or if the model or its tokenizer cannot be read.
    pub fn open(experiment: &Experiment) -> Result<Self> {
        let device = device(&experiment.device)?;
        ffi::set_tf32(experiment.tf32)?;
        ffi::set_deterministic(experiment.deterministic)?;
        let (kind, remark) = precision(experiment.dtype, device);
        // Check the configuration of a hub model before downloading its weights, so that an
        // unsupported architecture fails early.
        let explained = |e| experiment.sources.explain("model", &experiment.model, e);
        let settings = locate(&experiment.model, Extent::Settings).map_err(explained)?;
        if settings.repository.is_some() && settings.path.is_dir() {
            Model::accepts(&configuration(&settings.path)?)
                .within(|| format!("cannot use the model `{}`", experiment.model))?;
        }
        let source =
            locate(&settings.pinned(&experiment.model), Extent::Whole).map_err(explained)?;
        let files = ModelFiles::open(&source.path).map_err(explained)?;
        let fingerprint = fingerprint::of_model(&source, &files);
        experiment.sources.check_model(&experiment.model, &fingerprint)?;
        let world = world::current();
        world.agree("the model", fingerprint.sha256.clone())?;
        world.connect_cards(device)?;
        let tokenizer = files.tokenizer()?;
        let mut model = if experiment.quantize_base {
            if device != Device::Cpu {
                return Err(Error::new(format!(
                    "`quantize_base` only works on the CPU, but the device is `{}`",
                    device_name(device)
                ))
                .hint("leave out `--quantize-base`, or add `--device cpu`"));
            }
            if experiment.shard_base {
                return Err(Error::new("`quantize_base` and `shard_base` cannot be combined")
                    .hint("leave out `--quantize-base` or `--shard-base`"));
            }
            Model::load_as_stored(&files, kind)?
        } else if experiment.shard_base {
            Model::load_sharded(&files, kind, device)?
        } else {
            Model::load(&files, kind, device)?
        };
        model.set_attention_kernel(experiment.attention);
        model.set_deterministic(experiment.deterministic);
        let rows = model.info().vocab;
        let stops = stops(&tokenizer, &files.ends()?)
            .into_iter()
            .filter(|id| (0..rows).contains(id))
            .collect();
        let tokenizer = tokenizer.for_embedding(rows);
        let context = context(files.config());
        let mut describes =
            format!("{} as {} on {}", files.describe(), type_name(kind), device_name(device));
        if experiment.quantize_base {
            let kept = model.stored_matrices();
            describes += &format!(
                "\n{} of {} matrices stay as the file stores them ({})",
                kept.matrices,
                kept.all(),
                kept.memory()
            );
        }
        if experiment.shard_base {
            describes += &match model.is_sharded() {
                true => format!(
                    "\nthe {} matrices are divided among {} ranks ({} on each rank)",
                    model.stored_matrices().matrices,
                    model.world().size(),
                    model.stored_matrices().memory()
                ),
                false => "\n`shard_base` has no effect on a single rank".to_owned(),
            };
        }
        if let Some(remark) = remark {
            describes += &format!("\n{remark}");
        }
        let weights = fingerprint::of_weights(&fingerprint, &source, &files)?;
        let reference = Source::of_base(experiment, &model, &weights);
        Ok(Self { model, tokenizer, stops, source, context, fingerprint, reference, describes })
    }
}

impl Session {
    /// Opens the data set and then the model, so that errors in the data are found before the model
    /// is loaded.
    ///
    /// # Errors
    /// Fails if the device is not available, or if the data set, the model or its tokenizer cannot
    /// be read.
    pub fn open(experiment: &Experiment, registry: &Registry) -> Result<Self> {
        device(&experiment.device)?;
        let dataset = data::open(experiment, registry)?;
        for change in
            experiment.sources.check_data(&experiment.dataset, dataset.as_ref(), registry)?
        {
            tracing::warn!("the data has changed since the run recorded it: {change}");
        }
        let LoadedModel {
            model,
            tokenizer,
            stops,
            source,
            context,
            fingerprint,
            reference,
            describes,
        } = LoadedModel::open(experiment)?;
        Ok(Self {
            model,
            tokenizer,
            stops,
            source,
            fingerprint,
            reference,
            dataset,
            add_eos: true,
            special_tokens: true,
            context,
            describes,
        })
    }

    /// The settings for tokenising pairs, including their maximum length.
    pub fn limits(&self, train: &TrainConfig) -> Limits {
        Limits {
            max_length: train.max_length,
            max_prompt_length: train.max_prompt_length,
            add_eos: self.add_eos,
            special_tokens: self.special_tokens,
            context: self.context,
        }
    }

    /// Tokenises the first `max_pairs` usable pairs of a split or of a slice such as `train[:750]`.
    /// The result also lists the dropped pairs. Dropping all pairs is not an error.
    ///
    /// # Errors
    /// Fails if the split does not exist or cannot be read, if the tokenizer or its chat template
    /// rejects a pair, or if a pair has more tokens than the model supports.
    pub fn tokenise_all(
        &self,
        split: &str,
        train: &TrainConfig,
        max_pairs: Option<usize>,
    ) -> Result<Tokenised> {
        self.tokenise_of(self.dataset.as_ref(), split, train, max_pairs)
    }

    /// Does the same as [`tokenise_all`](Self::tokenise_all) for another data set.
    ///
    /// # Errors
    /// Fails in the same cases as [`tokenise_all`](Self::tokenise_all).
    pub fn tokenise_of(
        &self,
        dataset: &dyn Dataset,
        split: &str,
        train: &TrainConfig,
        max_pairs: Option<usize>,
    ) -> Result<Tokenised> {
        let rows = data::rows(dataset, split)?;
        let within = || format!("cannot use the split `{split}`");
        let tokenised =
            tokenise(&self.tokenizer, rows, &self.limits(train), max_pairs).within(within)?;
        self.check_lengths(&tokenised.pairs).within(within)?;
        Ok(tokenised)
    }

    /// Adds the instruction to the prompts of `base`, the tokenised pairs of a split of `dataset`.
    ///
    /// # Errors
    /// Fails if the split cannot be read, if a pair cannot be used with the instruction, or if it
    /// then has more tokens than the model supports.
    pub fn instructed(
        &self,
        dataset: &dyn Dataset,
        split: &str,
        train: &TrainConfig,
        base: &Tokenised,
        instruction: &str,
    ) -> Result<Vec<TokenPair>> {
        let within = || format!("cannot use `eval.instruction` with the split `{split}`");
        let rows = data::rows(dataset, split)?;
        let pairs = instructed(&self.tokenizer, rows, &self.limits(train), base, instruction)
            .within(within)?;
        self.check_lengths(&pairs).within(within)?;
        Ok(pairs)
    }

    /// Checks that the model supports the lengths of the pairs.
    fn check_lengths(&self, pairs: &[TokenPair]) -> Result<()> {
        let Some(most) = self.model.max_tokens() else { return Ok(()) };
        let Some(pair) = pairs.iter().find(|pair| pair.longest() > most) else { return Ok(()) };
        let text = format!(
            "the pair in row {} has {} tokens, but the model supports at most {most}",
            pair.row,
            pair.longest()
        );
        Err(Error::new(text).hint(format!("set `train.max_length={most}`")))
    }

    /// Tokenises the first `max_pairs` usable pairs of a split or of a slice such as `train[:750]`.
    ///
    /// # Errors
    /// Fails if the split has no usable pairs, and in the same cases as
    /// [`tokenise_all`](Self::tokenise_all).
    pub fn tokenise(
        &self,
        split: &str,
        train: &TrainConfig,
        max_pairs: Option<usize>,
    ) -> Result<Tokenised> {
        let tokenised = self.tokenise_all(split, train, max_pairs)?;
        if tokenised.pairs.is_empty() {
            let reasons: Vec<String> =
                tokenised.reasons().iter().map(|(why, n)| format!("{n}: {why}")).collect();
            let mut e = Error::new(format!("the split `{split}` has no usable pairs"));
            if !reasons.is_empty() {
                e = e.hint(format!("dropped {}", reasons.join(", ")));
            }
            if tokenised.reasons().contains_key(&SkipReason::PromptTooLong) {
                e = e.hint(format!(
                    "raise `train.max_length`, which is {} tokens",
                    train.max_length
                ));
            }
            return Err(e);
        }
        Ok(tokenised)
    }
}

/// The context length of a model in tokens, if its configuration states it.
///
/// For rotary embeddings of type `dynamic`, this is `factor` times `max_position_embeddings`,
/// because the positions are scaled for longer texts.
pub fn context(config: &Value) -> Option<usize> {
    let of = |config: &Value| {
        let tokens = ["max_position_embeddings", "n_positions"]
            .iter()
            .find_map(|field| config.get(field)?.as_u64());
        Some((tokens? as f64 * dynamic_factor(config)) as usize)
    };
    of(config).or_else(|| of(config.get("text_config")?))
}

/// The scaling factor of rotary embeddings of type `dynamic`; 1 for other types.
fn dynamic_factor(config: &Value) -> f64 {
    let rope =
        ["rope_scaling", "rope_parameters"].into_iter().filter_map(|field| config.get(field));
    let mut sets = rope.flat_map(|rope| [Some(rope), rope.get("full_attention")]).flatten();
    let is_dynamic = |set: &&Value| {
        ["rope_type", "type"]
            .iter()
            .any(|field| set.get(field).and_then(Value::as_str) == Some("dynamic"))
    };
    sets.find(is_dynamic)
        .and_then(|set| set.get("factor")?.as_f64())
        .filter(|factor| *factor > 1.0)
        .unwrap_or(1.0)
}

/// Reads the context length of the model in the file or folder `path`, without reading its weights;
/// `None` if it is not known.
pub fn context_of(path: &Path) -> Option<usize> {
    let config = path.join("config.json");
    if config.is_file() {
        context(&read_json(&config).ok()?)
    } else {
        context(ModelFiles::open(path).ok()?.config())
    }
}

/// Returns the name of a device in the format that [`device`] parses.
pub fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// Parses the name of a device: `auto`, `cpu`, `cuda` or `cuda:N`. Loads libtorch's CUDA library
/// unless the name is `cpu`. With `auto` and `cuda`, the ranks on a machine use its cards in turn.
///
/// # Errors
/// Fails if the name is not valid, or if the GPU is not available.
pub fn device(name: &str) -> Result<Device> {
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    let library = load_cuda();
    static WARNED: Once = Once::new();
    WARNED.call_once(|| library.warning().into_iter().for_each(|text| tracing::warn!("{text}")));
    let cards = if Cuda::is_available() { Cuda::device_count() } else { 0 };
    let own = world::current().local_rank() as i64 % cards.max(1);
    let index = match name {
        "auto" => return Ok(if cards > 0 { Device::Cuda(own as usize) } else { Device::Cpu }),
        "cuda" => Some(own),
        other => other.strip_prefix("cuda:").and_then(|n| n.parse::<i64>().ok()),
    };
    let valid = || {
        ["auto".to_owned(), "cpu".to_owned()]
            .into_iter()
            .chain((0..cards).map(|i| format!("cuda:{i}")))
    };
    match index {
        Some(i) if (0..cards).contains(&i) => Ok(Device::Cuda(i as usize)),
        Some(_) => {
            let e = Error::new(format!("the device `{name}` is not available"))
                .hint(format!("valid: {}", valid().collect::<Vec<_>>().join(", ")));
            Err(match library {
                CudaLibrary::Loaded(_) if cards > 0 => e,
                CudaLibrary::Loaded(_) => e.hint(
                    "CUDA is loaded, but no GPU can be used; run `reprpo doctor` for details",
                ),
                CudaLibrary::NoDriver => e.hint(
                    "`libcuda.so.1` cannot be opened, so this machine or container has no NVIDIA \
                        driver",
                ),
                CudaLibrary::NotInLibtorch => {
                    e.hint(format!("libtorch was built without CUDA; {}", libtorch_hint(true)))
                }
                CudaLibrary::Failed(_) => e.hint(libtorch_hint(true)),
            })
        }
        None => Err(Error::unknown("device", name, valid())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn dynamic_rotary_scaling_extends_the_context() {
        assert_eq!(context(&json!({ "max_position_embeddings": 16 })), Some(16));
        let dynamic = json!({ "rope_type": "dynamic", "factor": 2.0 });
        assert_eq!(
            context(&json!({ "max_position_embeddings": 16, "rope_parameters": dynamic })),
            Some(32)
        );
        assert_eq!(
            context(&json!({ "max_position_embeddings": 16, "rope_scaling": { "type": "dynamic",
                    "factor": 4 } })),
            Some(64)
        );
        let nested =
            json!({ "full_attention": dynamic, "sliding_attention": { "rope_type": "default" } });
        assert_eq!(
            context(&json!({ "text_config": { "max_position_embeddings": 16,
                    "rope_parameters": nested } })),
            Some(32)
        );
        // For types other than `dynamic`, the context length is `max_position_embeddings`.
        let linear = json!({ "rope_type": "linear", "factor": 2.0 });
        assert_eq!(
            context(&json!({ "max_position_embeddings": 16, "rope_parameters": linear })),
            Some(16)
        );
        assert_eq!(context(&json!({})), None);
    }
}
