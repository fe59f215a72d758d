//! PEFT's description of an adapter, as a method reads it.

use crate::error::{Error, Result};

/// An `adapter_config.json` while a method reads it.
#[derive(Debug)]
pub struct PeftConfig(serde_json::Map<String, serde_json::Value>);

impl PeftConfig {
    /// Of its text.
    ///
    /// # Errors
    /// Text that is no JSON object.
    pub fn parse(json: &str) -> Result<Self> {
        serde_json::from_str(json)
            .map(Self)
            .map_err(|e| Error::new("the adapter_config.json is no JSON object").because(e))
    }

    /// The field's value; `None` where it is absent or null.
    ///
    /// # Errors
    /// A value of another type.
    pub fn get<T: serde::de::DeserializeOwned>(&self, field: &str) -> Result<Option<T>> {
        match self.0.get(field) {
            None | Some(serde_json::Value::Null) => Ok(None),
            Some(v) => serde_json::from_value(v.clone()).map(Some).map_err(|e| {
                Error::new(format!("`{field}` of the adapter_config.json is `{v}`")).because(e)
            }),
        }
    }

    /// The field's value.
    ///
    /// # Errors
    /// Where it is absent, or of another type.
    pub fn need<T: serde::de::DeserializeOwned>(&self, field: &str) -> Result<T> {
        self.get(field)?
            .ok_or_else(|| Error::new(format!("the adapter_config.json has no `{field}`")))
    }

    /// Fields that change what the adapter computes in a way that is not supported have to be
    /// absent, null, false, 0, empty or `none`.
    ///
    /// # Errors
    /// Names the first that is not.
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
                    "the adapter_config.json has `{field}` = {}, which is not supported",
                    self.0[*field]
                )));
            }
        }
        Ok(())
    }
}
