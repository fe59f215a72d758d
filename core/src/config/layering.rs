//! Layers of values on top of each other, and what comes of them.
//!
//! A layer is a list of settings: a path, a value, and where it was said. Nothing is judged before all layers are in,
//! because only then is it known which plugins are chosen and so which fields there are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::fields::{Field, fields, json};
use super::{Experiment, Origin, Origins, PluginFile, Record, Sources, check, dataset, written};
use crate::error::{Error, Result, nearest};
use crate::model::peft::SavedConfig;
use crate::registry::{AdapterEntry, Entry, InterventionEntry, Kind, Registry, TypedEntry};

/// Variables that begin as the configuration's do and are read elsewhere.
const OTHER_VARIABLES: [&str; 6] = ["REPRPO_DATA", "REPRPO_CACHE", "REPRPO_SHARED", "REPRPO_NO_PROGRESS", "REPRPO_LOG", "REPRPO_PLUGIN_DIR"];

/// The section that a saved adapter describes.
const ADAPTER: &str = "adapter";

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

#[derive(Clone, Debug)]
struct Setting {
    path: Vec<String>,
    given: Given,
    origin: Origin,
    /// The setting goes with the choice of this plugin and falls with it: the text of `--dataset NAME:TEXT`, or what
    /// a recipe says of a plugin that it chooses.
    only_for: Option<&'static str>,
}

#[derive(Clone, Debug)]
enum Given {
    /// A typed value, of a file.
    Value(Value),
    /// Text, whose type is the field's.
    Text(String),
}

/// An experiment, and where each of its values came from.
#[derive(Debug)]
pub struct Resolved {
    /// The values.
    pub experiment: Experiment,
    /// Their origins.
    pub origins: Origins,
}

impl Resolved {
    /// The experiment as TOML with the origin of each value behind it.
    pub fn to_toml_with_origins(&self) -> String {
        written::toml(&self.experiment.to_json(), &self.origins)
    }
}

impl<'r> Layering<'r> {
    /// No layer yet.
    pub fn new(registry: &'r Registry) -> Self {
        Self { registry, settings: Vec::new(), starts_from_adapter: false, records: BTreeMap::new() }
    }

    /// The program's own choices, as TOML.
    ///
    /// # Errors
    /// Text that is no TOML.
    pub fn defaults(&mut self, toml: &str) -> Result<()> {
        let table = toml::from_str(toml).map_err(|e| Error::internal("the built-in defaults are not TOML").because(e))?;
        self.table(table, &Origin::Default);
        Ok(())
    }

    /// A configuration file.
    ///
    /// # Errors
    /// A file that cannot be read or is no TOML.
    pub fn file(&mut self, path: &Path) -> Result<()> {
        let table = self.resolved(path)?;
        self.table(table, &Origin::File(path.to_owned()));
        Ok(())
    }

    /// Adds the configuration of the saved adapter in the folder `dir`, which the experiment uses. It
    /// replaces everything that the layers below set for the adapter. A layer above that contradicts it
    /// is an error, unless the adapter lets the field change.
    ///
    /// # Errors
    /// Fails if the adapter cannot be read.
    pub fn adapter(&mut self, dir: &Path) -> Result<()> {
        let layer = self.adapter_layer(dir)?;
        self.settings.retain(|s| s.path.first().is_none_or(|p| p != ADAPTER));
        self.settings.extend(layer);
        Ok(())
    }

    /// Takes the configuration of the adapter that `init_adapter` names, as [`adapter`](Self::adapter)
    /// does. It lies above the defaults and the recipe, and below everything that the user sets.
    pub fn start_from_adapter(&mut self) {
        self.starts_from_adapter = true;
    }

    /// The configuration of the saved adapter in `dir`, as settings.
    fn adapter_layer(&self, dir: &Path) -> Result<Vec<Setting>> {
        let SavedConfig { entry, config, .. } = SavedConfig::read(dir, self.registry)?;
        let name = ("name".to_owned(), Value::String(entry.about.name.to_owned()));
        let setting = |(field, value)| Setting {
            path: vec![ADAPTER.to_owned(), field],
            given: Given::Value(value),
            origin: Origin::Adapter(dir.to_owned()),
            only_for: None,
        };
        Ok(std::iter::once(name).chain(config).map(setting).collect())
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

    /// Reads the table in a configuration file. If a run wrote the file, its relative paths begin at the
    /// file's folder and are made absolute.
    fn resolved(&mut self, path: &Path) -> Result<toml::Table> {
        let (mut table, record) = read(path)?;
        if let Some(record) = record {
            record.resolve(&mut table, path, self.registry);
            self.records.insert(path.to_owned(), record);
        }
        Ok(table)
    }

    /// Adds the base model that an adapter names in the file `config`.
    pub fn base(&mut self, config: &Path, model: &str) {
        self.push(vec!["model".to_owned()], Given::Text(model.to_owned()), Origin::Base(config.to_owned()));
    }

    /// The `REPRPO_*` among environment variables: `REPRPO_TRAIN__LR` is `train.lr`.
    pub fn environment(&mut self, variables: impl IntoIterator<Item = (String, String)>) {
        let mut ours: Vec<_> = variables.into_iter().filter(|(name, _)| name.starts_with("REPRPO_") && !OTHER_VARIABLES.contains(&name.as_str())).collect();
        // The order in which a process finds them means nothing.
        ours.sort();
        for (name, value) in ours {
            let path = name["REPRPO_".len()..].to_lowercase().split("__").map(str::to_owned).collect();
            self.push(path, Given::Text(value), Origin::Environment(name));
        }
    }

    /// The value of a flag, for `path` (`train.seed`).
    pub fn flag(&mut self, flag: &str, path: &str, text: &str) {
        self.push(path.split('.').map(str::to_owned).collect(), Given::Text(text.to_owned()), Origin::Flag(flag.to_owned()));
    }

    /// `a.b=value`, as `--set` takes it.
    ///
    /// # Errors
    /// Text without `=` or without a path before it.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        let malformed = || Error::new(format!("`--set {assignment}` is not an assignment")).hint("write `--set train.lr=3e-5`");
        let (path, text) = assignment.split_once('=').ok_or_else(malformed)?;
        let path: Vec<String> = path.trim().split('.').map(|p| p.trim().to_owned()).collect();
        if path.iter().any(String::is_empty) {
            return Err(malformed());
        }
        self.push(path, Given::Text(text.trim().to_owned()), Origin::Set);
        Ok(())
    }

    fn table(&mut self, table: toml::Table, origin: &Origin) {
        for (key, value) in table {
            match value {
                toml::Value::Table(section) => {
                    for (field, value) in section {
                        self.push(vec![key.clone(), field], Given::Value(json(value)), origin.clone());
                    }
                }
                value => self.push(vec![key], Given::Value(json(value)), origin.clone()),
            }
        }
    }

    fn push(&mut self, path: Vec<String>, given: Given, origin: Origin) {
        self.settings.push(Setting { path, given, origin, only_for: None });
    }

    /// The experiment that all layers together describe.
    ///
    /// # Errors
    /// A name or a field that does not exist, a value of the wrong type or out of range; says where it was given.
    pub fn resolve(mut self) -> Result<Resolved> {
        self.plugins_are_there()?;
        self.expand_recipe()?;
        self.expand_init_adapter()?;
        self.expand_choices()?;
        self.adapter_is_the_saved_one()?;
        let mut outcome = Outcome::new(self.registry, &self.settings)?;
        // The plugins' names first: the error of a field says who chose the plugin that does not have it.
        let (names, fields): (Vec<_>, Vec<_>) = self.settings.iter().partition(|s| s.path.len() == 2 && s.path[1] == "name");
        for setting in names.into_iter().chain(fields) {
            outcome.apply(setting)?;
        }
        let Resolved { mut experiment, origins } = outcome.finish()?;
        experiment.sources = Sources::new(origins.clone(), self.records);
        Ok(Resolved { experiment, origins })
    }

    /// Takes the names of plugin files out: their work was done when they were loaded, and what stays of them is which of
    /// them the experiment uses.
    fn plugins_are_there(&mut self) -> Result<()> {
        for Setting { given, origin, .. } in self.settings.extract_if(.., |s| s.path == ["plugins"]) {
            let files = match &given {
                Given::Value(value) => PluginFile::from_value(value, &origin)?,
                Given::Text(text) => PluginFile::in_text(text),
            };
            for PluginFile { path, .. } in files {
                let there = path.canonicalize().is_ok_and(|file| self.registry.loaded().iter().any(|l| l.path == file));
                if !there {
                    return Err(Error::new(format!("the plugin `{}` ({origin}) is not loaded", path.display())).hint("load it with `--plugin FILE`"));
                }
            }
        }
        Ok(())
    }

    /// Puts the values of the recipe that was chosen in the end above the defaults and below everything else.
    fn expand_recipe(&mut self) -> Result<()> {
        let Some(choice) = self.settings.iter().rfind(|s| s.path == ["recipe"]) else { return Ok(()) };
        let name = match &choice.given {
            Given::Text(text) => text.trim_matches('"').to_owned(),
            Given::Value(Value::String(text)) => text.clone(),
            Given::Value(other) => {
                return Err(
                    Error::new(format!("`recipe` in {} is {other}, not the name of a recipe", choice.origin)).hint("`reprpo list recipes` lists the names")
                );
            }
        };
        if matches!(name.as_str(), "none" | "null") {
            return Ok(());
        }
        let registry = self.registry;
        let recipe = registry.recipe(&name).map_err(|e| match choice.origin {
            Origin::Flag(_) => e,
            _ => e.within(format!("`recipe` in {} cannot be used", choice.origin)),
        })?;
        let above = self.settings.iter().position(|s| s.origin != Origin::Default).unwrap_or(self.settings.len());
        let rest = self.settings.split_off(above);
        self.table(recipe.values.clone(), &Origin::Recipe(name));
        for setting in &mut self.settings[above..] {
            // Another choice of the plugin takes what the recipe said of the one it replaces away.
            let chosen = setting.path.first().and_then(|section| recipe.values.get(section)?.get("name")?.as_str());
            let kind = Kind::ALL.into_iter().find(|k| setting.path[0] == k.name());
            if let (Some(kind), Some(chosen), [_, field]) = (kind, chosen, &setting.path[..])
                && field != "name"
            {
                setting.only_for = registry.get(kind, chosen).ok().map(|e| e.about().name);
            }
        }
        self.settings.extend(rest);
        Ok(())
    }

    /// Puts the configuration of `init_adapter` above the defaults and the recipe.
    fn expand_init_adapter(&mut self) -> Result<()> {
        if !self.starts_from_adapter {
            return Ok(());
        }
        let Some(choice) = self.settings.iter().rfind(|s| s.path == ["init_adapter"]) else { return Ok(()) };
        let dir = match &choice.given {
            Given::Text(text) => text.trim_matches('"').to_owned(),
            Given::Value(Value::String(text)) => text.clone(),
            // A value of the wrong type is refused later, as in any other field.
            Given::Value(_) => return Ok(()),
        };
        if matches!(dir.as_str(), "none" | "null") {
            return Ok(());
        }
        let layer = self.adapter_layer(Path::new(&dir)).map_err(|e| match choice.origin {
            Origin::Flag(_) => e,
            _ => e.within(format!("`init_adapter` in {} cannot be used", choice.origin)),
        })?;
        let above = self.settings.iter().position(|s| !matches!(s.origin, Origin::Default | Origin::Recipe(_)));
        let rest = self.settings.split_off(above.unwrap_or(self.settings.len()));
        self.settings.retain(|s| s.path.first().is_none_or(|p| p != ADAPTER));
        self.settings.extend(layer);
        self.settings.extend(rest);
        Ok(())
    }

    /// Refuses an `adapter.name` that differs from the saved adapter's.
    fn adapter_is_the_saved_one(&self) -> Result<()> {
        let is_name = |s: &&Setting| s.path.len() == 2 && s.path[0] == ADAPTER && s.path[1] == "name";
        let mut saved = None;
        for setting in self.settings.iter().filter(is_name) {
            let Given::Value(Value::String(name)) = &setting.given else { continue };
            match (&setting.origin, saved) {
                (Origin::Adapter(dir), _) => saved = Some((dir, name)),
                (origin, Some((dir, kind))) if name != kind => {
                    return Err(Error::new(format!("`adapter.name` is `{name}` ({origin}), but the adapter in `{}` is of type `{kind}`", dir.display()))
                        .hint("leave the adapter's name out, because a saved adapter brings its own; or start without a saved adapter"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// `intervention = "x"` means `intervention.name = "x"`, and a data set's text may mean more than a name.
    fn expand_choices(&mut self) -> Result<()> {
        let mut expanded = Vec::with_capacity(self.settings.len());
        for setting in std::mem::take(&mut self.settings) {
            let kind = Kind::ALL.into_iter().find(|k| setting.path.first().is_some_and(|p| p == k.name()));
            let names = setting.path.len() == 1 || (setting.path.len() == 2 && setting.path[1] == "name");
            let Some(kind) = kind.filter(|_| names) else {
                expanded.push(setting);
                continue;
            };
            let text = match &setting.given {
                Given::Text(text) => text.trim_matches('"').to_owned(),
                Given::Value(Value::String(text)) => text.clone(),
                Given::Value(other) => {
                    return Err(Error::new(format!("`{}` in {} is {other}, not the name of a plugin", setting.path.join("."), setting.origin))
                        .hint(format!("`reprpo list {}` lists the names", kind.plural())));
                }
            };
            let path = |field: &str| vec![kind.name().to_owned(), field.to_owned()];
            let said = |e: Error| match setting.origin {
                // The command line is before the user's eyes.
                Origin::Flag(_) => e,
                Origin::Default => e.within(format!("the built-in default of `{}` cannot be used", setting.path.join("."))),
                _ => e.within(format!("`{}` in {} cannot be used", setting.path.join("."), setting.origin)),
            };
            if kind == Kind::Dataset && setting.path.len() == 1 {
                let meant = dataset::meant(&text, self.registry).map_err(said)?;
                let origin = &setting.origin;
                let name = Given::Value(Value::String(meant.name.to_owned()));
                expanded.push(Setting { path: path("name"), given: name, origin: origin.clone(), only_for: None });
                if let Some((field, text)) = meant.argument {
                    expanded.push(Setting { path: path(field), given: Given::Text(text), origin: origin.clone(), only_for: Some(meant.name) });
                }
            } else {
                let name = self.registry.get(kind, &text).map_err(said)?.about().name;
                expanded.push(Setting { path: path("name"), given: Given::Value(Value::String(name.to_owned())), ..setting });
            }
        }
        self.settings = expanded;
        Ok(())
    }
}

/// The table in a configuration file, and the record in it if a run wrote the file.
pub(super) fn read(path: &Path) -> Result<(toml::Table, Option<Record>)> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::new(format!("cannot read the configuration file `{}`", path.display())).because(e))?;
    let mut table = toml::from_str(&text).map_err(|e: toml::de::Error| not_toml(path, &text, &e))?;
    let record = Record::take(&mut table, path)?;
    Ok((table, record))
}

fn not_toml(path: &Path, text: &str, e: &toml::de::Error) -> Error {
    let place = e.span().map_or_else(String::new, |span| {
        let before = text.get(..span.start).unwrap_or(text);
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        format!("line {}, column {column}: ", before.matches('\n').count() + 1)
    });
    Error::new(format!("the configuration file `{}` is not TOML", path.display()))
        .because(Error::new(format!("{place}{}", e.message().lines().next().unwrap_or_default())))
}

/// A section of the experiment: what may stand in it.
#[derive(Debug)]
struct Section {
    fields: Vec<Field>,
    /// The plugin whose fields these are.
    plugin: Option<Entry>,
}

/// The experiment in the making.
struct Outcome<'r> {
    registry: &'r Registry,
    values: Map<String, Value>,
    origins: Origins,
    top: Vec<Field>,
    sections: BTreeMap<&'static str, Section>,
}

impl<'r> Outcome<'r> {
    /// The defaults: the engine's, and those of the plugins that `settings` choose in the end.
    fn new(registry: &'r Registry, settings: &[Setting]) -> Result<Self> {
        let schema = schemars::schema_for!(Experiment).to_value();
        let base = Experiment::base().as_object().cloned().unwrap_or_default();
        let mut this = Self { registry, values: Map::new(), origins: Origins::default(), top: fields(&schema, &base), sections: BTreeMap::new() };
        for field in ["recipe", "plugins", "model", "device", "dtype", "attention", "tf32", "deterministic", "out", "init_adapter", "init_transform"] {
            this.values.insert(field.to_owned(), base.get(field).cloned().unwrap_or(Value::Null));
            this.origins.insert(field.to_owned(), Origin::Default);
        }
        for kind in Kind::ALL {
            let chosen = settings.iter().rev().find(|s| s.path.len() == 2 && s.path[0] == kind.name() && s.path[1] == "name");
            let Some(Setting { given: Given::Value(Value::String(name)), .. }) = chosen else {
                return Err(Error::new(format!("no {} is chosen", kind.name())).hint(format!(
                    "choose one with `--{} NAME`; `reprpo list {}` lists them",
                    kind.name(),
                    kind.plural()
                )));
            };
            this.plugin(kind, registry.get(kind, name)?)?;
        }
        for section in ["train", "eval"] {
            let defaults = base.get(section).and_then(Value::as_object).cloned().unwrap_or_default();
            let schema = match section {
                "train" => schemars::schema_for!(super::TrainConfig),
                _ => schemars::schema_for!(super::EvalConfig),
            };
            let fields = fields(&schema.to_value(), &defaults);
            this.insert_defaults(section, defaults, &Origin::Default);
            this.sections.insert(section, Section { fields, plugin: None });
        }
        this.learning_rate();
        Ok(this)
    }

    /// Sets the default of `train.lr` that the chosen intervention and adapter bring, if one of them brings any.
    fn learning_rate(&mut self) {
        let chosen = |kind: Kind| self.sections.get(kind.name()).and_then(|section| section.plugin);
        let intervention = chosen(Kind::Intervention).and_then(InterventionEntry::of_entry);
        let adapter = chosen(Kind::Adapter).and_then(AdapterEntry::of_entry);
        let (Some(engine), Some(intervention), Some(adapter)) = (self.values["train"]["lr"].as_f64(), intervention, adapter) else { return };
        let (rate, of) = default_learning_rate(engine, intervention, adapter);
        if !of.is_empty() {
            self.values["train"]["lr"] = rate.into();
            self.origins.insert("train.lr".to_owned(), Origin::Plugin(of.join(" × ")));
        }
    }

    fn plugin(&mut self, kind: Kind, entry: Entry) -> Result<()> {
        let about = entry.about();
        let defaults = about.defaults()?;
        let fields = fields(&about.schema()?, &defaults);
        if fields.iter().any(|f| f.name == "name") {
            return Err(Error::internal(format!(
                "the configuration of {} `{}` has a field `name`, which is where its own name stands",
                kind.name(),
                about.name
            )));
        }
        let mut section = Map::from_iter([("name".to_owned(), Value::String(about.name.to_owned()))]);
        section.extend(defaults);
        self.insert_defaults(kind.name(), section, &Origin::Plugin(about.name.to_owned()));
        self.sections.insert(kind.name(), Section { fields, plugin: Some(entry) });
        Ok(())
    }

    fn insert_defaults(&mut self, section: &str, defaults: Map<String, Value>, origin: &Origin) {
        for field in defaults.keys() {
            self.origins.insert(format!("{section}.{field}"), origin.clone());
        }
        self.values.insert(section.to_owned(), Value::Object(defaults));
    }

    fn apply(&mut self, setting: &Setting) -> Result<()> {
        let path: Vec<&str> = setting.path.iter().map(String::as_str).collect();
        let (value, target) = match path[..] {
            [name] => match self.top.iter().find(|f| f.name == name) {
                Some(_) if self.sections.contains_key(name) => {
                    return Err(Error::new(format!("`{name}` in {} is a section, not a value", setting.origin))
                        .hint(format!("give one of its fields, as `{name}.{}`", self.sections[name].fields.first().map_or("name", |f| &f.name))));
                }
                Some(field) => (setting.given.for_field(field), self.values.entry(name).or_insert(Value::Null)),
                None => return Err(self.unknown(setting)),
            },
            [section, "name"] if self.sections.get(section).is_some_and(|s| s.plugin.is_some()) => {
                let Given::Value(value) = &setting.given else { return Ok(()) };
                (value.clone(), &mut self.values[section]["name"])
            }
            [section, name, ref inner @ ..] => {
                let Some(known) = self.sections.get(section) else { return Err(self.unknown(setting)) };
                if let (Some(only), Some(plugin)) = (setting.only_for, known.plugin)
                    && only != plugin.about().name
                {
                    return Ok(());
                }
                let Some(field) = known.fields.iter().find(|f| f.name == name) else { return Err(self.unknown(setting)) };
                let value = setting.given.for_field(field);
                if let Some(Origin::Adapter(dir)) = self.origins.get(&format!("{section}.{name}"))
                    && !known.plugin.is_some_and(|p| is_adjustable(p, name))
                {
                    let saved = &self.values[section][name];
                    let mut wanted = saved.clone();
                    put(at(&mut wanted, inner), value);
                    return if field.same(saved, &wanted) { Ok(()) } else { Err(contradicts(setting, saved, &wanted, dir, known)) };
                }
                (value, at(&mut self.values[section][name], inner))
            }
            [] => return Ok(()),
        };
        match setting.origin {
            // A saved adapter has every value in full, so nothing is merged.
            Origin::Adapter(_) => *target = value,
            _ => put(target, value),
        }
        // A part of a value is shown with the value, and so is who said it.
        let shown = &setting.path[..setting.path.len().min(2)];
        self.origins.insert(shown.join("."), setting.origin.clone());
        Ok(())
    }

    /// Types and ranges.
    fn finish(self) -> Result<Resolved> {
        let Self { registry, mut values, mut origins, sections, .. } = self;
        let chosen = sections.values().filter_map(|section| registry.file_of(section.plugin?));
        let recipe = values.get("recipe").and_then(Value::as_str).and_then(|name| registry.file_of_recipe(name));
        let mut used: Vec<PluginFile> = Vec::new();
        for file in chosen.chain(recipe).map(PluginFile::of) {
            if !used.contains(&file) {
                used.push(file);
            }
        }
        if !used.is_empty() {
            origins.insert("plugins".to_owned(), Origin::Chosen);
        }
        values.insert("plugins".to_owned(), serde_json::to_value(used).unwrap_or_default());
        if values.get("model").is_none_or(Value::is_null) {
            return Err(Error::new("no model is chosen").hint("choose one with `--model NAME`"));
        }
        let said = |path: &str| origins.get(path).map_or_else(String::new, |o| format!(" ({o})"));
        for (name, section) in &sections {
            let Some(entry) = section.plugin else { continue };
            let mut config = values.get(*name).and_then(Value::as_object).cloned().unwrap_or_default();
            config.shift_remove("name");
            entry.about().check(&Value::Object(config).to_string()).map_err(|misfit| {
                let path = if misfit.path.is_empty() { (*name).to_owned() } else { format!("{name}.{}", misfit.path) };
                Error::new(format!("`{path}` of {name} `{}` is not right{}", entry.about().name, said(&path)))
                    .because(Error::new(plain(&misfit.message)))
                    .hint(format!("`reprpo explain {}` describes every field", entry.about().name))
            })?;
        }
        let experiment: Experiment = serde_path_to_error::deserialize(Value::Object(values)).map_err(|e| {
            let path = e.path().to_string();
            Error::new(format!("`{path}` is not right{}", said(&path)))
                .because(Error::new(plain(&e.inner().to_string())))
                .hint("`reprpo config schema` describes every field")
        })?;
        check::check(&experiment, &origins)?;
        Ok(Resolved { experiment, origins })
    }

    /// The error of a setting whose field does not exist.
    fn unknown(&self, setting: &Setting) -> Error {
        let (path, origin) = (setting.path.join("."), &setting.origin);
        // In the spelling in which it was given, so that a hint can be pasted.
        let spelt = |path: &str| match origin {
            Origin::Environment(_) => format!("REPRPO_{}", path.replace('.', "__").to_uppercase()),
            _ => path.to_owned(),
        };
        let section = setting.path.first().and_then(|s| self.sections.get_key_value(s.as_str())).filter(|_| setting.path.len() > 1);
        let top = || self.top.iter().map(|f| f.name.as_str());
        let mut valid: Vec<String> = match section {
            Some((name, section)) => section.fields.iter().map(|f| format!("{name}.{}", f.name)).collect(),
            None => top().map(str::to_owned).collect(),
        };
        valid.sort();
        let plugin = section.and_then(|(kind, s)| s.plugin.map(|p| (*kind, p)));
        let mut error = match (plugin, origin) {
            (Some((kind, entry)), _) => Error::new(format!("{kind} `{}` has no field `{}` ({origin})", entry.about().name, setting.path[1..].join("."))),
            (None, Origin::Environment(name)) => Error::new(format!("the environment variable `{name}` stands for no configuration field")),
            (None, _) => Error::new(format!("unknown configuration field `{path}` ({origin})")),
        };
        if let Some(near) = self.near(setting, &valid) {
            error = error.hint(format!("did you mean `{}`?", spelt(&near)));
        }
        if let Some((kind, chosen)) = plugin {
            let owners: Vec<String> = Kind::ALL
                .into_iter()
                .filter(|k| k.name() == kind)
                .flat_map(|k| self.registry.of(k))
                .filter(|e| e.about().name != chosen.about().name && e.about().defaults().is_ok_and(|d| d.contains_key(&setting.path[1])))
                .map(|e| format!("`{}`", e.about().name))
                .collect();
            if !owners.is_empty() {
                let has = if owners.len() == 1 { "has" } else { "have" };
                let chooser = self.origins.get(&format!("{kind}.name")).map_or_else(String::new, |o| format!(" by {o}"));
                error = error.hint(format!("{} {has} that field, but the {kind} is `{}`{chooser}", owners.join(", "), chosen.about().name));
            }
        }
        let mut valid: Vec<String> = valid.iter().map(|v| spelt(v)).collect();
        if matches!(origin, Origin::Environment(_)) && section.is_none() {
            valid.extend(OTHER_VARIABLES.map(str::to_owned));
        }
        if valid.is_empty() {
            error.hint(format!("`{}` has no fields", plugin.map_or("it", |(_, p)| p.about().name)))
        } else {
            error.hint(format!("valid: {}", valid.join(", ")))
        }
    }

    /// The field that was likely meant: the nearest here, or one of that very name in another section.
    fn near(&self, setting: &Setting, valid: &[String]) -> Option<String> {
        let last = |path: &str| path.rsplit('.').next().unwrap_or(path).to_owned();
        let given = setting.path.get(1).or(setting.path.first())?;
        let names: Vec<String> = valid.iter().map(|v| last(v)).collect();
        let here = if setting.path.len() > 1 && !self.sections.contains_key(setting.path[0].as_str()) {
            let first = nearest(&setting.path[0], valid)?;
            Some(format!("{first}.{}", setting.path[1..].join(".")))
        } else {
            let near = nearest(given, &names).map(str::to_owned);
            near.and_then(|near| valid.iter().find(|v| last(v) == near).cloned())
        };
        let elsewhere = || self.sections.iter().find_map(|(section, s)| s.fields.iter().find(|f| f.name == *given).map(|f| format!("{section}.{}", f.name)));
        let exact = setting.path.len() == 1;
        if exact { elsewhere().or(here) } else { here.or_else(elsewhere) }
    }
}

/// The default of `train.lr`, which is the intervention's rate or else the `engine`'s, times the adapter's factor. Also gives
/// the names of the plugins that it comes from.
pub(crate) fn default_learning_rate(engine: f64, intervention: &InterventionEntry, adapter: &AdapterEntry) -> (f64, Vec<&'static str>) {
    let (mut rate, mut of) = (engine, Vec::new());
    if let Some(own) = intervention.learning_rate {
        rate = own;
        of.push(intervention.about.name);
    }
    let factor = adapter.learning_rate_factor;
    if factor != 1.0 {
        // Rounded to six digits, so that 2e-3 times 3 is shown as 0.006.
        rate = format!("{:.5e}", rate * factor).parse().unwrap_or(rate * factor);
        of.push(adapter.about.name);
    }
    (rate, of)
}

/// The part of `value` at the path `inner`. Tables that are missing on the way are added.
fn at<'v>(value: &'v mut Value, inner: &[&str]) -> &'v mut Value {
    inner.iter().fold(value, |target, part| {
        if !target.is_object() {
            *target = Value::Object(Map::new());
        }
        &mut target[*part]
    })
}

/// Sets `target` to `value`. A table is merged into a table, because it may hold only some of the parts.
fn put(target: &mut Value, value: Value) {
    match (target, value) {
        (Value::Object(old), Value::Object(new)) => old.extend(new),
        (target, value) => *target = value,
    }
}

/// True if the field may have another value than the saved adapter has.
fn is_adjustable(entry: Entry, field: &str) -> bool {
    AdapterEntry::of_entry(entry).is_some_and(|adapter| adapter.adjustable.contains(&field))
}

/// The error of a setting that contradicts the saved adapter in `dir`.
fn contradicts(setting: &Setting, saved: &Value, wanted: &Value, dir: &Path, section: &Section) -> Error {
    let path = setting.path[..setting.path.len().min(2)].join(".");
    let text = |value: &Value| match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let name = section.plugin.map_or("", |p| p.about().name);
    let adjustable: Vec<String> = section
        .fields
        .iter()
        .map(|f| f.name.as_str())
        .filter(|f| section.plugin.is_some_and(|p| is_adjustable(p, f)))
        .map(|f| format!("`adapter.{f}`"))
        .collect();
    let may_change = match adjustable.is_empty() {
        true => format!("no setting of a saved `{name}` adapter can be changed"),
        false => format!("of a saved `{name}` adapter, only {} can be changed", adjustable.join(", ")),
    };
    Error::new(format!("`{path}` is `{}` ({}), but the adapter in `{}` was saved with `{}`", text(wanted), setting.origin, dir.display(), text(saved)))
        .hint(format!("leave `{path}` out, because a saved adapter brings its own settings; {may_change}"))
}

impl Given {
    fn for_field(&self, field: &Field) -> Value {
        match self {
            Given::Text(text) => field.read(text),
            Given::Value(value) => field.take(value.clone()),
        }
    }
}

/// serde's words about a type in those of a person who knows no Rust.
fn plain(message: &str) -> String {
    let Some((said, expected)) = message.rsplit_once("expected ") else { return message.to_owned() };
    let expected = match expected {
        "f64" | "f32" => "a number",
        "u64" | "u32" | "usize" | "u16" | "u8" => "a whole number, 0 or more",
        "i64" | "i32" | "isize" => "a whole number",
        "a boolean" => "true or false",
        other => other,
    };
    format!("{said}expected {expected}")
}
