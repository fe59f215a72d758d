//! One setting of a layer: a path, a value, and where it was given.

use serde_json::Value;

use crate::config::Origin;
use crate::config::fields::Field;
use crate::config::value::json;

#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub path: Vec<String>,
    pub given: Given,
    pub origin: Origin,
    /// The setting only applies if this plugin is chosen: the text of `--dataset NAME:TEXT`, or a
    /// recipe's setting of a plugin that it chooses.
    pub only_for: Option<&'static str>,
}

#[derive(Clone, Debug)]
pub(super) enum Given {
    /// A typed value, of a file.
    Value(Value),
    /// Text, whose type is the field's.
    Text(String),
}

impl Setting {
    pub fn new(path: Vec<String>, given: Given, origin: Origin) -> Self {
        Self { path, given, origin, only_for: None }
    }

    /// The settings in the table of a configuration file.
    pub fn of_table(table: toml::Table, origin: &Origin) -> Vec<Self> {
        let mut settings = Vec::new();
        for (key, value) in table {
            match value {
                toml::Value::Table(section) => {
                    for (field, value) in section {
                        settings.push(Self::new(
                            vec![key.clone(), field],
                            Given::Value(json(value)),
                            origin.clone(),
                        ));
                    }
                }
                value => {
                    settings.push(Self::new(vec![key], Given::Value(json(value)), origin.clone()))
                }
            }
        }
        settings
    }

    /// True for `SECTION.name`, which chooses a plugin.
    pub fn is_name_of(&self, section: &str) -> bool {
        self.path.len() == 2 && self.path[0] == section && self.path[1] == "name"
    }
}

impl Given {
    /// The text, without the quotation marks that it may have; the value if it is not text.
    pub fn text(&self) -> Result<String, &Value> {
        match self {
            Given::Text(text) => Ok(text.trim_matches('"').to_owned()),
            Given::Value(Value::String(text)) => Ok(text.clone()),
            Given::Value(other) => Err(other),
        }
    }

    /// The value, read as one of `field`.
    pub fn for_field(&self, field: &Field) -> Value {
        match self {
            Given::Text(text) => field.read(text),
            Given::Value(value) => field.take(value.clone()),
        }
    }
}
