//! Layers of settings, and the experiment that they resolve to.
//!
//! A layer is a list of settings. Each setting has a path, a value and an origin. Settings are only
//! checked once all layers are known. Until then, another layer can still choose a different plugin
//! with different fields.

mod assembly;
mod assignment;
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
pub use assignment::Assignment;
pub use environment::is_setting;
pub(crate) use learning_rate::default_learning_rate;
use setting::{RawValue, Setting};

use super::{Experiment, Origin, PluginFile, Record, Resolved, Sources};
use crate::error::{Error, Result};
use crate::registry::{Kind, Registry};

/// The layers added so far. Later layers override earlier ones.
#[derive(Debug)]
pub struct Layering<'r> {
    registry: &'r Registry,
    settings: Vec<Setting>,
    /// True if the configuration of the saved adapter in `init_adapter` is added as a layer.
    starts_from_adapter: bool,
    /// The records that runs wrote into their configuration files, by file path.
    records: BTreeMap<PathBuf, Record>,
}

impl<'r> Layering<'r> {
    /// Creates a layering without any layers.
    pub fn new(registry: &'r Registry) -> Self {
        Self {
            registry,
            settings: Vec::new(),
            starts_from_adapter: false,
            records: BTreeMap::new(),
        }
    }

    /// Adds the defaults of the binary, given as TOML.
    ///
    /// # Errors
    /// Fails if the text is not TOML.
    pub fn defaults(&mut self, toml: &str) -> Result<()> {
        let table = toml::from_str(toml)
            .map_err(|e| Error::internal("the built-in defaults are not TOML").because(e))?;
        self.table(table, &Origin::Default);
        Ok(())
    }

    /// Sets the default of `train.ranks` to the number of ranks of this process.
    pub fn launched(&mut self, ranks: usize) {
        let path = vec!["train".to_owned(), "ranks".to_owned()];
        self.push(path, RawValue::Value(ranks.into()), Origin::Default);
    }

    /// Adds a configuration file. If a run wrote the file, and a higher layer chooses another
    /// plugin, the fields of the run's plugin are ignored, because the user did not write them.
    ///
    /// # Errors
    /// Fails if the file cannot be read or is not TOML.
    pub fn file(&mut self, path: &Path) -> Result<()> {
        let table = self.resolved(path)?;
        let mut settings = Setting::of_table(table, &Origin::File(path.to_owned()));
        if self.records.contains_key(path) {
            for kind in Kind::ALL {
                let chosen = settings.iter().find(|s| s.is_name_of(kind.name()));
                let Some(name) = chosen.and_then(|s| s.given.text().ok()) else { continue };
                // An unknown name is an error later, unless a higher layer replaces it.
                let only_for = self.registry.get(kind, &name).ok().map(|e| e.about().name);
                for setting in &mut settings {
                    if setting.path.len() == 2
                        && setting.path[0] == kind.name()
                        && setting.path[1] != "name"
                    {
                        setting.only_for = only_for;
                    }
                }
            }
        }
        self.settings.extend(settings);
        Ok(())
    }

    /// Adds the configuration of the saved adapter in the folder `dir`. This layer replaces all
    /// adapter settings in lower layers. Higher layers must not contradict it, except in the
    /// adapter's adjustable fields.
    ///
    /// # Errors
    /// Fails if the adapter cannot be read.
    pub fn adapter(&mut self, dir: &Path) -> Result<()> {
        saved_adapter::replace(&mut self.settings, dir, self.registry)
    }

    /// Adds the configuration of the adapter that `init_adapter` names. This layer overrides the
    /// defaults and the recipe. As with [`adapter`](Self::adapter), the user's settings must not
    /// contradict this layer.
    pub fn start_from_adapter(&mut self) {
        self.starts_from_adapter = true;
    }

    /// Adds only the model from a run's configuration file.
    ///
    /// # Errors
    /// Fails in the same cases as [`file`](Self::file).
    pub fn model_of(&mut self, path: &Path) -> Result<()> {
        let mut table = self.resolved(path)?;
        table.retain(|field, _| field == "model");
        self.table(table, &Origin::File(path.to_owned()));
        Ok(())
    }

    /// Reads the table of a configuration file. If the file was written by a run, its relative
    /// paths are resolved against the file's folder.
    fn resolved(&mut self, path: &Path) -> Result<toml::Table> {
        let (mut table, record) = Record::split(path)?;
        if let Some(record) = record {
            record.resolve(&mut table, path, self.registry);
            self.records.insert(path.to_owned(), record);
        }
        Ok(table)
    }

    /// Adds the base model `model` of a saved adapter. The adapter's configuration file `config`
    /// names this model.
    pub fn base(&mut self, config: &Path, model: &str) {
        self.push(
            vec!["model".to_owned()],
            RawValue::Text(model.to_owned()),
            Origin::Base(config.to_owned()),
        );
    }

    /// Adds the settings in environment variables. For example, `REPRPO_TRAIN__LR` sets `train.lr`.
    pub fn environment(&mut self, variables: impl IntoIterator<Item = (String, String)>) {
        self.settings.extend(environment::settings(variables));
    }

    /// Adds the value `text` of a flag. The flag sets the field at `path`, e.g. `train.seed`.
    pub fn flag(&mut self, flag: &str, path: &str, text: &str) {
        self.push(
            path.split('.').map(str::to_owned).collect(),
            RawValue::Text(text.to_owned()),
            Origin::Flag(flag.to_owned()),
        );
    }

    /// Adds an assignment of a study.
    pub fn assign(&mut self, assignment: &Assignment) {
        self.settings.push(assignment.setting());
    }

    /// Adds an assignment of the form `a.b=value`, as given by `--set`.
    ///
    /// # Errors
    /// Fails if there is no `=`, or no path before it.
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
        self.push(path, RawValue::Text(text.trim().to_owned()), Origin::Set);
        Ok(())
    }

    fn table(&mut self, table: toml::Table, origin: &Origin) {
        self.settings.extend(Setting::of_table(table, origin));
    }

    fn push(&mut self, path: Vec<String>, given: RawValue, origin: Origin) {
        self.settings.push(Setting::new(path, given, origin));
    }

    /// Resolves the layers to an experiment.
    ///
    /// # Errors
    /// Fails if a name or a field does not exist, or if a value has the wrong type or is out of
    /// range. The error names the origin of the setting.
    pub fn resolve(mut self) -> Result<Resolved> {
        self.check_plugins()?;
        recipe::expand(&mut self.settings, self.registry)?;
        if self.starts_from_adapter {
            saved_adapter::expand(&mut self.settings, self.registry)?;
        }
        choices::expand(&mut self.settings, self.registry)?;
        saved_adapter::check_name(&self.settings)?;
        let mut assembly = Assembly::new(self.registry, &self.settings)?;
        // Apply the names of plugins first, because the error about an unknown field says where the
        // plugin was chosen.
        let (names, fields): (Vec<_>, Vec<_>) =
            self.settings.iter().partition(|s| s.path.len() == 2 && s.path[1] == "name");
        for setting in names.into_iter().chain(fields) {
            assembly.apply(setting)?;
        }
        let Resolved { mut experiment, origins } = assembly.finish()?;
        experiment.sources = Sources::new(origins.clone(), self.records);
        Ok(Resolved { experiment, origins })
    }

    /// Checks that all files in the `plugins` settings are loaded, and removes these settings. The
    /// resolved experiment only lists the plugin files that it uses.
    fn check_plugins(&mut self) -> Result<()> {
        for Setting { given, origin, .. } in self.settings.extract_if(.., |s| s.path == ["plugins"])
        {
            let files = match &given {
                RawValue::Value(value) => PluginFile::from_value(value, &origin)?,
                RawValue::Text(text) => PluginFile::in_text(text),
            };
            for PluginFile { path, .. } in files {
                let loaded = path
                    .canonicalize()
                    .is_ok_and(|file| self.registry.loaded().iter().any(|l| l.path == file));
                if !loaded {
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
    /// Reads the experiment from a run's `config.toml`.
    ///
    /// # Errors
    /// Fails if the file cannot be read, or if it names plugins or fields that do not exist.
    pub fn read(path: &Path, registry: &Registry) -> Result<Self> {
        let mut layers = Layering::new(registry);
        layers.file(path)?;
        Ok(layers.resolve()?.experiment)
    }
}
