//! The saved adapters that a new adapter is made of.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::adapter::AdapterChoice;
use crate::api::AdapterSource;
use crate::config::Experiment;
use crate::error::{Context, Error, Result};
use crate::fingerprint::{self, Fingerprint};
use crate::model::peft::Saved;
use crate::model::{Adapted, Model};
use crate::registry::Registry;

/// A saved adapter that a new adapter is made of.
pub(super) struct SourceAdapter {
    /// The adapter, with the values of its parameters.
    pub adapter: AdapterChoice,
    /// Folder of the adapter; empty if it was not read from a folder.
    pub folder: PathBuf,
    /// Fingerprint of the configuration field, of the adapter's configuration and of its values;
    /// `None` if the adapter was not read from a folder.
    pub fingerprint: Option<Fingerprint>,
}

impl SourceAdapter {
    /// Creates a source that is not in a folder.
    pub fn of(adapter: AdapterChoice) -> Self {
        Self { adapter, folder: PathBuf::new(), fingerprint: None }
    }

    /// Reads the adapter that `source` describes. Returns `None` if the source is not set.
    ///
    /// # Errors
    /// Fails if the source is required, but not set, or if its adapter cannot be read.
    pub fn read(
        source: &AdapterSource,
        experiment: &Experiment,
        registry: &Registry,
    ) -> Result<Option<Self>> {
        let field = format!("adapter.{}", source.field);
        let Some(path) = &source.path else {
            if !source.required {
                return Ok(None);
            }
            return Err(Error::new(format!(
                "`{field}` is not set, but a new adapter of type `{}` needs it",
                experiment.adapter.name
            ))
            .hint(format!("give the folder of a finished run, e.g. `--set {field}=runs/NAME`")));
        };
        let read = || {
            let folder = adapter_folder(path)?;
            let saved = Saved::read(&folder, registry)?;
            let fingerprint = fingerprint::of_tensors(
                &format!("the adapter in `{field}`"),
                &json!({ "field": source.field, "config": saved.config }),
                &saved.values,
            )?;
            if !saved.edits.is_empty() {
                return Err(Error::new(format!(
                    "the adapter in `{}` was saved with edits of the residual stream, which are \
                        not a change of weights",
                    folder.display()
                ))
                .hint("choose an adapter without `edits.safetensors`"));
            }
            let adapter = AdapterChoice::of_saved(saved)?;
            Ok(Self { adapter, folder, fingerprint: Some(fingerprint) })
        };
        let found: Result<Self> = read();
        found.map(Some).map_err(|e| experiment.sources.explain(&field, &path.to_string_lossy(), e))
    }

    /// Attaches the adapter to all blocks of `model`.
    ///
    /// # Errors
    /// Fails if the adapter does not fit the model.
    pub fn attach(&self, model: &Model) -> Result<Adapted> {
        let attached = self.adapter.attach(model, model.info().layers, 0);
        attached.within(|| format!("cannot use the adapter in `{}`", self.folder.display()))
    }
}

/// Finds the folder of the adapter in `path`, which is a run or the folder of an adapter.
///
/// # Errors
/// Fails if the folder does not exist, or if the run in it has no adapter yet.
fn adapter_folder(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Err(Error::new(format!("the folder `{}` does not exist", path.display()))
            .hint("give the folder of a finished run, or of an adapter in PEFT's format"));
    }
    if path.join("adapter_config.json").is_file() || !path.join("config.toml").is_file() {
        return Ok(path.to_owned());
    }
    let adapter = path.join("adapter");
    if adapter.join("adapter_config.json").is_file() {
        return Ok(adapter);
    }
    Err(Error::new(format!("the run in `{}` has no trained adapter yet", path.display()))
        .hint(format!("finish it with `reprpo run --resume {}`", path.display())))
}
