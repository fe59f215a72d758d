//! Builds the experiment from the settings. It starts with the defaults of the engine and of the
//! chosen plugins, applies each setting in order, and checks the result.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::learning_rate::default_learning_rate;
use super::saved_adapter::{contradicts, is_adjustable};
use super::section::Section;
use super::setting::{RawValue, Setting};
use super::unknown::KnownFields;
use crate::config::fields::{Field, fields};
use crate::config::{Experiment, Origin, Origins, PluginFile, Resolved, check};
use crate::error::{Error, Result};
use crate::registry::{AdapterEntry, Entry, InterventionEntry, Kind, Registry, TypedEntry};

/// A partly built experiment: the defaults and the settings applied so far.
pub(super) struct Assembly<'r> {
    registry: &'r Registry,
    values: Map<String, Value>,
    origins: Origins,
    top: Vec<Field>,
    sections: BTreeMap<String, Section>,
}

impl<'r> Assembly<'r> {
    /// Starts with the defaults of the engine and of the plugins that `settings` choose.
    pub fn new(registry: &'r Registry, settings: &[Setting]) -> Result<Self> {
        let schema = schemars::schema_for!(Experiment).to_value();
        let defaults = Experiment::default().to_json().as_object().cloned().unwrap_or_default();
        let mut this = Self {
            registry,
            values: Map::new(),
            origins: Origins::default(),
            top: fields(&schema, &defaults),
            sections: BTreeMap::new(),
        };
        for (name, default) in defaults {
            let fields = this
                .top
                .iter()
                .find(|f| f.name == name)
                .map(|f| f.fields.clone())
                .unwrap_or_default();
            match (Kind::ALL.into_iter().find(|k| k.name() == name), default) {
                (Some(kind), _) => this.plugin(kind, chosen(kind, settings, registry)?)?,
                (None, Value::Object(defaults)) => {
                    this.insert_defaults(&name, defaults, &Origin::Default);
                    this.sections.insert(name, Section { fields, plugin: None });
                }
                (None, default) => {
                    this.origins.insert(name.clone(), Origin::Default);
                    this.values.insert(name, default);
                }
            }
        }
        this.learning_rate();
        Ok(this)
    }

    /// Sets the default of `train.lr`, if the chosen intervention declares a `learning_rate` or the
    /// chosen adapter declares a `learning_rate_factor`.
    fn learning_rate(&mut self) {
        let chosen = |kind: Kind| self.sections.get(kind.name()).and_then(|section| section.plugin);
        let intervention = chosen(Kind::Intervention).and_then(InterventionEntry::of_entry);
        let adapter = chosen(Kind::Adapter).and_then(AdapterEntry::of_entry);
        let (Some(engine), Some(intervention), Some(adapter)) =
            (self.values["train"]["lr"].as_f64(), intervention, adapter)
        else {
            return;
        };
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
                "the configuration of {} `{}` has a field `name`, which is reserved for the \
                    plugin's name",
                kind.name(),
                about.name
            )));
        }
        let mut section =
            Map::from_iter([("name".to_owned(), Value::String(about.name.to_owned()))]);
        section.extend(defaults);
        self.insert_defaults(kind.name(), section, &Origin::Plugin(about.name.to_owned()));
        self.sections.insert(kind.name().to_owned(), Section { fields, plugin: Some(entry) });
        Ok(())
    }

    fn insert_defaults(&mut self, section: &str, defaults: Map<String, Value>, origin: &Origin) {
        for field in defaults.keys() {
            self.origins.insert(format!("{section}.{field}"), origin.clone());
        }
        self.values.insert(section.to_owned(), Value::Object(defaults));
    }

    /// Applies one setting.
    ///
    /// # Errors
    /// Fails if the field does not exist, or if the value contradicts a saved adapter.
    pub fn apply(&mut self, setting: &Setting) -> Result<()> {
        let path: Vec<&str> = setting.path.iter().map(String::as_str).collect();
        let (value, target) = match path[..] {
            [name] => match self.top.iter().find(|f| f.name == name) {
                Some(_) if self.sections.contains_key(name) => {
                    return Err(Error::new(format!(
                        "`{name}` in {} is a section, not a value",
                        setting.origin
                    ))
                    .hint(format!(
                        "set one of its fields, e.g. `{name}.{}`",
                        self.sections[name].fields.first().map_or("name", |f| &f.name)
                    )));
                }
                Some(field) => {
                    (setting.given.for_field(field), self.values.entry(name).or_insert(Value::Null))
                }
                None => return Err(self.unknown(setting)),
            },
            [section, "name"] if self.sections.get(section).is_some_and(|s| s.plugin.is_some()) => {
                let RawValue::Value(value) = &setting.given else { return Ok(()) };
                (value.clone(), &mut self.values[section]["name"])
            }
            [section, name, ref inner @ ..] => {
                let Some(known) = self.sections.get(section) else {
                    return Err(self.unknown(setting));
                };
                if let (Some(only), Some(plugin)) = (setting.only_for, known.plugin)
                    && only != plugin.about().name
                {
                    return Ok(());
                }
                let Some(field) = known.fields.iter().find(|f| f.name == name) else {
                    return Err(self.unknown(setting));
                };
                let value = setting.given.for_field(field);
                if let Some(Origin::Adapter(dir)) = self.origins.get(&format!("{section}.{name}"))
                    && !known.plugin.is_some_and(|p| is_adjustable(p, name))
                {
                    let saved = &self.values[section][name];
                    let mut wanted = saved.clone();
                    put(at(&mut wanted, inner), value);
                    return if field.same(saved, &wanted) {
                        Ok(())
                    } else {
                        Err(contradicts(setting, saved, &wanted, dir, known.plugin, &known.fields))
                    };
                }
                (value, at(&mut self.values[section][name], inner))
            }
            [] => return Ok(()),
        };
        match setting.origin {
            // A saved adapter specifies complete tables, so they replace the old ones.
            Origin::Adapter(_) => *target = value,
            _ => put(target, value),
        }
        // Store one origin per field, because the origin is shown next to the field's whole value.
        // A setting can set just a part of this value.
        let shown = &setting.path[..setting.path.len().min(2)];
        self.origins.insert(shown.join("."), setting.origin.clone());
        Ok(())
    }

    /// Checks types and ranges.
    ///
    /// # Errors
    /// Fails if a value has the wrong type or is out of range. The error names the origin of the
    /// value.
    pub fn finish(self) -> Result<Resolved> {
        let Self { registry, mut values, mut origins, sections, .. } = self;
        let chosen = sections.values().filter_map(|section| registry.file_of(section.plugin?));
        let recipe = values
            .get("recipe")
            .and_then(Value::as_str)
            .and_then(|name| registry.file_of_recipe(name));
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
        if values.get("model").is_some_and(|model| model == "")
            && origins.get("model") == Some(&Origin::Default)
        {
            return Err(Error::new("no model is chosen").hint("choose a model with `--model NAME`"));
        }
        let from = |path: &str| origins.get(path).map_or_else(String::new, |o| format!(" ({o})"));
        for (name, section) in &sections {
            let Some(entry) = section.plugin else { continue };
            let mut config =
                values.get(name).and_then(Value::as_object).cloned().unwrap_or_default();
            config.shift_remove("name");
            entry.about().check(&Value::Object(config).to_string()).map_err(|misfit| {
                let path = if misfit.path.is_empty() {
                    name.clone()
                } else {
                    format!("{name}.{}", misfit.path)
                };
                Error::new(format!(
                    "`{path}` of {name} `{}` is not valid{}",
                    entry.about().name,
                    from(&path)
                ))
                .because(Error::new(plain(&misfit.message)))
                .hint(format!("see `reprpo explain {}` for its fields", entry.about().name))
            })?;
        }
        let experiment: Experiment = serde_path_to_error::deserialize(Value::Object(values))
            .map_err(|e| {
                let path = e.path().to_string();
                Error::new(format!("`{path}` is not valid{}", from(&path)))
                    .because(Error::new(plain(&e.inner().to_string())))
                    .hint("see `reprpo config schema` for all fields")
            })?;
        check::check(&experiment, &origins)?;
        Ok(Resolved { experiment, origins })
    }

    fn unknown(&self, setting: &Setting) -> Error {
        KnownFields {
            registry: self.registry,
            origins: &self.origins,
            top: &self.top,
            sections: &self.sections,
        }
        .unknown(setting)
    }
}

/// The plugin that the settings choose for `kind`. If several settings choose one, the last setting
/// takes effect.
fn chosen(kind: Kind, settings: &[Setting], registry: &Registry) -> Result<Entry> {
    let name =
        settings.iter().rev().find(|s| s.is_name_of(kind.name())).and_then(|s| s.given.text().ok());
    let none = || {
        let (kind, plural) = (kind.name(), kind.plural());
        Error::new(format!("no {kind} is chosen"))
            .hint(format!("choose one with `--{kind} NAME` (see `reprpo list {plural}`)"))
    };
    registry.get(kind, &name.ok_or_else(none)?)
}

/// The value inside `value` at the path `inner`. Missing tables along the path are created.
fn at<'v>(value: &'v mut Value, inner: &[&str]) -> &'v mut Value {
    inner.iter().fold(value, |target, part| {
        if !target.is_object() {
            *target = Value::Object(Map::new());
        }
        &mut target[*part]
    })
}

/// Sets `target` to `value`. Tables are merged, because `value` may only contain some of the keys.
fn put(target: &mut Value, value: Value) {
    match (target, value) {
        (Value::Object(old), Value::Object(new)) => old.extend(new),
        (target, value) => *target = value,
    }
}

/// Replaces the names of Rust types in an error message of serde with plain words.
fn plain(message: &str) -> String {
    let Some((found, expected)) = message.rsplit_once("expected ") else {
        return message.to_owned();
    };
    let expected = match expected {
        "f64" | "f32" => "a number",
        "u64" | "u32" | "usize" | "u16" | "u8" => "a whole number, 0 or more",
        "i64" | "i32" | "isize" => "a whole number",
        "a boolean" => "true or false",
        other => other,
    };
    format!("{found}expected {expected}")
}
