//! Access to the fields of PEFT's `adapter_config.json`.

use crate::error::{Error, Result};

/// A parsed `adapter_config.json`.
#[derive(Debug)]
pub struct PeftConfig(serde_json::Map<String, serde_json::Value>);

impl PeftConfig {
    /// Parses the text of an `adapter_config.json`.
    ///
    /// # Errors
    /// Fails if the text is not a JSON object.
    pub fn parse(json: &str) -> Result<Self> {
        serde_json::from_str(json)
            .map(Self)
            .map_err(|e| Error::new("`adapter_config.json` is not a JSON object").because(e))
    }

    /// Reads a field. Returns `None` if it is missing or null.
    ///
    /// # Errors
    /// Fails if the value does not have the type `T`.
    pub fn get<T: serde::de::DeserializeOwned>(&self, field: &str) -> Result<Option<T>> {
        match self.0.get(field) {
            None | Some(serde_json::Value::Null) => Ok(None),
            Some(v) => serde_json::from_value(v.clone()).map(Some).map_err(|e| {
                Error::new(format!("invalid value `{v}` for `{field}` in `adapter_config.json`"))
                    .because(e)
            }),
        }
    }

    /// Reads a required field.
    ///
    /// # Errors
    /// Fails if the field is missing or null, or if its value does not have the type `T`.
    pub fn need<T: serde::de::DeserializeOwned>(&self, field: &str) -> Result<T> {
        self.get(field)?
            .ok_or_else(|| Error::new(format!("missing field `{field}` in `adapter_config.json`")))
    }

    /// Checks that unsupported features are off, i.e. that each of `fields` is missing, null,
    /// false, 0, empty or `none`.
    ///
    /// # Errors
    /// Fails for the first field that has any other value.
    pub fn must_be_off(&self, fields: &[&str]) -> Result<()> {
        use serde_json::Value;
        for field in fields {
            let off = match self.0.get(*field) {
                None | Some(Value::Null | Value::Bool(false)) => true,
                Some(Value::Number(n)) => n.as_f64() == Some(0.0),
                Some(Value::String(s)) => s.is_empty() || s == "none",
                Some(Value::Array(a)) => a.is_empty(),
                Some(Value::Object(o)) => o.is_empty(),
                Some(Value::Bool(true)) => false,
            };
            if !off {
                return Err(Error::new(format!(
                    "`adapter_config.json` sets `{field}` to `{}`, which is not supported",
                    self.0[*field]
                )));
            }
        }
        Ok(())
    }
}
