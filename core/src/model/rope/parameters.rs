//! Reads the rotary settings of a configuration, in both the older and the newer format.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::model::settings;

/// The rotary parameters of a Hugging Face configuration. Newer configurations store them in
/// `rope_parameters`. Older configurations use `rope_scaling` and related fields.
///
/// Unknown fields are an error, because they would change the rotation.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeParameters {
    pub(super) rope_type: Option<String>,
    /// `type`, the oldest name of `rope_type`. Some files have both fields.
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    /// Number of dimensions of each head that are rotated; overrides `partial_rotary_factor`. Only
    /// configurations from GGUF files have this field. transformers does not know it.
    pub(super) dimension_count: Option<i64>,
    pub(super) factor: Option<f64>,
    pub(super) original_max_position_embeddings: Option<f64>,
    pub(super) attention_factor: Option<f64>,
    pub(super) beta_fast: Option<f64>,
    pub(super) beta_slow: Option<f64>,
    pub(super) mscale: Option<f64>,
    pub(super) mscale_all_dim: Option<f64>,
    pub(super) truncate: Option<bool>,
    pub(super) short_factor: Option<Vec<f64>>,
    pub(super) long_factor: Option<Vec<f64>>,
    pub(super) low_freq_factor: Option<f64>,
    pub(super) high_freq_factor: Option<f64>,
    /// Context length of the model. This is a top-level field of the configuration.
    #[serde(skip)]
    pub(super) max_position_embeddings: Option<f64>,
}

/// Names and default values of the rotary parameters that older configurations store as top-level
/// fields.
#[derive(Debug)]
pub struct RopeFields {
    /// Name of the top-level field that sets the base of the frequencies.
    pub theta: &'static str,
    /// The base if the configuration does not set it.
    pub default_theta: f64,
    /// Name of the top-level field that sets the fraction of each head that is rotated.
    pub partial: &'static str,
    /// The fraction if the configuration does not set it.
    pub default_partial: f64,
}

impl RopeFields {
    /// The names and defaults that most models use.
    pub const COMMON: Self = Self {
        theta: "rope_theta",
        default_theta: 10_000.0,
        partial: "partial_rotary_factor",
        default_partial: 1.0,
    };
}

impl RopeParameters {
    /// Reads the parameters for an architecture that rotates whole heads.
    ///
    /// # Errors
    /// Fails if a field is unknown or has the wrong type, or if only a part of each head would be
    /// rotated.
    pub fn whole(config: &Value) -> Result<Self> {
        Self::partial(config, &RopeFields::COMMON)?.must_be_whole()
    }

    /// Reads the parameters for an architecture that may rotate only a part of each head.
    ///
    /// # Errors
    /// Fails if a field is unknown or has the wrong type.
    pub fn partial(config: &Value, fields: &RopeFields) -> Result<Self> {
        let field = ["rope_scaling", "rope_parameters"]
            .into_iter()
            .find(|field| config.get(*field).is_some_and(is_set))
            .unwrap_or("rope_parameters");
        Self::at(config.get(field), field, config, fields)
    }

    /// Reads the parameters from the object `written`, and from top-level fields of `config`.
    /// `place` is the path of `written` in the configuration, for error messages.
    ///
    /// # Errors
    /// Fails if a field is unknown or has the wrong type.
    pub fn at(
        written: Option<&Value>,
        place: &str,
        config: &Value,
        fields: &RopeFields,
    ) -> Result<Self> {
        let nothing = Value::Object(Map::new());
        let mut p: Self =
            settings::read_at(place, written.filter(|w| is_set(w)).unwrap_or(&nothing))?;
        let beside = |field: &str| settings::number(config, field);
        p.rope_type = p.rope_type.or(p.old_type.take());
        p.rope_theta = Some(p.rope_theta.or(beside(fields.theta)?).unwrap_or(fields.default_theta));
        p.partial_rotary_factor = Some(
            p.partial_rotary_factor.or(beside(fields.partial)?).unwrap_or(fields.default_partial),
        );
        p.max_position_embeddings = beside("max_position_embeddings")?;
        // Phi-3 stores this value in a top-level field. This field takes precedence over the
        // object.
        p.original_max_position_embeddings = beside("original_max_position_embeddings")?
            .or(p.original_max_position_embeddings)
            .or(p.max_position_embeddings);
        Ok(p)
    }

    /// Reads two sets of parameters: one for layers with full attention, and one for layers with a
    /// sliding window. Older configurations have a single `rope_scaling`, only for full attention.
    ///
    /// # Errors
    /// Fails if a field is unknown or has the wrong type, or if only a part of each head would be
    /// rotated.
    pub fn by_layer_type(
        config: &Value,
        full: &RopeFields,
        sliding: &RopeFields,
    ) -> Result<[Self; 2]> {
        const TYPES: [&str; 2] = ["full_attention", "sliding_attention"];
        let nested = config.get("rope_parameters").filter(|p| !p.is_null());
        if let Some(stray) = nested
            .and_then(Value::as_object)
            .and_then(|p| p.keys().find(|k| !TYPES.contains(&k.as_str())))
        {
            return Err(Error::new(format!(
                "invalid `rope_parameters.{stray}` in the model's config.json"
            ))
            .hint(
                "give one set of parameters for `full_attention` and one for \
                    `sliding_attention`",
            ));
        }
        let of = |kind: &str| nested.and_then(|p| p.get(kind));
        let (scaling, place) = match config.get("rope_scaling").filter(|s| !s.is_null()) {
            Some(scaling) => (Some(scaling), "rope_scaling"),
            None => (of(TYPES[0]), "rope_parameters.full_attention"),
        };
        Ok([
            Self::at(scaling, place, config, full)?.must_be_whole()?,
            Self::at(of(TYPES[1]), "rope_parameters.sliding_attention", config, sliding)?
                .must_be_whole()?,
        ])
    }

    /// Checks that whole heads are rotated.
    ///
    /// # Errors
    /// Fails if `partial_rotary_factor` is not 1.
    pub fn must_be_whole(self) -> Result<Self> {
        match self.partial_rotary_factor {
            Some(part) if part != 1.0 => Err(Error::new(format!(
                "`partial_rotary_factor` in the model's config.json must be 1, got {part} (its \
                    architecture rotates whole heads)"
            ))),
            _ => Ok(self),
        }
    }

    /// Name of the rope type.
    pub fn kind(&self) -> &str {
        self.rope_type.as_deref().unwrap_or("default")
    }

    /// Replaces the rope type.
    #[must_use]
    pub fn with_kind(mut self, kind: &str) -> Self {
        self.rope_type = Some(kind.to_owned());
        self
    }

    /// Base θ of the frequencies.
    pub(super) fn theta(&self) -> f64 {
        self.rope_theta.unwrap_or(RopeFields::COMMON.default_theta)
    }

    /// Fraction of each head that is rotated.
    pub(super) fn part(&self) -> f64 {
        self.partial_rotary_factor.unwrap_or(1.0)
    }
}

/// True if a field has a value that is neither null nor an empty object.
fn is_set(value: &Value) -> bool {
    !value.is_null() && value.as_object().is_none_or(|o| !o.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(config: Value) -> RopeParameters {
        RopeParameters::partial(&config, &RopeFields::COMMON).unwrap()
    }

    #[test]
    fn older_and_newer_names_give_the_same_parameters() {
        let old =
            of(json!({ "rope_theta": 5e5, "rope_scaling": { "type": "linear", "factor": 2.0 },
                "partial_rotary_factor": 0.5 }));
        let new = of(
            json!({ "rope_parameters": { "rope_theta": 5e5, "rope_type": "linear", "factor": 2.0,
                "partial_rotary_factor": 0.5 } }),
        );
        for p in [old, new] {
            assert_eq!((p.kind(), p.theta(), p.factor, p.part()), ("linear", 5e5, Some(2.0), 0.5));
        }
        let both = of(json!({ "rope_scaling": { "type": "su", "rope_type": "longrope" } }));
        assert_eq!(both.kind(), "longrope");
        let none = of(json!({ "rope_scaling": null, "rope_parameters": {}, "rope_theta": null }));
        assert_eq!((none.kind(), none.theta(), none.part()), ("default", 1e4, 1.0));
    }

    #[test]
    fn the_original_context_is_found_wherever_models_store_it() {
        let original = |config| of(config).original_max_position_embeddings;
        assert_eq!(
            original(json!({ "max_position_embeddings": 64, "rope_scaling": { "type": "yarn" } })),
            Some(64.0)
        );
        let inside = json!({ "original_max_position_embeddings": 16, "type": "yarn" });
        assert_eq!(
            original(json!({ "max_position_embeddings": 64, "rope_scaling": inside.clone() })),
            Some(16.0)
        );
        assert_eq!(
            original(
                json!({ "original_max_position_embeddings": 32, "max_position_embeddings": 64,
                    "rope_scaling": inside })
            ),
            Some(32.0)
        );
    }

    #[test]
    fn unsupported_fields_and_values_are_errors() {
        let refused = |config: Value| format!("{:?}", RopeParameters::whole(&config).unwrap_err());
        let e =
            refused(json!({ "rope_scaling": { "rope_type": "default", "mrope_section": [1, 2] } }));
        assert!(e.contains("`rope_scaling.mrope_section`") && e.contains("unknown field"), "{e}");
        assert!(
            refused(json!({ "rope_parameters": { "factor": "2" } }))
                .contains("`rope_parameters.factor`")
        );
        assert!(refused(json!({ "rope_theta": "many" })).contains("`rope_theta`"));
        assert!(refused(json!({ "partial_rotary_factor": 0.5 })).contains("rotates whole heads"));
    }
}
