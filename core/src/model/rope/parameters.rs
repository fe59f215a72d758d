//! What a configuration says of its rotary positions, in its older and its newer spelling.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::model::settings;

/// `rope_parameters` of a Hugging Face configuration, or `rope_scaling` and its neighbours in older
/// ones.
///
/// A field that is not known here would change the rotation, so it is an error.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeParameters {
    pub(super) rope_type: Option<String>,
    /// The oldest spelling of `rope_type`; some files have both.
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    /// How many dimensions of each head are rotated; overrides `partial_rotary_factor`. Only a
    /// configuration that was made from a GGUF file has it, because transformers has no such field.
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
    /// The context that the model is made for; it stands beside the rotary parameters.
    #[serde(skip)]
    pub(super) max_position_embeddings: Option<f64>,
}

/// Where older configurations say what newer ones say in `rope_parameters`, and what holds where
/// neither does.
#[derive(Debug)]
pub struct Spelling {
    /// The field of the frequencies' base.
    pub theta: &'static str,
    /// The base where none is given.
    pub usual_theta: f64,
    /// The field of the share of each head that is turned.
    pub partial: &'static str,
    /// That share where none is given.
    pub usual_partial: f64,
}

impl Spelling {
    /// That of most models.
    pub const USUAL: Self = Self {
        theta: "rope_theta",
        usual_theta: 10_000.0,
        partial: "partial_rotary_factor",
        usual_partial: 1.0,
    };
}

impl RopeParameters {
    /// Those of an architecture that turns whole heads.
    ///
    /// # Errors
    /// A field that is not known or of another type, or heads that are to be turned in part.
    pub fn whole(config: &Value) -> Result<Self> {
        Self::partial(config, &Spelling::USUAL)?.must_be_whole()
    }

    /// Those of an architecture that may turn a part of each head.
    ///
    /// # Errors
    /// A field that is not known or of another type.
    pub fn partial(config: &Value, spelling: &Spelling) -> Result<Self> {
        let field = ["rope_scaling", "rope_parameters"]
            .into_iter()
            .find(|field| config.get(*field).is_some_and(is_said))
            .unwrap_or("rope_parameters");
        Self::at(config.get(field), field, config, spelling)
    }

    /// Those that stand at `place` of the configuration, its neighbours being in `config`.
    ///
    /// # Errors
    /// A field that is not known or of another type.
    pub fn at(
        written: Option<&Value>,
        place: &str,
        config: &Value,
        spelling: &Spelling,
    ) -> Result<Self> {
        let nothing = Value::Object(Map::new());
        let mut p: Self =
            settings::read_at(place, written.filter(|w| is_said(w)).unwrap_or(&nothing))?;
        let beside = |field: &str| settings::number(config, field);
        p.rope_type = p.rope_type.or(p.old_type.take());
        p.rope_theta =
            Some(p.rope_theta.or(beside(spelling.theta)?).unwrap_or(spelling.usual_theta));
        p.partial_rotary_factor = Some(
            p.partial_rotary_factor.or(beside(spelling.partial)?).unwrap_or(spelling.usual_partial),
        );
        p.max_position_embeddings = beside("max_position_embeddings")?;
        // In the configurations that have it beside the others, Phi-3's, that one counts.
        p.original_max_position_embeddings = beside("original_max_position_embeddings")?
            .or(p.original_max_position_embeddings)
            .or(p.max_position_embeddings);
        Ok(p)
    }

    /// Those of layers that see everything, and of layers with a window, for an architecture with a
    /// set for each. Older configurations have one `rope_scaling`, which only applies to the first.
    ///
    /// # Errors
    /// Fails if a field is unknown or of another type, or if heads are to be rotated in part.
    pub fn by_layer_type(config: &Value, full: &Spelling, sliding: &Spelling) -> Result<[Self; 2]> {
        const TYPES: [&str; 2] = ["full_attention", "sliding_attention"];
        let nested = config.get("rope_parameters").filter(|p| !p.is_null());
        if let Some(stray) = nested
            .and_then(Value::as_object)
            .and_then(|p| p.keys().find(|k| !TYPES.contains(&k.as_str())))
        {
            return Err(Error::new(format!(
                "the model's config.json has no valid \
                `rope_parameters.{stray}`"
            ))
            .hint(
                "this architecture has one set for `full_attention` and one for \
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

    /// Refuses heads that are to be turned in part.
    ///
    /// # Errors
    /// If so.
    pub fn must_be_whole(self) -> Result<Self> {
        match self.partial_rotary_factor {
            Some(part) if part != 1.0 => Err(Error::new(format!(
                "the model's config.json turns {part} of each head (`partial_rotary_factor`), but \
                    its architecture turns whole heads"
            ))),
            _ => Ok(self),
        }
    }

    /// The type's name.
    pub fn kind(&self) -> &str {
        self.rope_type.as_deref().unwrap_or("default")
    }

    /// The same by another type.
    #[must_use]
    pub fn with_kind(mut self, kind: &str) -> Self {
        self.rope_type = Some(kind.to_owned());
        self
    }

    /// Base of the frequencies.
    pub(super) fn theta(&self) -> f64 {
        self.rope_theta.unwrap_or(Spelling::USUAL.usual_theta)
    }

    /// Share of each head that is turned.
    pub(super) fn part(&self) -> f64 {
        self.partial_rotary_factor.unwrap_or(1.0)
    }
}

/// Whether a field says something: neither null nor an empty object.
fn is_said(value: &Value) -> bool {
    !value.is_null() && value.as_object().is_none_or(|o| !o.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(config: Value) -> RopeParameters {
        RopeParameters::partial(&config, &Spelling::USUAL).unwrap()
    }

    #[test]
    fn both_spellings_say_the_same() {
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
    fn the_context_of_pretraining_is_looked_for_where_models_have_it() {
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
    fn what_cannot_be_honoured_is_an_error() {
        let refused = |config: Value| format!("{:?}", RopeParameters::whole(&config).unwrap_err());
        let e =
            refused(json!({ "rope_scaling": { "rope_type": "default", "mrope_section": [1, 2] } }));
        assert!(e.contains("`rope_scaling.mrope_section`") && e.contains("unknown field"), "{e}");
        assert!(
            refused(json!({ "rope_parameters": { "factor": "2" } }))
                .contains("`rope_parameters.factor`")
        );
        assert!(refused(json!({ "rope_theta": "many" })).contains("`rope_theta`"));
        assert!(refused(json!({ "partial_rotary_factor": 0.5 })).contains("turns whole heads"));
    }
}
