//! A plugin's description of itself, and its configuration as JSON text.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api::Plugin;
use crate::error::{Error, Result};
use crate::guard::{Who, guard};

/// A plugin's description of itself.
#[derive(Debug)]
pub struct About {
    /// Its name.
    pub name: &'static str,
    /// Other names.
    pub aliases: &'static [&'static str],
    /// One line.
    pub summary: &'static str,
    /// Formula and advice.
    pub explain: &'static str,
    /// Where it comes from.
    pub reference: &'static str,
    /// Fields and values of its example.
    pub example: &'static [(&'static str, &'static str)],
    /// The crate it is written in.
    pub origin: &'static str,
    /// That crate's version.
    pub version: &'static str,
    // As JSON text: a plugin may have been built with another layout of JSON values.
    schema: fn() -> Result<String>,
    defaults: fn() -> Result<String>,
    check: fn(&str) -> Result<(), Misfit>,
    rewrite: fn(&str) -> Result<String>,
}

/// A configuration that does not fit a plugin's types.
#[derive(Debug, PartialEq, Eq)]
pub struct Misfit {
    /// The field, as `weights[2]`; empty where it is the whole.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

impl About {
    pub(super) const fn of<P: Plugin>(origin: &'static str, version: &'static str) -> Self {
        // What a plugin's types do, derived or written by hand, is its code as well.
        fn text<P: Plugin, V: serde::Serialize>(
            doing: &str,
            value: impl FnOnce() -> V,
        ) -> Result<String> {
            guard(Who { kind: "plugin", name: P::NAME }, doing, || {
                serde_json::to_string(&value()).map_err(|e| Error::new("it is not JSON").because(e))
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
                let checked = guard(Who { kind: "plugin", name: P::NAME }, "deserialize", || {
                    Ok(typed::<P>(json).map(|_| ()))
                });
                checked.unwrap_or_else(|e| {
                    Err(Misfit { path: String::new(), message: format!("{e:?}") })
                })
            },
            rewrite: |json| {
                let text = || {
                    serde_json::to_string(&parse::<P>(json)?)
                        .map_err(|e| Error::new("it is not JSON").because(e))
                };
                guard(Who { kind: "plugin", name: P::NAME }, "serialize", text)
            },
        }
    }

    /// JSON schema of its configuration.
    ///
    /// # Errors
    /// Fails if the plugin's own description of its types fails.
    pub fn schema(&self) -> Result<Value> {
        self.parsed(&(self.schema)()?)
    }

    fn parsed(&self, json: &str) -> Result<Value> {
        serde_json::from_str(json).map_err(|e| {
            Error::internal(format!(
                "the description of the configuration of `{}` is not JSON",
                self.name
            ))
            .because(e)
        })
    }

    /// Checks that a configuration (JSON text) has the fields and types of this plugin. Ranges are
    /// checked when it is made.
    ///
    /// # Errors
    /// The first field that does not fit.
    pub fn check(&self, json: &str) -> Result<(), Misfit> {
        (self.check)(json)
    }

    /// A configuration (JSON text) as the plugin's types read it and write it again.
    ///
    /// # Errors
    /// The first field that does not fit.
    pub fn rewrite(&self, json: &str) -> Result<String> {
        (self.rewrite)(json)
    }

    /// Its default configuration.
    ///
    /// # Errors
    /// Fails if the plugin's defaults are not an object.
    pub fn defaults(&self) -> Result<serde_json::Map<String, Value>> {
        match self.parsed(&(self.defaults)()?)? {
            Value::Object(map) => Ok(map),
            other => Err(Error::internal(format!(
                "the configuration of `{}` is {other}, not an object",
                self.name
            ))),
        }
    }
}

/// A configuration from its JSON text; an error names the field.
pub(super) fn parse<P: Plugin>(json: &str) -> Result<P> {
    typed(json).map_err(|Misfit { path, message }| {
        let name = P::NAME;
        let place =
            if path.is_empty() { format!("`{name}`") } else { format!("`{path}` of `{name}`") };
        Error::new(format!("the configuration field {place} is not right"))
            .because(Error::new(message))
            .hint(format!("`reprpo explain {name}` describes every field"))
    })
}

fn typed<T: DeserializeOwned>(json: &str) -> Result<T, Misfit> {
    let mut de = serde_json::Deserializer::from_str(json);
    serde_path_to_error::deserialize(&mut de).map_err(|e| {
        let path = e.path().to_string();
        Misfit {
            path: if path == "." { String::new() } else { path },
            message: strip_position(&e.inner().to_string()).to_owned(),
        }
    })
}

/// serde_json ends a message with a line and a column of text that the user never saw.
fn strip_position(message: &str) -> &str {
    message.rsplit_once(" at line ").map_or(message, |(head, _)| head)
}
