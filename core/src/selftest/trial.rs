//! Short training runs on tiny models. They use the same code as `reprpo run`.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use indexmap::IndexMap;
use serde_json::Value;
use tch::{Device, Kind as Number, Tensor};
use tracing::subscriber::NoSubscriber;

use super::pairs::{DATASET, tokenizer, tokenizer_config};
use super::report::Difference;
use crate::api::ModelInfo;
use crate::config::{Experiment, Layering};
use crate::error::{Context, Error, Result};
use crate::files::write_whole;
use crate::model::Model;
use crate::model::tiny::Fixture;
use crate::registry::{Entry, Kind, Registry};
use crate::report::Silent;
use crate::run::{self, Start};
use crate::session::device_name;
use crate::weights::write_safetensors;

/// Number of optimiser steps in a run.
pub const STEPS: usize = 10;

/// The architecture for the runs that test methods.
const PLAIN_ARCHITECTURE: &str = "llama";

/// A hint for errors about the temporary folder.
const TMPDIR: &str = "free some space, or set `TMPDIR` to a writable folder with about 100 MB of \
    free space";

/// The device, precision and attention kernel of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    device: Device,
    dtype: &'static str,
    attention: &'static str,
}

impl Way {
    /// The simplest computation: float32 on the CPU, without the fused attention kernel.
    pub const PLAIN: Self = Self { device: Device::Cpu, dtype: "f32", attention: "eager" };

    /// The computation of a normal run on `device`, in the precision `dtype`.
    pub fn usual(device: Device, dtype: &'static str) -> Self {
        Self { device, dtype, attention: "sdpa" }
    }
}

/// The settings of a run.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Folder of the model.
    pub model: PathBuf,
    /// The chosen plugins. The program's defaults are used for all other kinds of plugins.
    pub choices: Vec<(Kind, &'static str)>,
    /// Further settings, in the form that `--set` takes.
    pub set: Vec<String>,
}

/// The results of a finished run.
#[derive(Clone, Debug, Default)]
pub struct Trained {
    /// Loss of each step.
    pub losses: Vec<f64>,
    /// Gradient norm of each step.
    pub norms: Vec<f64>,
    /// Names and contents of the files that must be the same in a repeated run.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// The plugins, the tiny models and a temporary folder for the runs. Dropping the `Workshop`
/// removes the folder.
pub struct Workshop {
    folder: tempfile::TempDir,
    defaults: String,
    registry: Registry,
    fixture: Fixture,
    model: PathBuf,
    runs: Cell<usize>,
}

impl Workshop {
    /// Creates the temporary folder, with the first model in it.
    ///
    /// # Errors
    /// Fails if a file cannot be written.
    pub fn new(defaults: &str, registry: &Registry) -> Result<Self> {
        let parent = std::env::temp_dir();
        let made = tempfile::Builder::new().prefix("reprpo-selftest-").tempdir_in(&parent);
        let folder = made
            .within(|| format!("cannot create a temporary folder in `{}`", parent.display()))
            .map_err(|e| e.hint(TMPDIR))?;
        let entries = Kind::ALL.into_iter().flat_map(|kind| registry.of(kind));
        let registry = Registry::holding(entries.chain([Entry::Dataset(&DATASET)]))?;
        let fixture = Fixture::read()?;
        let (config, tensors) = fixture.architecture(PLAIN_ARCHITECTURE)?;
        let model = write_model(&folder.path().join("model"), &config, amplified(calm(tensors)))
            .map_err(|e| e.hint(TMPDIR))?;
        Ok(Self {
            folder,
            defaults: defaults.to_owned(),
            registry,
            fixture,
            model,
            runs: Cell::new(0),
        })
    }

    /// Wraps `e`, a failure to write a temporary file, in an error with a hint.
    pub fn explain(&self, e: Error) -> Error {
        e.within(format!(
            "the self-test cannot write to its temporary folder `{}`",
            self.folder.path().display()
        ))
        .hint(TMPDIR)
    }

    /// The registered plugins.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The tiny models.
    pub fn fixture(&self) -> &Fixture {
        &self.fixture
    }

    /// The shape of the model on which methods are tested.
    ///
    /// # Errors
    /// Fails if the model cannot be created.
    pub fn info(&self) -> Result<ModelInfo> {
        let case = self.fixture.case(PLAIN_ARCHITECTURE, "default")?;
        Ok(self.fixture.model(case, Number::Float, Device::Cpu)?.info().clone())
    }

    /// Returns the folder of a tiny model with this architecture, and writes the model if
    /// necessary.
    ///
    /// # Errors
    /// Fails if there is no model with this architecture, or if it cannot be written.
    pub fn architecture(&self, name: &str) -> Result<PathBuf> {
        let (config, tensors) = self.fixture.architecture(name)?;
        let folder = self.folder.path().join(format!("model-{name}"));
        if folder.is_dir() {
            Ok(folder)
        } else {
            write_model(&folder, &config, calm(tensors)).map_err(|e| e.hint(TMPDIR))
        }
    }

    /// Creates a new folder for temporary files.
    ///
    /// # Errors
    /// Fails if the folder cannot be created.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder)
            .within(|| format!("cannot create the folder `{}`", folder.display()))?;
        Ok(folder)
    }

    /// Returns the settings of a run with the given plugins on the first model.
    pub fn trial(&self, choices: Vec<(Kind, &'static str)>) -> Trial {
        Trial { model: self.model.clone(), choices, set: Vec::new() }
    }

    /// Returns the experiment that describes a run.
    ///
    /// # Errors
    /// Fails if a plugin or a field does not exist, or if a value is not valid.
    pub fn experiment(&self, trial: &Trial, way: Way) -> Result<Experiment> {
        let mut layers = Layering::new(&self.registry);
        layers.defaults(&self.defaults)?;
        let flags = [
            ("model", trial.model.display().to_string()),
            ("device", device_name(way.device)),
            ("dataset", DATASET.about.name.to_owned()),
        ];
        let chosen = trial.choices.iter().map(|(kind, name)| (kind.name(), (*name).to_owned()));
        for (field, value) in flags.into_iter().chain(chosen) {
            layers.flag(&format!("--{field}"), field, &value);
        }
        let epochs = STEPS as f64 * 4.0 / 20.0;
        let fixed = [
            format!("dtype={}", way.dtype),
            format!("attention={}", way.attention),
            format!("train.epochs={epochs}"),
        ];
        let fixed = fixed.into_iter().chain(
            ["train.batch=2", "train.accumulate=2", "eval.enabled=false"].map(str::to_owned),
        );
        for assignment in fixed.chain(trial.set.iter().cloned()) {
            layers.set(&assignment)?;
        }
        Ok(layers.resolve()?.experiment)
    }

    /// Trains the run, and reads the files that it writes.
    ///
    /// # Errors
    /// Fails in the same cases as [`run::run`].
    pub fn train(&self, trial: &Trial, way: Way, stop: &AtomicBool) -> Result<Trained> {
        let experiment = self.experiment(trial, way)?;
        self.runs.set(self.runs.get() + 1);
        let out = self.folder.path().join(format!("run-{}", self.runs.get()));
        // Suppress the run's warnings. The user cannot act on them, because the self-test chooses
        // the data and the methods.
        tracing::subscriber::with_default(NoSubscriber::default(), || {
            run::run(&experiment, &Start::New(out.clone()), &self.registry, stop, &mut Silent)
        })?;
        let trained = Trained::read(&out);
        let _ = std::fs::remove_dir_all(&out);
        trained
    }
}

/// Multiplies weight matrices by 1/2, and the weights of query and key norms by 1/4. With the
/// original weights, attention scores and logits are so large that bf16 has rounding errors of
/// several percent. This does not happen in trained models.
pub fn calm(tensors: IndexMap<String, Tensor>) -> IndexMap<String, Tensor> {
    let factor = |name: &str, t: &Tensor| match t.dim() {
        1 if name.ends_with("q_norm.weight") || name.ends_with("k_norm.weight") => 0.25,
        1 => 1.0,
        _ => 0.5,
    };
    tensors.into_iter().map(|(name, t)| (name.clone(), &t * factor(&name, &t))).collect()
}

/// Scales the weights of a Llama model so that its residual stream is 64 times as large. The
/// outputs are the same, because every block normalises the stream first. Some methods need a
/// stream with coordinates far above 1, as in trained models. A softmax over small coordinates is
/// almost uniform, and a divergence between two such distributions is only a rounding error.
fn amplified(tensors: IndexMap<String, Tensor>) -> IndexMap<String, Tensor> {
    let writes = |name: &str| {
        ["embed_tokens.weight", "o_proj.weight", "down_proj.weight"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    tensors
        .into_iter()
        .map(|(name, t)| if writes(&name) { (name, t * 64.0) } else { (name, t) })
        .collect()
}

/// Writes a model as a Hugging Face folder, and returns the folder.
fn write_model(
    folder: &Path,
    config: &Value,
    tensors: IndexMap<String, Tensor>,
) -> Result<PathBuf> {
    Model::accepts(config)?;
    std::fs::create_dir_all(folder)
        .within(|| format!("cannot create the folder `{}`", folder.display()))?;
    let tensors: Vec<(String, Tensor)> = tensors.into_iter().collect();
    write_safetensors(&folder.join("model.safetensors"), &tensors)?;
    write_whole(&folder.join("config.json"), config.to_string().as_bytes())?;
    write_whole(&folder.join("tokenizer.json"), tokenizer().to_string().as_bytes())?;
    write_whole(&folder.join("tokenizer_config.json"), tokenizer_config().to_string().as_bytes())?;
    Ok(folder.to_owned())
}

impl Trained {
    fn read(run: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        for part in ["adapter", "transform"] {
            let folder = run.join(part);
            for file in std::fs::read_dir(&folder).into_iter().flatten() {
                let path = file.within(|| format!("cannot list `{}`", folder.display()))?.path();
                let name =
                    format!("{part}/{}", path.file_name().unwrap_or_default().to_string_lossy());
                files.insert(
                    name,
                    std::fs::read(&path).within(|| format!("cannot read `{}`", path.display()))?,
                );
            }
        }
        let path = run.join("metrics.jsonl");
        let metrics =
            std::fs::read(&path).within(|| format!("cannot read `{}`", path.display()))?;
        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        for line in serde_json::Deserializer::from_slice(&metrics).into_iter::<Value>() {
            let line =
                line.map_err(|e| Error::internal("`metrics.jsonl` is not JSON").because(e))?;
            losses.push(line["loss"].as_f64().unwrap_or(f64::NAN));
            norms.push(line["grad_norm"].as_f64().unwrap_or(f64::NAN));
        }
        files.insert("metrics.jsonl".to_owned(), metrics);
        Ok(Self { losses, norms, files })
    }

    /// Compares this run with a reference run. Returns the largest difference of the losses and the
    /// largest difference of the gradient norms. The description of each difference begins with
    /// `of`.
    pub fn differences(
        &self,
        reference: &Self,
        of: &str,
        tolerances: Tolerances,
    ) -> Vec<Difference> {
        if self.losses.len() != reference.losses.len() {
            return vec![Difference::new(
                format!("{of}: {} steps instead of {}", self.losses.len(), reference.losses.len()),
                f64::INFINITY,
                0.0,
            )];
        }
        let compare =
            |what: &str, ours: &[f64], theirs: &[f64], tolerance: [f64; 2], floor: f64| {
                // `f64::max` ignores NaN. `off` below is NaN if one of its two values is NaN.
                let largest = theirs.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
                let off = |(a, b): (&f64, &f64)| {
                    (a - b).abs() / b.abs().max(floor * largest).max(f64::MIN_POSITIVE)
                };
                let all = ours.iter().zip(theirs).map(off).enumerate();
                Difference::worst_of(all.map(|(step, off)| {
                    Difference::new(
                        format!("{of}: {what} of step {}", step + 1),
                        off,
                        tolerance[usize::from(step > 0)],
                    )
                }))
            };
        let losses = compare(
            "loss",
            &self.losses,
            &reference.losses,
            [tolerances.loss; 2],
            tolerances.floor,
        );
        let norms = compare(
            "gradient norm",
            &self.norms,
            &reference.norms,
            tolerances.norm,
            tolerances.floor,
        );
        losses.into_iter().chain(norms).collect()
    }
}

/// Maximum differences that pass, relative to the reference.
#[derive(Clone, Copy, Debug)]
pub struct Tolerances {
    /// Tolerance for a loss.
    pub loss: f64,
    /// Tolerances for the gradient norm in the first step, and in later steps.
    pub norm: [f64; 2],
    /// Each difference is divided by the reference value. The divisor is at least this fraction of
    /// the reference run's largest value.
    pub floor: f64,
}
