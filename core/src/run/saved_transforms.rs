//! Reads and writes saved transforms: their parameters in `transform.safetensors` and their
//! configuration in `transform_config.json`.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::{Device, Tensor};

use crate::config::{Choice, Experiment};
use crate::error::{Context, Error, Result, quoted};
use crate::files::write_whole;
use crate::train::Taps;
use crate::weights::{read_safetensors, write_safetensors};

const CONFIG: &str = "transform_config.json";
const TENSORS: &str = "transform.safetensors";

/// Content of `transform_config.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    /// The transform plugin and its configuration.
    transform: Choice,
    /// Each tap, in the order of the forward pass, with the index of its transform.
    taps: IndexMap<String, usize>,
}

impl Description {
    fn of(experiment: &Experiment, taps: &Taps) -> Self {
        let numbers =
            taps.sites.iter().map(ToString::to_string).zip(taps.transform_of.iter().copied());
        Self { transform: experiment.transform.clone(), taps: numbers.collect() }
    }
}

/// Transforms read from disk.
#[derive(Debug)]
pub struct SavedTransforms {
    dir: PathBuf,
    described: Description,
    values: IndexMap<String, Tensor>,
}

impl SavedTransforms {
    /// Reads the `transform` folder of a run.
    ///
    /// # Errors
    /// Fails if a file is missing or damaged.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG);
        let text = std::fs::read_to_string(&path)
            .within(|| format!("cannot read `{}`", path.display()))
            .map_err(|e| {
                e.hint(format!(
                "specify a folder with `{CONFIG}` and `{TENSORS}`, such as the `transform` folder \
                    of a run that trained its transform"
            ))
            })?;
        let described = serde_json::from_str(&text).map_err(|e| {
            Error::new(format!("`{}` is not a valid description of transforms", path.display()))
                .because(e)
        })?;
        Ok(Self { dir: dir.to_owned(), described, values: read_safetensors(&dir.join(TENSORS))? })
    }

    /// The saved values, by name.
    pub fn values(&self) -> &IndexMap<String, Tensor> {
        &self.values
    }

    /// Copies the saved values into `taps`, which were built for `experiment`.
    ///
    /// # Errors
    /// Fails if the transform, its configuration, the taps or the shapes differ between the saved
    /// transforms and `taps`. In this case, `taps` is not changed.
    pub fn restore(mut self, experiment: &Experiment, taps: &Taps) -> Result<()> {
        let dir = &self.dir;
        let mismatch = |saved: &str, here: &str| {
            Error::new(format!("`{}` contains {saved}, but this run uses {here}", dir.display()))
        };
        if taps.sites.is_empty() {
            return Err(Error::new(format!(
                "`init_transform` is `{}`, but the intervention `{}` reads no states",
                dir.display(),
                experiment.intervention.name
            ))
            .hint("remove `init_transform`, or choose an intervention that reads states"));
        }
        let Description { transform: saved, taps: places } = &self.described;
        let chosen = &experiment.transform;
        if saved != chosen {
            return Err(mismatch(&in_words(saved), &in_words(chosen))
                .hint(format!("choose the saved transform with `{}`", as_flags(saved))));
        }
        let here = Description::of(experiment, taps).taps;
        if *places != here {
            let words = |taps: &IndexMap<String, usize>| {
                let shared = taps.values().copied().max().map_or(0, |n| n + 1) < taps.len();
                format!(
                    "{} transforms for the taps {}",
                    if shared { "shared" } else { "separate" },
                    taps.keys().map(|t| format!("`{t}`")).collect::<Vec<_>>().join(", ")
                )
            };
            return Err(mismatch(&words(places), &words(&here))
                .hint("use the model, tap, layers and `train.share_transform` of the saved run"));
        }
        let parameters = taps.parameters();
        let mut pairs = Vec::with_capacity(parameters.len());
        for (name, tensor) in parameters {
            let value = self.values.swap_remove(&name).ok_or_else(|| {
                Error::new(format!("`{}` has no `{name}`", dir.join(TENSORS).display()))
            })?;
            if value.size() != tensor.size() {
                return Err(Error::new(format!(
                    "`{name}` has shape {2:?} in this run, but {1:?} in `{0}`",
                    dir.join(TENSORS).display(),
                    value.size(),
                    tensor.size()
                )));
            }
            pairs.push((tensor, value));
        }
        if let Some(name) = self.values.keys().next() {
            return Err(Error::new(format!(
                "`{name}` in `{}` does not belong to a transform of this run",
                dir.join(TENSORS).display()
            )));
        }
        let _guard = tch::no_grad_guard();
        for (mut tensor, value) in pairs {
            tensor.f_copy_(&value)?;
        }
        Ok(())
    }
}

/// Writes the `transform` folder of the run, unless the transforms have no parameters.
///
/// # Errors
/// Fails if a file cannot be written.
pub fn write(taps: &Taps, experiment: &Experiment, run: &Path) -> Result<()> {
    let parameters = taps.parameters();
    if parameters.is_empty() {
        return Ok(());
    }
    let dir = run.join("transform");
    std::fs::create_dir_all(&dir)
        .within(|| format!("cannot create the folder `{}`", dir.display()))?;
    let host = parameters
        .into_iter()
        .map(|(n, t)| Ok((n, t.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?)))
        .collect::<Result<Vec<_>>>()?;
    write_safetensors(&dir.join(TENSORS), &host)?;
    let text = serde_json::to_string_pretty(&Description::of(experiment, taps))
        .map_err(|e| Error::internal(e.to_string()))?;
    write_whole(&dir.join(CONFIG), text.as_bytes())
}

fn in_words(choice: &Choice) -> String {
    let fields: Vec<String> =
        choice.config.iter().map(|(k, v)| format!("{k} = {}", plain(v))).collect();
    if fields.is_empty() {
        format!("`{}`", choice.name)
    } else {
        format!("`{}` with {}", choice.name, fields.join(", "))
    }
}

fn as_flags(choice: &Choice) -> String {
    let sets = choice
        .config
        .iter()
        .map(|(k, v)| format!(" --set {}", quoted(format!("transform.{k}={}", plain(v)))));
    format!("--transform {}{}", choice.name, sets.collect::<String>())
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
