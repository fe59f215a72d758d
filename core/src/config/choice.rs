//! A chosen plugin.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A chosen plugin: its name, and beside it the plugin's own fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Choice {
    /// Which plugin.
    pub name: String,
    /// Its configuration, complete.
    #[serde(flatten)]
    pub config: Map<String, Value>,
}

impl Choice {
    /// The configuration as the JSON text that the registry takes.
    pub fn json(&self) -> String {
        Value::Object(self.config.clone()).to_string()
    }
}
