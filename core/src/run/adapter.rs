//! The adapter of an experiment: a new one, or a saved one with its values.

use std::path::Path;

use indexmap::IndexMap;
use serde_json::{Map, Value};
use tch::Tensor;

use crate::api::Adapter;
use crate::config::{Choice, Experiment, plugin_fields};
use crate::error::{Error, Result};
use crate::model::attach::unmatched;
use crate::model::peft::Saved;
use crate::model::{Adapted, Model};
use crate::registry::{AdapterEntry, Registry};

/// A configured adapter, and the values of its parameters if it was saved.
pub struct AdapterChoice {
    /// Its plugin.
    pub entry: &'static AdapterEntry,
    /// The configured adapter.
    pub adapter: Box<dyn Adapter>,
    /// The saved values, by name.
    pub values: Option<IndexMap<String, Tensor>>,
    /// Warnings about the saved file.
    warnings: Vec<String>,
}

impl AdapterChoice {
    /// The experiment's adapter, with the values of `saved` if there is one.
    ///
    /// # Errors
    /// Fails if the experiment's adapter and the saved one contradict each other, or if the adapter
    /// refuses its configuration.
    pub fn new(experiment: &Experiment, saved: Option<Saved>, registry: &Registry) -> Result<Self> {
        let choice = &experiment.adapter;
        let entry = registry.adapter(&choice.name)?;
        let (values, warnings) = match saved {
            None => (None, Vec::new()),
            Some(saved) => {
                agrees(choice, entry, &saved)?;
                (Some(saved.values), saved.warnings)
            }
        };
        Ok(Self { entry, adapter: entry.build(&choice.json())?, values, warnings })
    }

    /// A new adapter with this configuration (JSON text).
    ///
    /// # Errors
    /// Fails if the adapter refuses its configuration.
    pub fn of_new(entry: &'static AdapterEntry, json: &str) -> Result<Self> {
        Ok(Self { entry, adapter: entry.build(json)?, values: None, warnings: Vec::new() })
    }

    /// The saved adapter in the folder `dir`, with its own configuration.
    ///
    /// # Errors
    /// Fails if the adapter cannot be read, or if it refuses its configuration.
    pub fn read(dir: &Path, registry: &Registry) -> Result<Self> {
        let saved = Saved::read(dir, registry)?;
        let adapter = saved.entry.build(&Value::Object(saved.config).to_string())?;
        Ok(Self {
            entry: saved.entry,
            adapter,
            values: Some(saved.values),
            warnings: saved.warnings,
        })
    }

    /// The saved adapter in the folder `dir`, which must agree with the experiment.
    ///
    /// # Errors
    /// Fails if the adapter cannot be read, or as [`new`](Self::new) does.
    pub fn saved(dir: &Path, experiment: &Experiment, registry: &Registry) -> Result<Self> {
        Self::new(experiment, Some(Saved::read(dir, registry)?), registry)
    }

    /// Warnings about the saved adapter: those of its plugin about the file, and one for each part
    /// of its configuration that matches nothing in `model`.
    ///
    /// # Errors
    /// Fails if a pattern is not a regular expression.
    pub fn warnings(&self, model: &Model) -> Result<Vec<String>> {
        let mut warnings = self.warnings.clone();
        if self.values.is_some() {
            let unmatched = unmatched(self.adapter.as_ref(), model.info())?;
            warnings.extend(unmatched.iter().map(|e| {
                format!("{}; the saved adapter is used without it, as in PEFT", e.message())
            }));
        }
        Ok(warnings)
    }

    /// Attaches it to the first `blocks` blocks of `model`, with the saved values if there are any.
    ///
    /// # Errors
    /// Fails if an entry in the configuration of a new adapter matches no module, if the adapter
    /// does not fit a module, or if the saved values do not fit the adapter.
    pub fn attach(&self, model: &Model, blocks: usize, seed: u64) -> Result<Adapted> {
        let Some(values) = &self.values else {
            return Adapted::attach(self.adapter.as_ref(), model, blocks, seed);
        };
        let adapted = Adapted::attach_saved(self.adapter.as_ref(), model, blocks, seed)?;
        adapted.restore(values)?;
        Ok(adapted)
    }
}

/// Attaches a saved adapter to all blocks of `model`, for commands that do not train it, and logs
/// the warnings about it.
///
/// # Errors
/// Fails as [`AdapterChoice::attach`] does, or if a pattern is not a regular expression.
pub fn attach_saved(saved: &AdapterChoice, model: &Model) -> Result<Adapted> {
    for warning in saved.warnings(model)? {
        tracing::warn!("{warning}");
    }
    saved.attach(model, model.info().layers, 0)
}

/// Checks that the experiment's `choice` of an adapter has the same fields as the saved one.
fn agrees(choice: &Choice, entry: &AdapterEntry, saved: &Saved) -> Result<()> {
    let contradicts = |what: &str, ours: &dyn std::fmt::Display, theirs: &dyn std::fmt::Display| {
        Error::new(format!(
            "`{what}` is `{ours}` in the configuration, but the saved adapter has `{theirs}`"
        ))
        .hint("use the saved adapter that the configuration was made for")
    };
    if saved.entry.about.name != entry.about.name {
        return Err(contradicts("adapter.name", &entry.about.name, &saved.entry.about.name));
    }
    let fields = plugin_fields(&entry.about)?;
    for field in fields.iter().filter(|f| !entry.adjustable.contains(&f.name.as_str())) {
        let value =
            |config: &Map<String, Value>| config.get(&field.name).cloned().unwrap_or(Value::Null);
        let (ours, theirs) = (value(&choice.config), value(&saved.config));
        if !field.same(&ours, &theirs) {
            return Err(contradicts(&format!("adapter.{}", field.name), &ours, &theirs));
        }
    }
    Ok(())
}
