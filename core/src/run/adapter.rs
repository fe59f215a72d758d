//! The adapter of an experiment, either new or loaded from disk.

use std::path::Path;

use indexmap::IndexMap;
use serde_json::{Map, Value};
use tch::Tensor;

use crate::api::{Adapter, BlockEdit};
use crate::config::{Choice, Experiment, plugin_fields};
use crate::error::{Error, Result};
use crate::model::attach::unmatched;
use crate::model::edits::Edits;
use crate::model::peft::Saved;
use crate::model::{Adapted, Model};
use crate::registry::{AdapterEntry, Registry};

/// A configured adapter. If it was loaded from disk, it includes the values of the parameters.
pub struct AdapterChoice {
    /// The plugin that provides the adapter.
    pub entry: &'static AdapterEntry,
    /// The configured adapter.
    pub adapter: Box<dyn Adapter>,
    /// The loaded values, by parameter name; `None` for a new adapter.
    pub values: Option<IndexMap<String, Tensor>>,
    /// The edits of the residual stream that belong to the saved adapter.
    edits: Vec<BlockEdit>,
    /// Warnings from reading the saved file.
    warnings: Vec<String>,
}

impl AdapterChoice {
    /// Builds the experiment's adapter. The values of the parameters come from `saved`, if given.
    ///
    /// # Errors
    /// Fails if the name or the configuration of `saved` differs from the experiment's adapter, or
    /// if the adapter rejects its configuration.
    pub fn new(experiment: &Experiment, saved: Option<Saved>, registry: &Registry) -> Result<Self> {
        let choice = &experiment.adapter;
        let entry = registry.adapter(&choice.name)?;
        let (values, edits, warnings) = match saved {
            None => (None, Vec::new(), Vec::new()),
            Some(saved) => {
                agrees(choice, entry, &saved)?;
                (Some(saved.values), saved.edits, saved.warnings)
            }
        };
        Ok(Self { entry, adapter: entry.build(&choice.json())?, values, edits, warnings })
    }

    /// Builds a new adapter from a JSON configuration.
    ///
    /// # Errors
    /// Fails if the adapter rejects its configuration.
    pub fn of_new(entry: &'static AdapterEntry, json: &str) -> Result<Self> {
        Ok(Self {
            entry,
            adapter: entry.build(json)?,
            values: None,
            edits: Vec::new(),
            warnings: Vec::new(),
        })
    }

    /// Loads the adapter saved in the folder `dir`, using its saved configuration.
    ///
    /// # Errors
    /// Fails if the adapter cannot be read, or if it rejects its configuration.
    pub fn read(dir: &Path, registry: &Registry) -> Result<Self> {
        let saved = Saved::read(dir, registry)?;
        let adapter = saved.entry.build(&Value::Object(saved.config).to_string())?;
        Ok(Self {
            entry: saved.entry,
            adapter,
            values: Some(saved.values),
            edits: saved.edits,
            warnings: saved.warnings,
        })
    }

    /// Loads the adapter saved in the folder `dir`. Its configuration must match the experiment's
    /// adapter.
    ///
    /// # Errors
    /// Fails if the adapter cannot be read, and in the same cases as [`new`](Self::new).
    pub fn saved(dir: &Path, experiment: &Experiment, registry: &Registry) -> Result<Self> {
        Self::new(experiment, Some(Saved::read(dir, registry)?), registry)
    }

    /// True if edits of the residual stream belong to the saved adapter.
    pub fn has_edits(&self) -> bool {
        !self.edits.is_empty()
    }

    /// Warnings about a saved adapter. They report problems in its file, and module patterns in its
    /// configuration that match nothing in `model`.
    ///
    /// # Errors
    /// Fails if a pattern is not a regular expression.
    pub fn warnings(&self, model: &Model) -> Result<Vec<String>> {
        let mut warnings = self.warnings.clone();
        if self.values.is_some() {
            let unmatched = unmatched(self.adapter.as_ref(), model.info())?;
            warnings.extend(unmatched.iter().map(|e| {
                format!("{}; this part of the saved adapter is ignored, as in PEFT", e.message())
            }));
        }
        Ok(warnings)
    }

    /// Attaches the adapter to the first `blocks` blocks of `model`, and restores the saved values
    /// if there are any.
    ///
    /// # Errors
    /// Fails if an entry in the configuration of a new adapter matches no module, if the adapter
    /// cannot adapt a module, or if the names or shapes of the saved values are wrong.
    pub fn attach(&self, model: &Model, blocks: usize, seed: u64) -> Result<Adapted> {
        let Some(values) = &self.values else {
            return Adapted::attach(self.adapter.as_ref(), model, blocks, seed);
        };
        let mut adapted = Adapted::attach_saved(self.adapter.as_ref(), model, blocks, seed)?;
        adapted.restore(values)?;
        let edits = self.edits.iter().map(BlockEdit::shallow_clone).collect();
        adapted.set_edits(Edits::new(edits, model.info(), model.kind(), model.device())?);
        Ok(adapted)
    }
}

/// Attaches a saved adapter to all blocks of `model`, for commands that do not train it. Logs the
/// adapter's warnings.
///
/// # Errors
/// Fails in the same cases as [`AdapterChoice::attach`], or if a pattern is not a regular
/// expression.
pub fn attach_saved(saved: &AdapterChoice, model: &Model) -> Result<Adapted> {
    for warning in saved.warnings(model)? {
        tracing::warn!("{warning}");
    }
    saved.attach(model, model.info().layers, 0)
}

/// Checks that the experiment's adapter and the saved adapter have the same name and field values.
/// Adjustable fields are not compared.
fn agrees(choice: &Choice, entry: &AdapterEntry, saved: &Saved) -> Result<()> {
    let contradicts = |what: &str, ours: &dyn std::fmt::Display, theirs: &dyn std::fmt::Display| {
        Error::new(format!(
            "`{what}` is `{ours}` in the configuration, but `{theirs}` in the saved adapter"
        ))
        .hint("change the configuration to match, or load a different adapter")
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
