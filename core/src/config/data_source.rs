//! A data set and one of its splits, written as one text: `DATASET?FIELD=VALUE&FIELD=VALUE#SPLIT`.

use std::fmt;
use std::path::Path;

use serde_json::Value;

use super::fields::plugin_fields;
use super::place::physical;
use super::{Choice, dataset};
use crate::error::{Error, Result};
use crate::registry::Registry;

/// The field that `--data-dir` sets. A source inherits it from the data set of the experiment.
const DATA_DIR: &str = "data_dir";

/// A data set and one of its splits, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataSource {
    /// The data set, in the form of `--dataset`.
    pub dataset: String,
    /// Names and values of fields of the data set.
    pub fields: Vec<(String, String)>,
    /// The split or the part of a split, such as `test[:300]`; `None` for the default.
    pub split: Option<String>,
}

/// Rows of an evaluation: a name, and the sources whose pairs form the row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shift {
    /// Name of the row.
    pub name: String,
    /// The sources, whose pairs are joined in this order.
    pub sources: Vec<DataSource>,
}

impl DataSource {
    /// Parses `DATASET?FIELD=VALUE&FIELD=VALUE#SPLIT`. Fields and split are optional. If a file
    /// with the name `text` exists, the whole text is the data set.
    ///
    /// # Errors
    /// Fails if the data set, the split or the name of a field is empty, or if a field has no `=`.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::new(format!("`{text}` is not a data set with a split: {why}"))
                .hint("write `DATASET`, `DATASET#SPLIT` or `DATASET?FIELD=VALUE#SPLIT`")
        };
        let text = text.trim();
        if Path::new(text).exists() {
            return Ok(Self { dataset: text.to_owned(), fields: Vec::new(), split: None });
        }
        let (rest, split) = match text.rsplit_once('#') {
            Some((_, "")) => return Err(wrong("the split after `#` is empty")),
            Some((rest, split)) => (rest, Some(split.trim().to_owned())),
            None => (text, None),
        };
        let (dataset, query) = rest.split_once('?').unwrap_or((rest, ""));
        if dataset.trim().is_empty() {
            return Err(wrong("the data set is empty"));
        }
        let fields = query.split('&').filter(|field| !field.is_empty()).map(|field| {
            let (name, value) = field
                .split_once('=')
                .filter(|(name, _)| !name.trim().is_empty())
                .ok_or_else(|| wrong(&format!("`{field}` is not `FIELD=VALUE`")))?;
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        });
        Ok(Self {
            dataset: dataset.trim().to_owned(),
            fields: fields.collect::<Result<_>>()?,
            split,
        })
    }

    /// Selects the data set plugin, and the values of all its fields. If `beside` is a data set of
    /// the same type, its folder (`data_dir`) is used as well.
    ///
    /// # Errors
    /// Fails if there is no such data set, or if it does not have one of the fields.
    pub fn choice(&self, beside: &Choice, registry: &Registry) -> Result<Choice> {
        let chosen = dataset::parse(&self.dataset, registry)?;
        let about = &registry.dataset(chosen.name)?.about;
        let mut config = about.defaults()?;
        if beside.name == chosen.name
            && let Some(folder) = beside.config.get(DATA_DIR)
        {
            config.insert(DATA_DIR.to_owned(), folder.clone());
        }
        let known = plugin_fields(about)?;
        let argument = chosen.argument.map(|(field, text)| (field.to_owned(), text));
        for (name, text) in argument.into_iter().chain(self.fields.iter().cloned()) {
            let field = known.iter().find(|field| field.name == name).ok_or_else(|| {
                Error::unknown("field", &name, known.iter().map(|field| &field.name))
                    .within(format!("the data set `{}` does not have it", chosen.name))
            })?;
            config.insert(name, field.read(&text));
        }
        about.check(&Value::Object(config.clone()).to_string()).map_err(|misfit| {
            Error::new(format!("`{}` of data set `{}` is not valid", misfit.path, chosen.name))
                .because(Error::new(misfit.message))
                .hint(format!("see `reprpo explain {}` for its fields", chosen.name))
        })?;
        Ok(Choice { name: chosen.name.to_owned(), config })
    }

    /// True if `choice` is this data set with these fields. The revision of a repository
    /// (`org/name@revision`) may differ.
    ///
    /// # Errors
    /// Fails in the same cases as [`choice`](Self::choice).
    pub fn selects(&self, choice: &Choice, registry: &Registry) -> Result<bool> {
        let own = self.choice(choice, registry)?;
        let argument = registry.dataset(&own.name)?.argument;
        let is_given = |name: &str| {
            Some(name) == argument || self.fields.iter().any(|(field, _)| field == name)
        };
        let unpinned = |value: &Value| match value {
            Value::String(text) if Path::new(text).exists() => {
                Value::String(physical(Path::new(text)).to_string_lossy().into_owned())
            }
            Value::String(text) => {
                Value::String(text.split_once('@').map_or(text.as_str(), |(id, _)| id).to_owned())
            }
            other => other.clone(),
        };
        Ok(own.name == choice.name
            && own.config.iter().filter(|(name, _)| is_given(name)).all(|(name, value)| {
                choice.config.get(name).map(unpinned) == Some(unpinned(value))
            }))
    }

    /// A short name: the last part of the data set's text, without the ending of a file, followed
    /// by the split if there is one.
    pub fn short_name(&self) -> String {
        let last = self.dataset.rsplit(['/', ':']).next().unwrap_or(&self.dataset);
        let stem = Path::new(last).file_stem().and_then(|s| s.to_str()).unwrap_or(last);
        match &self.split {
            None => stem.to_owned(),
            Some(split) => format!("{stem} {split}"),
        }
    }
}

impl fmt::Display for DataSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.dataset)?;
        for (i, (name, value)) in self.fields.iter().enumerate() {
            write!(f, "{}{name}={value}", if i == 0 { '?' } else { '&' })?;
        }
        self.split.iter().try_for_each(|split| write!(f, "#{split}"))
    }
}

impl Shift {
    /// Parses an entry of `eval.shifts`: a [`DataSource`], with `NAME=` before it or not. Also
    /// returns true if the entry has a name.
    ///
    /// # Errors
    /// Fails in the same cases as [`DataSource::parse`].
    pub fn parse(text: &str) -> Result<(Self, bool)> {
        let is_name =
            |name: &str| !name.is_empty() && !name.contains(['/', '\\', ':', '?', '#', '.', '~']);
        let (name, rest) = match text.split_once('=') {
            Some((name, rest)) if is_name(name.trim()) => (Some(name.trim().to_owned()), rest),
            _ => (None, text),
        };
        let (source, is_named) = (DataSource::parse(rest)?, name.is_some());
        let name = name.unwrap_or_else(|| source.short_name());
        Ok((Self { name, sources: vec![source] }, is_named))
    }

    /// The text of a shift with one source, as in `eval.shifts`.
    fn text(&self) -> String {
        self.sources.iter().map(|source| format!("{}={source}", self.name)).collect()
    }
}

/// Replaces the paths of existing files and folders in the entries of `eval.shifts`.
pub(super) fn map_paths(shifts: &mut [String], change: &dyn Fn(&str) -> String) {
    for text in shifts {
        *text = with_path(text, |dataset| match Path::new(dataset).exists() {
            true => change(dataset),
            false => dataset.to_owned(),
        });
    }
}

/// Replaces the data set in an entry of `eval.shifts` by the result of `change`. The name of the
/// row stays the same. An entry that cannot be parsed is not changed; the evaluation reports it.
pub(super) fn with_path(text: &str, change: impl Fn(&str) -> String) -> String {
    let Ok((mut shift, _)) = Shift::parse(text) else { return text.to_owned() };
    let before = shift.clone();
    shift.sources.iter_mut().for_each(|source| source.dataset = change(&source.dataset));
    if shift == before { text.to_owned() } else { shift.text() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_data_set_with_optional_fields_and_split() {
        let parse = |text: &str| DataSource::parse(text).unwrap();
        let all = parse("org/name?config_name=law&train=data#train[:300]");
        assert_eq!(all.dataset, "org/name");
        let fields = [("config_name", "law"), ("train", "data")];
        assert_eq!(all.fields, fields.map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert_eq!(all.split.as_deref(), Some("train[:300]"));
        assert_eq!(all.to_string(), "org/name?config_name=law&train=data#train[:300]");
        assert_eq!(parse("a:b"), DataSource { dataset: "a:b".into(), fields: vec![], split: None });
        for text in ["", "#test", "a#", "?x=1", "a?x", "a?=1"] {
            assert!(DataSource::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_name_of_a_shift_comes_from_the_text_or_from_the_data_set() {
        let name = |text: &str| Shift::parse(text).unwrap().0.name;
        assert_eq!(name("law=data/pairs.jsonl#train"), "law");
        assert_eq!(name("data/pairs.jsonl"), "pairs");
        assert_eq!(name("a:history"), "history");
        assert_eq!(name("a:history#test[:3]"), "history test[:3]");
        assert_eq!(name("org/name?config_name=x"), "name");
    }

    #[test]
    fn a_file_whose_name_contains_a_hash_is_a_data_set() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a#b.jsonl");
        std::fs::write(&file, "").unwrap();
        let text = file.to_str().unwrap();
        assert_eq!(DataSource::parse(text).unwrap().dataset, text);
        let mut shifts = [format!("x={text}"), "other:name#test".to_owned()];
        map_paths(&mut shifts, &|path| format!("/moved{path}"));
        assert_eq!(shifts, [format!("x=/moved{text}"), "other:name#test".to_owned()]);
    }
}
