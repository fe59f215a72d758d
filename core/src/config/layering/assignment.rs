//! The assignment of a value to a field, as a study makes it.

use serde_json::Value;

use super::setting::{RawValue, Setting};
use crate::config::Origin;
use crate::config::value::json;

/// The assignment of a value to a field of the experiment.
#[derive(Clone, Debug)]
pub struct Assignment {
    path: Vec<String>,
    value: RawValue,
    origin: Origin,
}

impl Assignment {
    /// Assigns a typed value to the field, e.g. `train.lr`.
    pub fn new(field: &str, value: Value, origin: Origin) -> Self {
        Self { path: parts(field), value: RawValue::Value(value), origin }
    }

    /// Assigns text, which is converted to the type of the field.
    pub fn text(field: &str, text: &str, origin: Origin) -> Self {
        Self { path: parts(field), value: RawValue::Text(text.to_owned()), origin }
    }

    /// Reads the assignments of a table. The names of the fields may be quoted (`"train.lr"`),
    /// dotted, or in a table of their own (`[base.train]`).
    pub fn of_table(table: &toml::Table, origin: &Origin) -> Vec<Self> {
        let mut all = Vec::new();
        for (key, value) in table {
            match value {
                toml::Value::Table(section) if !key.contains('.') => {
                    for (field, value) in section {
                        let field = format!("{key}.{field}");
                        all.push(Self::new(&field, json(value.clone()), origin.clone()));
                    }
                }
                value => all.push(Self::new(key, json(value.clone()), origin.clone())),
            }
        }
        all
    }

    /// The field, e.g. `train.lr`.
    pub fn field(&self) -> String {
        self.path.join(".")
    }

    /// The value as JSON. Text that has not been converted is a JSON string.
    pub fn value(&self) -> Value {
        match &self.value {
            RawValue::Value(value) => value.clone(),
            RawValue::Text(text) => Value::String(text.clone()),
        }
    }

    pub(super) fn setting(&self) -> Setting {
        Setting::new(self.path.clone(), self.value.clone(), self.origin.clone())
    }
}

fn parts(field: &str) -> Vec<String> {
    field.split('.').map(|part| part.trim().to_owned()).collect()
}
