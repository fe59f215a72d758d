//! The adapter of an experiment, either new or loaded from disk.

use std::path::Path;

use indexmap::IndexMap;
use serde_json::{Map, Value};
use tch::Tensor;

use super::source_adapter::SourceAdapter;
use crate::api::{Adapter, BlockEdit};
use crate::config::{Choice, Experiment, plugin_fields};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::model::attach::unmatched_besides;
use crate::model::edits::Edits;
use crate::model::peft::{Saved, SavedModules};
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
    /// The saved adapters that a new adapter is made of, in the order of [`Adapter::sources`];
    /// `None` for a source that is not set.
    sources: Vec<Option<SourceAdapter>>,
    /// The fields of the saved file about tensors of the base model.
    modules: SavedModules,
    /// Warnings from reading the saved file.
    warnings: Vec<String>,
    /// Warnings for a run that trains the saved adapter further.
    training_warnings: Vec<String>,
}

impl AdapterChoice {
    /// Builds the experiment's adapter. The values of the parameters come from `saved`, if given.
    ///
    /// # Errors
    /// Fails if the name or the configuration of `saved` differs from the experiment's adapter, or
    /// if the adapter rejects its configuration. A new adapter fails if one of the saved adapters
    /// that it is made of is not set or cannot be read.
    pub fn new(experiment: &Experiment, saved: Option<Saved>, registry: &Registry) -> Result<Self> {
        let choice = &experiment.adapter;
        let entry = registry.adapter(&choice.name)?;
        let json = choice.json();
        let Some(saved) = saved else {
            let mut new = Self::of_new(entry, &json)?;
            let sources = new.adapter.sources();
            let read = |source| SourceAdapter::read(source, experiment, registry);
            new.sources = sources.iter().map(read).collect::<Result<_>>()?;
            return Ok(new);
        };
        agrees(choice, entry, &saved)?;
        Self::configured(saved, &json)
    }

    /// Builds a new adapter from a JSON configuration. Its [`sources`](Adapter::sources) are not
    /// loaded.
    ///
    /// # Errors
    /// Fails if the adapter rejects its configuration.
    pub fn of_new(entry: &'static AdapterEntry, json: &str) -> Result<Self> {
        let adapter = entry.build(json)?;
        Ok(Self {
            entry,
            adapter,
            values: None,
            edits: Vec::new(),
            sources: Vec::new(),
            modules: SavedModules::default(),
            warnings: Vec::new(),
            training_warnings: Vec::new(),
        })
    }

    /// Returns the adapter as if it had been loaded with these values.
    pub(crate) fn with_values(self, values: IndexMap<String, Tensor>) -> Self {
        Self { values: Some(values), ..self }
    }

    /// Replaces the saved adapters that a new adapter is made of.
    pub(crate) fn with_sources(self, sources: Vec<Self>) -> Self {
        let sources = sources.into_iter().map(|source| Some(SourceAdapter::of(source))).collect();
        Self { sources, ..self }
    }

    /// Loads the adapter saved in the folder `dir`, using its saved configuration.
    ///
    /// # Errors
    /// Fails if the adapter cannot be read, or if it rejects its configuration.
    pub fn read(dir: &Path, registry: &Registry) -> Result<Self> {
        Self::of_saved(Saved::read(dir, registry)?)
    }

    /// Builds a saved adapter with its saved configuration.
    ///
    /// # Errors
    /// Fails if the adapter rejects its configuration.
    pub(super) fn of_saved(mut saved: Saved) -> Result<Self> {
        let json = Value::Object(std::mem::take(&mut saved.config)).to_string();
        Self::configured(saved, &json)
    }

    /// Builds a saved adapter with the configuration `json`.
    fn configured(saved: Saved, json: &str) -> Result<Self> {
        Ok(Self {
            values: Some(saved.values),
            edits: saved.edits,
            modules: saved.modules,
            warnings: saved.warnings,
            training_warnings: saved.training_warnings,
            ..Self::of_new(saved.entry, json)?
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
            let unmatched =
                unmatched_besides(self.adapter.as_ref(), model.info(), model.vocabulary_modules())?;
            warnings.extend(unmatched.iter().map(|e| {
                format!("{}; this part of the saved adapter is ignored, as in PEFT", e.message())
            }));
            warnings.extend(self.modules.warnings(model));
        }
        Ok(warnings)
    }

    /// Warnings about a saved adapter for a run that trains it further: parts of it that are not
    /// trained.
    ///
    /// # Errors
    /// Fails in the same cases as [`attach`](Self::attach).
    pub fn training_warnings(&self, model: &Model) -> Result<Vec<String>> {
        let mut warnings = self.training_warnings.clone();
        let Some(values) = &self.values else { return Ok(warnings) };
        let (_, replaced) = self.modules.divide(values, self.adapter.as_ref(), model)?;
        let names: Vec<String> = replaced.names().collect();
        if let Some(first) = names.first() {
            warnings.push(format!(
                "the saved adapter replaces {} tensor{} of the base model, such as `{first}`; they \
                    act while it is on, are not trained, and are saved again with the adapter",
                names.len(),
                if names.len() == 1 { "" } else { "s" }
            ));
        }
        for source in self.sources.iter().flatten() {
            warnings.extend(source.adapter.warnings(model)?);
        }
        Ok(warnings)
    }

    /// Folders of the saved adapters that a new adapter is made of.
    pub fn source_folders(&self) -> impl Iterator<Item = &Path> {
        self.sources.iter().flatten().map(|source| source.folder.as_path())
    }

    /// Fingerprints of the saved adapters that a new adapter is made of.
    pub fn source_fingerprints(&self) -> impl Iterator<Item = &Fingerprint> {
        self.sources.iter().flatten().filter_map(|source| source.fingerprint.as_ref())
    }

    /// Checks that the adapter has trainable parameters. `name` is the name of an intervention that
    /// takes steps, and `without_steps` returns the names of those that take none.
    ///
    /// # Errors
    /// Fails if the adapter has no trainable parameters.
    pub fn check_trainable(
        &self,
        name: &str,
        without_steps: impl FnOnce() -> Vec<&'static str>,
    ) -> Result<()> {
        if self.adapter.is_trainable() {
            return Ok(());
        }
        let e = Error::new(format!(
            "the adapter `{}` has no trainable parameters, but the intervention `{name}` trains",
            self.entry.about.name
        ));
        Err(match without_steps().first() {
            Some(other) => e.hint(format!(
                "add `--intervention {other}`, which evaluates and saves the adapter"
            )),
            None => e.hint("choose an intervention that takes no steps"),
        })
    }

    /// Attaches the adapter to the first `blocks` blocks of `model`, and restores the saved values
    /// if there are any.
    ///
    /// # Errors
    /// Fails if an entry in the configuration of a new adapter matches no module, if the adapter
    /// cannot adapt a module, or if the names or shapes of the saved values are wrong. Also fails
    /// if an adapter that the new adapter is made of does not fit the model.
    pub fn attach(&self, model: &Model, blocks: usize, seed: u64) -> Result<Adapted> {
        let Some(values) = &self.values else {
            let adapter = self.adapter.as_ref();
            if self.sources.is_empty() {
                return Adapted::attach(adapter, model, blocks, seed);
            }
            let attached = |source: &Option<SourceAdapter>| {
                source.as_ref().map(|source| source.attach(model)).transpose()
            };
            let sources = self.sources.iter().map(attached).collect::<Result<Vec<_>>>()?;
            return Adapted::attach_made_of(adapter, &sources, model, blocks, seed);
        };
        let adapter = self.adapter.as_ref();
        let (values, replaced) = self.modules.divide(values, adapter, model)?;
        let mut adapted = Adapted::attach_with(adapter, model, blocks, seed, replaced)?;
        adapted.restore(&values)?;
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
