//! The description and origin of a plugin, and access to its configuration as JSON text.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api::Plugin;
use crate::error::{Error, Result};
use crate::guard::{MethodId, guard};

/// The description of a plugin. Most fields are copied from the constants of [`Plugin`].
#[derive(Debug)]
pub struct About {
    /// Name on the command line.
    pub name: &'static str,
    /// Other names that the command line accepts.
    pub aliases: &'static [&'static str],
    /// One line that says what the method does.
    pub summary: &'static str,
    /// The formula and advice for users.
    pub explain: &'static str,
    /// Source of the method: paper and section, or project.
    pub reference: &'static str,
    /// Fields and values of the example command that `reprpo explain` shows.
    pub example: &'static [(&'static str, &'static str)],
    /// Name of the crate that defines the plugin.
    pub origin: &'static str,
    /// Version of that crate.
    pub version: &'static str,
    // These functions exchange JSON text, because a plugin may use a different memory layout for
    // JSON values.
    schema: fn() -> Result<String>,
    defaults: fn() -> Result<String>,
    check: fn(&str) -> Result<(), FieldError>,
    rewrite: fn(&str) -> Result<String>,
}

/// A field of a configuration that is unknown to the plugin or has the wrong type.
#[derive(Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Path of the field, e.g. `weights[2]`; empty if the error concerns the whole configuration.
    pub path: String,
    /// Description of the error.
    pub message: String,
}

impl About {
    pub(super) const fn of<P: Plugin>(origin: &'static str, version: &'static str) -> Self {
        // Serialising a plugin's types runs code of the plugin, which may panic.
        fn text<P: Plugin, V: serde::Serialize>(
            doing: &str,
            value: impl FnOnce() -> V,
        ) -> Result<String> {
            guard(MethodId { kind: "plugin", name: P::NAME }, doing, || {
                serde_json::to_string(&value())
                    .map_err(|e| Error::new("cannot serialise the value as JSON").because(e))
            })
        }
        About {
            name: P::NAME,
            aliases: P::ALIASES,
            summary: P::SUMMARY,
            explain: P::EXPLAIN,
            reference: P::REFERENCE,
            example: P::EXAMPLE,
            origin,
            version,
            schema: || text::<P, _>("schema", || schemars::schema_for!(P)),
            defaults: || text::<P, _>("defaults", P::default),
            check: |json| {
                let checked =
                    guard(MethodId { kind: "plugin", name: P::NAME }, "deserialize", || {
                        Ok(typed::<P>(json).map(|_| ()))
                    });
                checked.unwrap_or_else(|e| {
                    Err(FieldError { path: String::new(), message: format!("{e:?}") })
                })
            },
            rewrite: |json| {
                let text = || {
                    serde_json::to_string(&parse::<P>(json)?)
                        .map_err(|e| Error::new("cannot serialise the value as JSON").because(e))
                };
                guard(MethodId { kind: "plugin", name: P::NAME }, "serialize", text)
            },
        }
    }

    /// The JSON schema of the plugin's configuration.
    ///
    /// # Errors
    /// Fails if the plugin panics while it generates the schema.
    pub fn schema(&self) -> Result<Value> {
        self.parsed(&(self.schema)()?)
    }

    fn parsed(&self, json: &str) -> Result<Value> {
        serde_json::from_str(json).map_err(|e| {
            Error::internal(format!("`{}` returned invalid JSON for its configuration", self.name))
                .because(e)
        })
    }

    /// Checks the fields and types of a configuration (JSON text). Ranges of values are only
    /// checked when the plugin is built.
    ///
    /// # Errors
    /// Returns the first field that is unknown or has the wrong type.
    pub fn check(&self, json: &str) -> Result<(), FieldError> {
        (self.check)(json)
    }

    /// Normalises a configuration (JSON text): parses it into the plugin's types and serialises it
    /// again. The result has all fields, including those with default values.
    ///
    /// # Errors
    /// Fails if a field is unknown or has the wrong type.
    pub fn rewrite(&self, json: &str) -> Result<String> {
        (self.rewrite)(json)
    }

    /// The default configuration.
    ///
    /// # Errors
    /// Fails if the plugin's defaults are not an object.
    pub fn defaults(&self) -> Result<serde_json::Map<String, Value>> {
        match self.parsed(&(self.defaults)()?)? {
            Value::Object(map) => Ok(map),
            other => Err(Error::internal(format!(
                "the default configuration of `{}` must be a JSON object, got {other}",
                self.name
            ))),
        }
    }
}

/// Parses a configuration from JSON text.
///
/// # Errors
/// Fails if a field is unknown or has the wrong type. The error names the field.
pub(super) fn parse<P: Plugin>(json: &str) -> Result<P> {
    typed(json).map_err(|FieldError { path, message }| {
        let name = P::NAME;
        let place =
            if path.is_empty() { format!("`{name}`") } else { format!("`{path}` of `{name}`") };
        Error::new(format!("the configuration field {place} is invalid"))
            .because(Error::new(message))
            .hint(format!("run `reprpo explain {name}` for a description of every field"))
    })
}

fn typed<T: DeserializeOwned>(json: &str) -> Result<T, FieldError> {
    let mut de = serde_json::Deserializer::from_str(json);
    serde_path_to_error::deserialize(&mut de).map_err(|e| {
        let path = e.path().to_string();
        FieldError {
            path: if path == "." { String::new() } else { path },
            message: strip_position(&e.inner().to_string()).to_owned(),
        }
    })
}

/// Removes the line and column at the end of an error message of serde_json. They refer to
/// generated JSON, which the user does not see.
fn strip_position(message: &str) -> &str {
    message.rsplit_once(" at line ").map_or(message, |(head, _)| head)
}
