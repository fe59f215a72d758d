//! The plugin files of an experiment. They are read and loaded before the rest of the
//! configuration, because the valid fields depend on the plugins.

use std::path::{Path, PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::value::json;
use super::{Origin, Record};
use crate::error::{Error, Result};
use crate::plugin;
use crate::registry::PluginLibrary;
use crate::registry::Registry;

/// A plugin's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PluginFile {
    /// Path of the file. A relative path is resolved against the current folder or, in the
    /// `config.toml` of a run, against the run's folder.
    pub path: PathBuf,
    /// Version of the plugin's crate, for information only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Required SHA-256 digest of the file in hexadecimal. If it is not set, any file is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl PluginFile {
    /// Creates an entry for the file at `path` that accepts any digest.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), version: None, sha256: None }
    }

    /// Creates an entry with the path, version and digest of a loaded plugin.
    pub(super) fn of(loaded: &PluginLibrary) -> Self {
        Self {
            path: loaded.path.clone(),
            version: Some(loaded.version.clone()),
            sha256: Some(loaded.sha256.clone()),
        }
    }

    /// Loads the plugin into `registry`.
    ///
    /// # Errors
    /// Fails if the file is not a plugin for this build, if its digest differs, or if it registers
    /// a name that is already in use.
    pub fn load(&self, registry: &mut Registry) -> Result<()> {
        let loaded = plugin::load(&self.path)?;
        if let Some(sha256) = self.sha256.as_ref().filter(|digest| **digest != loaded.sha256) {
            return Err(Error::new(format!(
                "the plugin `{}` does not match the digest in the configuration",
                self.path.display()
            ))
            .because(Error::new(format!("expected sha256 {sha256}, got {}", loaded.sha256)))
            .hint("remove `sha256` from the configuration to use the current file"));
        }
        registry.add_plugin(loaded)
    }

    /// Reads the field `plugins` of the configuration file at `path`.
    ///
    /// # Errors
    /// Fails if the file cannot be read or is not TOML, or if `plugins` is not a list of files.
    pub fn in_file(path: &Path) -> Result<Vec<Self>> {
        let (mut table, record) = Record::split(path)?;
        if let Some(record) = record {
            record.resolve_plugins(&mut table, path);
        }
        let Some(value) = table.remove("plugins") else { return Ok(Vec::new()) };
        Self::from_value(&json(value), &Origin::File(path.to_owned()))
    }

    /// Parses a comma-separated list of paths, the format of `REPRPO_PLUGINS`.
    pub fn in_text(text: &str) -> Vec<Self> {
        text.trim_matches(['[', ']'])
            .split(',')
            .map(|part| part.trim().trim_matches('"'))
            .filter(|part| !part.is_empty())
            .map(Self::at)
            .collect()
    }

    /// The schema of a list whose items are either paths or tables.
    pub(super) fn list_schema(generator: &mut SchemaGenerator) -> Schema {
        let file = generator.subschema_for::<Self>();
        json_schema!({ "type": "array", "items": { "anyOf": [{ "type": "string" }, file] } })
    }

    pub(super) fn from_value(value: &Value, origin: &Origin) -> Result<Vec<Self>> {
        let one = |value: &Value| match value {
            Value::String(path) => Some(Self::at(path)),
            other => serde_json::from_value(other.clone()).ok(),
        };
        let files = value.as_array().and_then(|list| list.iter().map(one).collect());
        files.ok_or_else(|| {
            Error::new(format!("`plugins` in {origin} must be a list of plugin files, got {value}"))
                .hint(
                    "write `plugins = [\"path/libtwist.so\"]`, or \
                    `{ path = \"…\", sha256 = \"…\" }` for each",
                )
        })
    }
}
