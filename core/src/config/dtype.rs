//! The precision of the frozen model.

use schemars::JsonSchema;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

/// Precision of the frozen model. Trained parameters are always float32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// bf16 on GPUs that support it (compute capability 8.0 or above), f32 elsewhere.
    #[default]
    Auto,
    /// 32-bit floating point.
    F32,
    /// bfloat16. Older GPUs only emulate it, which is slow.
    Bf16,
}

/// The valid values in a configuration.
const WORDS: [&str; 3] = ["auto", "f32", "bf16"];
/// Names that other programs use for half precision. They get a more helpful error message.
const HALF: [&str; 4] = ["f16", "fp16", "float16", "half"];

impl<'de> Deserialize<'de> for Dtype {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            half if HALF.contains(&half) => Err(D::Error::custom(format!(
                "`{half}` is not supported: gradients underflow to 0 because of its small range, \
                and loss scaling would change the gradients that methods read; choose `f32`, or \
                `bf16` on a GPU of compute capability 8.0 or above"
            ))),
            other => Err(D::Error::unknown_variant(other, &WORDS)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_in_the_schema_is_accepted() {
        for (word, dtype) in WORDS.iter().zip([Dtype::Auto, Dtype::F32, Dtype::Bf16]) {
            assert_eq!(serde_json::from_str::<Dtype>(&format!("\"{word}\"")).unwrap(), dtype);
            assert_eq!(serde_json::to_string(&dtype).unwrap(), format!("\"{word}\""));
        }
        let schema = schemars::schema_for!(Dtype).to_value().to_string();
        assert!(
            WORDS.iter().all(|word| schema.contains(&format!("\"const\":\"{word}\""))),
            "{schema}"
        );
    }

    #[test]
    fn half_precision_is_refused_under_every_name_with_the_reason() {
        for word in HALF {
            let e = serde_json::from_str::<Dtype>(&format!("\"{word}\"")).unwrap_err().to_string();
            assert!(
                e.starts_with(&format!("`{word}` is not supported")) && e.contains("choose `f32`"),
                "{e}"
            );
        }
        let e = serde_json::from_str::<Dtype>("\"fp8\"").unwrap_err().to_string();
        assert!(
            e.starts_with("unknown variant `fp8`, expected one of `auto`, `f32`, `bf16`"),
            "{e}"
        );
    }
}
