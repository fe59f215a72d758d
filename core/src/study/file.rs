//! Reads a study file.

use std::path::{Path, PathBuf};

use serde_json::Value;
use toml::{Table, Value as Toml};

use super::sampler::{Kind, Settings};
use super::space::{Dimension, Values};
use crate::config::value::json;
use crate::config::{Assignment, Origin};
use crate::error::{Context, Error, Result};

/// The content of a study file.
#[derive(Clone, Debug)]
pub struct StudyFile {
    /// The path of the file.
    pub path: PathBuf,
    /// The name of the study. By default, it is the name of the file without its ending.
    pub name: String,
    /// The seeds of the final runs; empty if the file does not name any.
    pub seeds: Vec<u64>,
    /// True if all searched points are run with all seeds, and not only the tuned one.
    pub all_points: bool,
    /// The fields that all runs share.
    pub base: Vec<Assignment>,
    /// Fields with several values. Each combination is run with each method.
    pub grid: Vec<Axis>,
    /// The methods, in the order of the file.
    pub methods: Vec<Method>,
    /// The search; `None` if the study only has final runs.
    pub search: Option<Settings>,
    /// The fields that the search varies.
    pub fields: Vec<Dimension>,
}

/// A field and its values.
#[derive(Clone, Debug)]
pub struct Axis {
    /// The field.
    pub field: String,
    /// The values.
    pub values: Vec<Value>,
}

/// A method of a study.
#[derive(Clone, Debug)]
pub struct Method {
    /// The name in the study.
    pub name: String,
    /// The fields that make the method.
    pub settings: Vec<Assignment>,
    /// False if the search leaves the method out.
    pub searched: bool,
    /// The method's own searched fields. They replace those of the study with the same name.
    pub fields: Vec<Dimension>,
}

/// The keys of a study file.
const KEYS: [&str; 8] = ["name", "plugins", "seeds", "final", "base", "grid", "methods", "search"];
/// The tables of which a study file has at least one. A file without them is a grid.
const TABLES: [&str; 4] = ["base", "grid", "methods", "search"];
/// The keys of the table `search`.
const SEARCH_KEYS: [&str; 10] = [
    "sampler",
    "trials",
    "seed",
    "batch",
    "startup",
    "factor",
    "rungs",
    "resource",
    "select_on_shift",
    "fields",
];
/// The keys of a range of values.
const RANGE_KEYS: [&str; 4] = ["low", "high", "log", "integer"];

/// True if the table is that of a study file, and not of a file with one field per line.
pub fn is_study(table: &Table) -> bool {
    TABLES.iter().any(|key| table.get(*key).is_some_and(Toml::is_table))
}

impl StudyFile {
    /// Reads a study file. `text` is its content, and `table` the parsed content.
    ///
    /// # Errors
    /// Fails if a key does not exist, or if a value has the wrong type. The error names the file
    /// and the key.
    pub fn read(path: &Path, text: &str, table: &Table) -> Result<Self> {
        let reader = Reader { path, text };
        reader.study(table).within(|| format!("in the study `{}`", path.display()))
    }
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Reader<'_> {
    fn study(&self, table: &Table) -> Result<StudyFile> {
        if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
            let e = Error::unknown("key", key, KEYS);
            return Err(match table[key].is_table() || key.contains('.') {
                true => e.hint("write fields of the experiment in `[base]` or `[methods.NAME]`"),
                false => e,
            });
        }
        let stem = || self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let name = match table.get("name") {
            None => stem(),
            Some(Toml::String(name)) if is_file_name(name) => name.clone(),
            Some(other) => {
                return Err(Error::new(format!(
                    "`name` must be the name of a folder, got {other}"
                )));
            }
        };
        let seeds = match table.get("seeds") {
            None => Vec::new(),
            Some(Toml::Array(list)) if !list.is_empty() => {
                list.iter().map(|seed| whole("seeds", seed, 0)).collect::<Result<Vec<u64>>>()?
            }
            Some(other) => return Err(wrong("seeds", "a list of whole numbers", other)),
        };
        if let Some(twice) = seeds.iter().enumerate().find(|(i, s)| seeds[..*i].contains(s)) {
            return Err(Error::new(format!("`seeds` contains {} twice", twice.1)));
        }
        let all_points = match table.get("final") {
            None => false,
            Some(Toml::String(word)) if word == "tuned" => false,
            Some(Toml::String(word)) if word == "all" => true,
            Some(other) => return Err(wrong("final", "`tuned` or `all`", other)),
        };
        let base = Assignment::of_table(self.table(table, "base")?, &self.origin("base"));
        let grid = self.grid(self.table(table, "grid")?)?;
        let methods = self.methods(self.table(table, "methods")?)?;
        let (search, fields) = match table.get("search") {
            None => (None, Vec::new()),
            Some(_) => {
                let search = self.table(table, "search")?;
                let fields = self.table(search, "fields").within(|| "in `[search]`".to_owned())?;
                let fields = self.dimensions(fields, "search.fields")?;
                (Some(search_settings(search)?), fields)
            }
        };
        if search.is_none() && methods.iter().any(|method| !method.fields.is_empty()) {
            return Err(Error::new(
                "a method has searched fields, but the study has no `[search]`",
            )
            .hint("add `[search]` with a `sampler`"));
        }
        if all_points && search.is_none() {
            return Err(Error::new("`final = \"all\"` needs a `[search]`"));
        }
        let path = self.path.to_owned();
        Ok(StudyFile { path, name, seeds, all_points, base, grid, methods, search, fields })
    }

    fn origin(&self, table: &str) -> Origin {
        Origin::Study { file: self.path.to_owned(), table: table.to_owned() }
    }

    fn table<'t>(&self, parent: &'t Table, key: &str) -> Result<&'t Table> {
        static EMPTY: std::sync::LazyLock<Table> = std::sync::LazyLock::new(Table::new);
        match parent.get(key) {
            None => Ok(&EMPTY),
            Some(Toml::Table(table)) => Ok(table),
            Some(other) => Err(wrong(key, "a table", other)),
        }
    }

    fn grid(&self, table: &Table) -> Result<Vec<Axis>> {
        let mut axes: Vec<Axis> = Vec::new();
        for (field, value) in flat(table) {
            let values = match value {
                Toml::Array(list) if !list.is_empty() => list.iter().cloned().map(json).collect(),
                other => {
                    return Err(wrong(&format!("grid.\"{field}\""), "a list of values", other));
                }
            };
            axes.push(Axis { field, values });
        }
        self.sort(&mut axes, &["grid"], |axis| &axis.field);
        Ok(axes)
    }

    fn methods(&self, table: &Table) -> Result<Vec<Method>> {
        let mut methods = Vec::new();
        for (name, value) in table {
            let Toml::Table(fields) = value else {
                return Err(wrong(&format!("methods.{name}"), "a table of fields", value));
            };
            if !is_file_name(name) {
                return Err(Error::new(format!(
                    "the method `{name}` must have a name that can be part of a folder's name"
                )));
            }
            let mut fields = fields.clone();
            let place = format!("methods.{name}");
            let (searched, own) = match fields.remove("search") {
                None | Some(Toml::Boolean(true)) => (true, Vec::new()),
                Some(Toml::Boolean(false)) => (false, Vec::new()),
                Some(Toml::Table(own)) => {
                    (true, self.dimensions(&own, &format!("{place}.search"))?)
                }
                Some(other) => {
                    let key = format!("{place}.search");
                    return Err(wrong(&key, "`false` or a table of searched fields", &other));
                }
            };
            let settings = Assignment::of_table(&fields, &self.origin(&place));
            methods.push(Method { name: name.clone(), settings, searched, fields: own });
        }
        self.sort(&mut methods, &["methods"], |method| &method.name);
        Ok(methods)
    }

    fn dimensions(&self, table: &Table, place: &str) -> Result<Vec<Dimension>> {
        let mut dimensions = Vec::new();
        for (field, value) in flat(table) {
            let key = format!("{place}.\"{field}\"");
            let values = match value {
                Toml::Array(list) if !list.is_empty() => {
                    Values::List(list.iter().cloned().map(json).collect())
                }
                Toml::Table(range) => self::range(&key, range)?,
                other => {
                    return Err(wrong(&key, "a list of values or a range", other).hint(
                        "write `[1e-5, 1e-4]` or `{ low = 1e-5, high = 1e-3, log = true }`",
                    ));
                }
            };
            dimensions.push(Dimension { field, values, origin: self.origin(place) });
        }
        let path: Vec<&str> = place.split('.').collect();
        self.sort(&mut dimensions, &path, |dimension| &dimension.field);
        Ok(dimensions)
    }

    /// Sorts items as their keys are written in the table `path` of the file.
    fn sort<T>(&self, items: &mut [T], path: &[&str], key: impl Fn(&T) -> &str) {
        let order = keys(self.text, path);
        items.sort_by_key(|item| {
            let begins =
                |name: &String| name == key(item) || key(item).starts_with(&format!("{name}."));
            order.iter().position(begins).unwrap_or(usize::MAX)
        });
    }
}

/// The entries of a table, with fields in sections (`train.lr = […]`) under their full names.
fn flat(table: &Table) -> Vec<(String, &Toml)> {
    let mut entries = Vec::new();
    for (key, value) in table {
        match value {
            // A range is a value, although it is a table.
            Toml::Table(section)
                if !key.contains('.')
                    && !section.keys().any(|key| RANGE_KEYS[..2].contains(&key.as_str())) =>
            {
                entries.extend(section.iter().map(|(f, value)| (format!("{key}.{f}"), value)));
            }
            value => entries.push((key.clone(), value)),
        }
    }
    entries
}

fn range(key: &str, table: &Table) -> Result<Values> {
    let within = |e: Error| e.within(format!("`{key}` is not a range of values"));
    if let Some(unknown) = table.keys().find(|k| !RANGE_KEYS.contains(&k.as_str())) {
        return Err(within(Error::unknown("key", unknown, RANGE_KEYS)));
    }
    let number = |name: &str| match table.get(name) {
        Some(Toml::Float(v)) if v.is_finite() => Ok((*v, false)),
        Some(Toml::Integer(v)) => Ok((*v as f64, true)),
        Some(other) => Err(within(wrong(name, "a number", other))),
        None => Err(within(Error::new(format!("`{name}` is missing")))),
    };
    let flag = |name: &str, default: bool| match table.get(name) {
        None => Ok(default),
        Some(Toml::Boolean(flag)) => Ok(*flag),
        Some(other) => Err(within(wrong(name, "`true` or `false`", other))),
    };
    let ((low, low_is_whole), (high, high_is_whole)) = (number("low")?, number("high")?);
    let integer = flag("integer", low_is_whole && high_is_whole)?;
    let log = flag("log", false)?;
    if low > high {
        return Err(within(Error::new(format!("`low` is {low}, which is above `high`, {high}"))));
    }
    if log && low <= 0.0 {
        let e = Error::new(format!("`low` must be greater than 0 with `log = true`, got {low}"));
        return Err(within(e));
    }
    Ok(Values::Range { low, high, log, integer })
}

fn search_settings(table: &Table) -> Result<Settings> {
    let read = || -> Result<Settings> {
        if let Some(unknown) = table.keys().find(|k| !SEARCH_KEYS.contains(&k.as_str())) {
            let e = Error::unknown("key", unknown, SEARCH_KEYS);
            return Err(match unknown.contains('.') || table[unknown].is_array() {
                true => e.hint("write the searched fields in `[search.fields]`"),
                false => e,
            });
        }
        let mut settings = Settings::default();
        let number = |key: &str, least: u64, default: usize| match table.get(key) {
            None => Ok(default),
            Some(value) => whole(key, value, least).map(|number| number as usize),
        };
        if let Some(sampler) = table.get("sampler") {
            let Toml::String(name) = sampler else { return Err(wrong("sampler", "text", sampler)) };
            settings.sampler = Kind::named(name)?;
        }
        if table.contains_key("trials") {
            settings.trials = Some(number("trials", 1, 0)?);
        }
        settings.seed = number("seed", 0, 0)? as u64;
        settings.batch = number("batch", 1, settings.batch)?;
        settings.startup = number("startup", 1, settings.startup)?;
        settings.factor = number("factor", 2, settings.factor)?;
        settings.rungs = number("rungs", 1, settings.rungs)?;
        if let Some(resource) = table.get("resource") {
            let Toml::String(name) = resource else {
                return Err(wrong("resource", "the name of a field", resource));
            };
            settings.resource = super::sampler::Resource::named(name)?;
        }
        settings.select_on_shift = match table.get("select_on_shift") {
            None => false,
            Some(Toml::Boolean(flag)) => *flag,
            Some(other) => return Err(wrong("select_on_shift", "`true` or `false`", other)),
        };
        Ok(settings)
    };
    read().within(|| "in `[search]`".to_owned())
}

/// Returns the keys of a table of the file, in the order in which they are written.
fn keys(text: &str, path: &[&str]) -> Vec<String> {
    fn walk(table: &toml::de::DeTable<'_>, path: &[&str], found: &mut Vec<(usize, String)>) {
        for (key, value) in table {
            let toml::de::DeValue::Table(inner) = value.get_ref() else {
                if path.is_empty() {
                    found.push((key.span().start, key.get_ref().to_string()));
                }
                continue;
            };
            match path.split_first() {
                None => found.push((key.span().start, key.get_ref().to_string())),
                Some((first, rest)) if *first == key.get_ref().as_ref() => walk(inner, rest, found),
                Some(_) => {}
            }
        }
    }
    let mut found = Vec::new();
    if let Ok(table) = toml::de::DeTable::parse(text) {
        walk(table.get_ref(), path, &mut found);
    }
    found.sort();
    found.into_iter().map(|(_, key)| key).collect()
}

fn whole(key: &str, value: &Toml, least: u64) -> Result<u64> {
    let number = value.as_integer().and_then(|number| u64::try_from(number).ok());
    number
        .filter(|number| *number >= least)
        .ok_or_else(|| wrong(key, &format!("a whole number, at least {least}"), value))
}

fn wrong(key: &str, must: &str, found: &Toml) -> Error {
    Error::new(format!("`{key}` must be {must}, got {}", found.to_string().trim()))
}

fn is_file_name(name: &str) -> bool {
    let fits = |c: char| c.is_alphanumeric() || "._+-".contains(c);
    !name.is_empty() && !name.starts_with('.') && name.chars().all(fits)
}

#[cfg(test)]
mod tests;
