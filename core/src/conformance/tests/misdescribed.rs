//! Taps that work but have a wrong description or configuration.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::api::{ModelInfo, Plugin, Pooling, Site, Tap, TapPlugin};
use crate::error::{Error, Result};
use crate::registry::TapEntry;

/// A configuration of a tap, with its description and a check of its values.
pub trait Description: Serialize + DeserializeOwned + JsonSchema + Default + 'static {
    const SUMMARY: &'static str = "the embeddings";
    const EXAMPLE: &'static [(&'static str, &'static str)] = &[];

    fn check(&self) -> Result<()> {
        Ok(())
    }
}

pub fn tap_entry<C: Description>() -> TapEntry {
    TapEntry::of::<C>("", "")
}

impl<C: Description> Plugin for C {
    const NAME: &'static str = "embeddings";
    const SUMMARY: &'static str = C::SUMMARY;
    const EXPLAIN: &'static str = "hidden_states[0]";
    const REFERENCE: &'static str = "tests of the conformance tests";
    const EXAMPLE: &'static [(&'static str, &'static str)] = C::EXAMPLE;
}

impl<C: Description> TapPlugin for C {
    fn build(self) -> Result<Box<dyn Tap>> {
        self.check()?;
        Ok(Box::new(First))
    }
}

struct First;

impl Tap for First {
    fn sites(&self, _: &ModelInfo) -> Result<Vec<Site>> {
        Ok(vec![Site::Residual(0)])
    }

    fn pooling(&self) -> Pooling {
        Pooling::Last
    }
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Undocumented {
    share: f64,
}
impl Description for Undocumented {}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UndocumentedWithin {
    /// The nested configuration.
    inner: Option<Undocumented>,
}
impl Description for UndocumentedWithin {}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FullStop {}
impl Description for FullStop {
    const SUMMARY: &'static str = "The embeddings.";
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OmitsField {
    /// A share.
    share: f64,
    /// A value that is omitted from the output if it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    other: Option<f64>,
}
impl Description for OmitsField {}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ChangesInRoundTrip {
    /// A share.
    #[serde(serialize_with = "one_more")]
    share: f64,
}
impl Description for ChangesInRoundTrip {}

fn one_more<S: Serializer>(share: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(share + 1.0)
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReservedName {
    /// A field with a reserved name.
    name: String,
}
impl Description for ReservedName {}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TakesAnyField {
    /// A share.
    share: f64,
}
impl Description for TakesAnyField {}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TakesAnyFieldWithin {
    /// The nested configuration.
    inner: TakesAnyField,
}
impl Description for TakesAnyFieldWithin {}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TakesAnyType {
    /// A share.
    #[serde(deserialize_with = "number_or_nothing")]
    share: f64,
}
impl Description for TakesAnyType {}

fn number_or_nothing<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(serde_json::Value::deserialize(deserializer)?.as_f64().unwrap_or_default())
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExampleWithUnknownField {
    /// A share.
    share: f64,
}
impl Description for ExampleWithUnknownField {
    const EXAMPLE: &'static [(&'static str, &'static str)] = &[("part", "0.5")];
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExampleOutOfRange {
    /// A share, at most 1.
    share: f64,
}
impl Description for ExampleOutOfRange {
    const EXAMPLE: &'static [(&'static str, &'static str)] = &[("share", "1.5")];

    fn check(&self) -> Result<()> {
        if self.share <= 1.0 { Ok(()) } else { Err(Error::new("`tap.share` must be at most 1")) }
    }
}
