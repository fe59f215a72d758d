//! Taps that say something wrong of themselves, and do nothing wrong.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::api::{ModelInfo, Plugin, Pooling, Site, Tap, TapPlugin};
use crate::error::{Error, Result};
use crate::registry::TapEntry;

/// A configuration, and what a plugin that has it says besides.
pub trait Says: Serialize + DeserializeOwned + JsonSchema + Default + 'static {
    const SUMMARY: &'static str = "the embeddings";
    const EXAMPLE: &'static [(&'static str, &'static str)] = &[];

    fn check(&self) -> Result<()> {
        Ok(())
    }
}

pub fn of<C: Says>() -> TapEntry {
    TapEntry::of::<C>("", "")
}

impl<C: Says> Plugin for C {
    const NAME: &'static str = "embeddings";
    const SUMMARY: &'static str = C::SUMMARY;
    const EXPLAIN: &'static str = "hidden_states[0]";
    const REFERENCE: &'static str = "the kit's own tests";
    const EXAMPLE: &'static [(&'static str, &'static str)] = C::EXAMPLE;
}

impl<C: Says> TapPlugin for C {
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
impl Says for Undocumented {}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UndocumentedWithin {
    /// What is inside.
    inner: Option<Undocumented>,
}
impl Says for UndocumentedWithin {}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FullStop {}
impl Says for FullStop {
    const SUMMARY: &'static str = "The embeddings.";
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Hides {
    /// The share that is read.
    share: f64,
    /// What is not written where it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    other: Option<f64>,
}
impl Says for Hides {}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Drifts {
    /// The share that is read.
    #[serde(serialize_with = "one_more")]
    share: f64,
}
impl Says for Drifts {}

fn one_more<S: Serializer>(share: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(share + 1.0)
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Named {
    /// What it is called.
    name: String,
}
impl Says for Named {}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TakesAnyField {
    /// The share that is read.
    share: f64,
}
impl Says for TakesAnyField {}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TakesAnyFieldWithin {
    /// What is inside.
    inner: TakesAnyField,
}
impl Says for TakesAnyFieldWithin {}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TakesAnyType {
    /// The share that is read.
    #[serde(deserialize_with = "number_or_nothing")]
    share: f64,
}
impl Says for TakesAnyType {}

fn number_or_nothing<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(serde_json::Value::deserialize(deserializer)?.as_f64().unwrap_or_default())
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExampleOfAnother {
    /// The share that is read.
    share: f64,
}
impl Says for ExampleOfAnother {
    const EXAMPLE: &'static [(&'static str, &'static str)] = &[("part", "0.5")];
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExampleOutOfRange {
    /// The share that is read, up to 1.
    share: f64,
}
impl Says for ExampleOutOfRange {
    const EXAMPLE: &'static [(&'static str, &'static str)] = &[("share", "1.5")];

    fn check(&self) -> Result<()> {
        if self.share <= 1.0 { Ok(()) } else { Err(Error::new("`tap.share` is above 1")) }
    }
}
