//! A setting of a layer: a path, a value and its origin.

use serde_json::Value;

use crate::config::Origin;
use crate::config::fields::Field;
use crate::config::value::json;

#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub path: Vec<String>,
    pub given: RawValue,
    pub origin: Origin,
    /// If set, the setting only applies if this plugin is chosen. Used for plugin settings in a
    /// recipe and in the configuration of a run, and for the text in `--dataset NAME:TEXT`.
    pub only_for: Option<&'static str>,
}

#[derive(Clone, Debug)]
pub(super) enum RawValue {
    /// A typed value from a file.
    Value(Value),
    /// Text. It is converted to the type of the field.
    Text(String),
}

impl Setting {
    pub fn new(path: Vec<String>, given: RawValue, origin: Origin) -> Self {
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
                            RawValue::Value(json(value)),
                            origin.clone(),
                        ));
                    }
                }
                value => settings.push(Self::new(
                    vec![key],
                    RawValue::Value(json(value)),
                    origin.clone(),
                )),
            }
        }
        settings
    }

    /// True if the path is `SECTION.name`, the field that chooses a plugin.
    pub fn is_name_of(&self, section: &str) -> bool {
        self.path.len() == 2 && self.path[0] == section && self.path[1] == "name"
    }
}

impl RawValue {
    /// Returns the text without surrounding quotation marks. If the value is not text, returns the
    /// value as the error.
    pub fn text(&self) -> Result<String, &Value> {
        match self {
            RawValue::Text(text) => Ok(text.trim_matches('"').to_owned()),
            RawValue::Value(Value::String(text)) => Ok(text.clone()),
            RawValue::Value(other) => Err(other),
        }
    }

    /// Converts the value to the type of `field`.
    pub fn for_field(&self, field: &Field) -> Value {
        match self {
            RawValue::Text(text) => field.read(text),
            RawValue::Value(value) => field.take(value.clone()),
        }
    }
}
