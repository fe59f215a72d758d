//! Layers of values on top of each other, and what comes of them.
//!
//! A layer is a list of settings: a path, a value, and its origin. Nothing is checked before all
//! layers are in, because only then is it known which plugins are chosen and so which fields there
//! are.

mod assembly;
mod choices;
mod environment;
mod learning_rate;
mod recipe;
mod saved_adapter;
mod section;
mod setting;
mod unknown;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use assembly::Assembly;
pub(crate) use learning_rate::default_learning_rate;
use setting::{Given, Setting};

use super::{Experiment, Origin, PluginFile, Record, Resolved, Sources};
use crate::error::{Error, Result};
use crate::registry::Registry;

/// The layers so far, lowest first.
#[derive(Debug)]
pub struct Layering<'r> {
    registry: &'r Registry,
    settings: Vec<Setting>,
    /// True if the adapter that `init_adapter` names brings its configuration.
    starts_from_adapter: bool,
    /// The records of runs, by the configuration file that holds them.
    records: BTreeMap<PathBuf, Record>,
}

impl<'r> Layering<'r> {
    /// No layer yet.
    pub fn new(registry: &'r Registry) -> Self {
        Self {
            registry,
            settings: Vec::new(),
            starts_from_adapter: false,
            records: BTreeMap::new(),
        }
    }

    /// The program's own choices, as TOML.
    ///
    /// # Errors
    /// Fails if the text is not TOML.
    pub fn defaults(&mut self, toml: &str) -> Result<()> {
        let table = toml::from_str(toml)
            .map_err(|e| Error::internal("the built-in defaults are not TOML").because(e))?;
        self.table(table, &Origin::Default);
        Ok(())
    }

    /// A configuration file.
    ///
    /// # Errors
    /// Fails if the file cannot be read or is not TOML.
    pub fn file(&mut self, path: &Path) -> Result<()> {
        let table = self.resolved(path)?;
        self.table(table, &Origin::File(path.to_owned()));
        Ok(())
    }

    /// Adds the configuration of the saved adapter in the folder `dir`, which the experiment uses.
    /// It replaces everything that the layers below set for the adapter. A layer above that
    /// contradicts it is an error, unless the adapter lets the field change.
    ///
    /// # Errors
    /// Fails if the adapter cannot be read.
    pub fn adapter(&mut self, dir: &Path) -> Result<()> {
        saved_adapter::replace(&mut self.settings, dir, self.registry)
    }

    /// Takes the configuration of the adapter that `init_adapter` names, as
    /// [`adapter`](Self::adapter) does. It lies above the defaults and the recipe, and below
    /// everything that the user sets.
    pub fn start_from_adapter(&mut self) {
        self.starts_from_adapter = true;
    }

    /// Adds only the model from a run's configuration file.
    ///
    /// # Errors
    /// Fails as [`file`](Self::file) does.
    pub fn model_of(&mut self, path: &Path) -> Result<()> {
        let mut table = self.resolved(path)?;
        table.retain(|field, _| field == "model");
        self.table(table, &Origin::File(path.to_owned()));
        Ok(())
    }

    /// Reads the table in a configuration file. If a run wrote the file, its relative paths begin
    /// at the file's folder and are made absolute.
    fn resolved(&mut self, path: &Path) -> Result<toml::Table> {
        let (mut table, record) = Record::split(path)?;
        if let Some(record) = record {
            record.resolve(&mut table, path, self.registry);
            self.records.insert(path.to_owned(), record);
        }
        Ok(table)
    }

    /// Adds the base model that an adapter names in the file `config`.
    pub fn base(&mut self, config: &Path, model: &str) {
        self.push(
            vec!["model".to_owned()],
            Given::Text(model.to_owned()),
            Origin::Base(config.to_owned()),
        );
    }

    /// The `REPRPO_*` among environment variables: `REPRPO_TRAIN__LR` is `train.lr`.
    pub fn environment(&mut self, variables: impl IntoIterator<Item = (String, String)>) {
        self.settings.extend(environment::settings(variables));
    }

    /// The value of a flag, for `path` (`train.seed`).
    pub fn flag(&mut self, flag: &str, path: &str, text: &str) {
        self.push(
            path.split('.').map(str::to_owned).collect(),
            Given::Text(text.to_owned()),
            Origin::Flag(flag.to_owned()),
        );
    }

    /// `a.b=value`, as `--set` takes it.
    ///
    /// # Errors
    /// Text without `=` or without a path before it.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        let malformed = || {
            Error::new(format!("`--set {assignment}` is not an assignment"))
                .hint("write `--set train.lr=3e-5`")
        };
        let (path, text) = assignment.split_once('=').ok_or_else(malformed)?;
        let path: Vec<String> = path.trim().split('.').map(|p| p.trim().to_owned()).collect();
        if path.iter().any(String::is_empty) {
            return Err(malformed());
        }
        self.push(path, Given::Text(text.trim().to_owned()), Origin::Set);
        Ok(())
    }

    fn table(&mut self, table: toml::Table, origin: &Origin) {
        self.settings.extend(Setting::of_table(table, origin));
    }

    fn push(&mut self, path: Vec<String>, given: Given, origin: Origin) {
        self.settings.push(Setting::new(path, given, origin));
    }

    /// The experiment that all layers together describe.
    ///
    /// # Errors
    /// Fails if a name or a field does not exist, or if a value has the wrong type or is out of
    /// range. The error names the origin.
    pub fn resolve(mut self) -> Result<Resolved> {
        self.plugins_are_there()?;
        recipe::expand(&mut self.settings, self.registry)?;
        if self.starts_from_adapter {
            saved_adapter::expand(&mut self.settings, self.registry)?;
        }
        choices::expand(&mut self.settings, self.registry)?;
        saved_adapter::check_name(&self.settings)?;
        let mut assembly = Assembly::new(self.registry, &self.settings)?;
        // The plugins' names first: the error of a field names what chose the plugin that does not
        // have it.
        let (names, fields): (Vec<_>, Vec<_>) =
            self.settings.iter().partition(|s| s.path.len() == 2 && s.path[1] == "name");
        for setting in names.into_iter().chain(fields) {
            assembly.apply(setting)?;
        }
        let Resolved { mut experiment, origins } = assembly.finish()?;
        experiment.sources = Sources::new(origins.clone(), self.records);
        Ok(Resolved { experiment, origins })
    }

    /// Takes the names of plugin files out: their work was done when they were loaded, and what
    /// stays of them is which of them the experiment uses.
    fn plugins_are_there(&mut self) -> Result<()> {
        for Setting { given, origin, .. } in self.settings.extract_if(.., |s| s.path == ["plugins"])
        {
            let files = match &given {
                Given::Value(value) => PluginFile::from_value(value, &origin)?,
                Given::Text(text) => PluginFile::in_text(text),
            };
            for PluginFile { path, .. } in files {
                let there = path
                    .canonicalize()
                    .is_ok_and(|file| self.registry.loaded().iter().any(|l| l.path == file));
                if !there {
                    return Err(Error::new(format!(
                        "the plugin `{}` ({origin}) is not loaded",
                        path.display()
                    ))
                    .hint("load it with `--plugin FILE`"));
                }
            }
        }
        Ok(())
    }
}

impl Experiment {
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
