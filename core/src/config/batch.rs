//! The number of pairs in a micro-batch.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The number of pairs in a micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// This number of pairs.
    Pairs(usize),
    /// The largest number that fits into memory. A run replaces it by a number before its first
    /// step.
    Auto,
}

impl Batch {
    /// The default number of pairs. With `auto`, a step has this number times
    /// `train.accumulate`.
    const DEFAULT: usize = 4;

    /// The number of pairs. For `auto`, this is the default number, so that the number of pairs of
    /// a step is known before the size of the micro-batches.
    pub const fn pairs(self) -> usize {
        match self {
            Batch::Pairs(pairs) => pairs,
            Batch::Auto => Self::DEFAULT,
        }
    }
}

impl Default for Batch {
    fn default() -> Self {
        Batch::Pairs(Self::DEFAULT)
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Batch::Pairs(pairs) => pairs.fmt(f),
            Batch::Auto => f.write_str("auto"),
        }
    }
}

impl Serialize for Batch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Batch::Pairs(pairs) => pairs.serialize(serializer),
            Batch::Auto => serializer.serialize_str("auto"),
        }
    }
}

impl<'de> Deserialize<'de> for Batch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl Visitor<'_> for Reader {
            type Value = Batch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number or `auto`")
            }

            fn visit_u64<E: Error>(self, pairs: u64) -> Result<Batch, E> {
                usize::try_from(pairs)
                    .map(Batch::Pairs)
                    .map_err(|_| E::invalid_value(Unexpected::Unsigned(pairs), &self))
            }

            fn visit_i64<E: Error>(self, pairs: i64) -> Result<Batch, E> {
                usize::try_from(pairs)
                    .map(Batch::Pairs)
                    .map_err(|_| E::invalid_value(Unexpected::Signed(pairs), &self))
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<Batch, E> {
                match word {
                    "auto" => Ok(Batch::Auto),
                    other => Err(E::invalid_value(Unexpected::Str(other), &self)),
                }
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

impl JsonSchema for Batch {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Batch".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "integer", "minimum": 1 }, { "const": "auto" }] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_the_word_are_read_and_written() {
        for (json, batch) in [("8", Batch::Pairs(8)), ("\"auto\"", Batch::Auto)] {
            assert_eq!(serde_json::from_str::<Batch>(json).unwrap(), batch);
            assert_eq!(serde_json::to_string(&batch).unwrap(), json);
        }
        for (json, found) in
            [("-1", "integer `-1`"), ("1.5", "floating point `1.5`"), ("\"all\"", "string \"all\"")]
        {
            let error = serde_json::from_str::<Batch>(json).unwrap_err().to_string();
            assert!(
                error.contains(found) && error.contains("expected a whole number or `auto`"),
                "{error}"
            );
        }
    }
}
