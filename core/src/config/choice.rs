//! The choice of a plugin.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A chosen plugin: its name and the values of its fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Choice {
    /// Name of the plugin.
    pub name: String,
    /// Values of all fields of the plugin.
    #[serde(flatten)]
    pub config: Map<String, Value>,
}

impl Choice {
    /// Returns the values of the fields as JSON. The registry builds the plugin from this JSON.
    pub fn json(&self) -> String {
        Value::Object(self.config.clone()).to_string()
    }
}
