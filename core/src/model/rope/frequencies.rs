//! Computes the frequencies of rotary embeddings, for every rope type.
//!
//! Reference: `modeling_rope_utils.py` of transformers 5.23. All operations are in float32 and in
//! the same order as in transformers, because rounding differences would grow with the position.

use std::borrow::Cow;
use std::f32::consts::TAU;

use super::RopeParameters;
use crate::error::{Error, Result};

const TYPES: [&str; 6] = ["default", "linear", "dynamic", "yarn", "llama3", "longrope"];

/// The rotation angles of the r/2 pairs of rotated dimensions, in radians per position.
#[derive(Debug)]
pub enum Frequencies {
    /// The same for all lengths.
    Fixed(Vec<f32>),
    /// For sequences of more than `context` tokens, the base grows with the length.
    Dynamic { theta: f64, rotary_dims: i64, factor: f64, context: f64 },
    /// `short` for sequences of up to `limit` tokens, and `long` for longer ones.
    ByLength { limit: f64, short: Vec<f32>, long: Vec<f32> },
}

impl Frequencies {
    /// Returns the smallest sequence length with the same frequencies as a sequence of `tokens`
    /// tokens.
    pub fn representative(&self, tokens: usize) -> usize {
        match self {
            Self::Fixed(_) => 0,
            Self::Dynamic { context, .. } if tokens as f64 <= *context => 0,
            Self::Dynamic { .. } => tokens,
            Self::ByLength { limit, .. } if tokens as f64 <= *limit => 0,
            Self::ByLength { limit, .. } => *limit as usize + 1,
        }
    }

    /// The frequencies for a sequence of `tokens` tokens.
    pub fn for_length(&self, tokens: usize) -> Cow<'_, [f32]> {
        let tokens = tokens as f64;
        match self {
            Self::Fixed(frequencies) => Cow::Borrowed(frequencies),
            // NTK-aware: θ·(s·l/L − (s − 1))^(r/(r−2)) at l > L tokens (bloc97 and emozilla 2023).
            Self::Dynamic { theta, rotary_dims, factor, context } => {
                let growth = factor * tokens.max(*context) / context - (factor - 1.0);
                let r = *rotary_dims as f64;
                Cow::Owned(plain(theta * growth.powf(r / (r - 2.0)), *rotary_dims))
            }
            Self::ByLength { limit, short, long } => {
                Cow::Borrowed(if tokens > *limit { long } else { short })
            }
        }
    }
}

/// Returns the frequencies for heads with `head_dim` dimensions, and the factor by which cos and
/// sin are multiplied.
///
/// # Errors
/// Fails if the rope type is unknown, or if one of its parameters is missing or out of range.
pub fn of(head_dim: i64, p: &RopeParameters) -> Result<(Frequencies, f64)> {
    let (kind, theta) = (p.kind(), p.theta());
    let invalid = |field: &str, what: String| {
        Error::new(format!("`{field}` in the model's config.json {what}"))
    };
    let missing = |field: &str| {
        Error::new(format!("the model's config.json must set `{field}` for the rope type `{kind}`"))
    };
    let rotates = |expected: String, actual: i64| {
        Error::new(format!(
            "the model's config.json must specify {expected} rotated dimensions per head, got \
                {actual}"
        ))
    };
    if !(theta > 0.0 && theta.is_finite()) {
        return Err(invalid("rope_theta", format!("must be greater than 0, got {theta}")));
    }
    let rotary_dims = p.dimension_count.unwrap_or((head_dim as f64 * p.part()) as i64);
    if !(1..=head_dim).contains(&rotary_dims) {
        return Err(rotates(format!("1 to {head_dim}"), rotary_dims));
    }
    if rotary_dims == head_dim && rotary_dims % 2 != 0 {
        return Err(rotates("an even number of".to_owned(), rotary_dims));
    }
    let need = |value: Option<f64>, field: &str| match value {
        Some(x) if x > 0.0 && x.is_finite() => Ok(x),
        Some(x) => Err(invalid(field, format!("must be greater than 0, got {x}"))),
        None => Err(missing(field)),
    };
    let factor = || need(p.factor, "factor");
    let original = || need(p.original_max_position_embeddings, "original_max_position_embeddings");
    // If `factor` is not set, use the ratio of the context length to the original context length.
    let stretch = || match p.factor {
        Some(_) => factor(),
        None => Ok(need(p.max_position_embeddings, "max_position_embeddings")? / original()?),
    };
    Ok(match kind {
        "default" => (Frequencies::Fixed(plain(theta, rotary_dims)), 1.0),
        "linear" => {
            let factor = factor()? as f32;
            (
                Frequencies::Fixed(
                    plain(theta, rotary_dims).into_iter().map(|f| f / factor).collect(),
                ),
                1.0,
            )
        }
        "dynamic" => {
            if rotary_dims < 4 {
                return Err(Error::new(format!(
                    "the model's config.json must specify at least 4 rotated dimensions per head \
                        for the rope type `dynamic`, got {rotary_dims}"
                )));
            }
            let context = need(p.max_position_embeddings, "max_position_embeddings")?;
            (Frequencies::Dynamic { theta, rotary_dims, factor: factor()?, context }, 1.0)
        }
        "llama3" => (
            Frequencies::Fixed(llama3(theta, rotary_dims, p, [factor()?, original()?], need)?),
            1.0,
        ),
        "yarn" => {
            let (factor, original) = (stretch()?, original()?);
            (
                Frequencies::Fixed(yarn(theta, rotary_dims, p, factor, original)),
                p.attention_factor.unwrap_or_else(|| yarn_attention(p, factor)),
            )
        }
        "longrope" => {
            let limit = original()?;
            let factor = stretch()?;
            // The attention factor √(1 + ln s / ln L) (Ding et al. 2024 (LongRoPE) §3).
            let usual = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / limit.ln()).sqrt() };
            let scaled = |factors: &Option<Vec<f64>>, field: &str| -> Result<Vec<f32>> {
                let factors = factors.as_ref().ok_or_else(|| missing(field))?;
                let pairs = plain(theta, rotary_dims).len();
                if factors.len() != pairs {
                    let n = factors.len();
                    return Err(invalid(
                        field,
                        format!(
                            "must have {pairs} numbers, one for each pair of rotated dimensions, \
                                got {n}"
                        ),
                    ));
                }
                if let Some(bad) = factors.iter().find(|f| !(**f > 0.0 && f.is_finite())) {
                    return Err(invalid(
                        field,
                        format!("must only contain numbers greater than 0, got {bad}"),
                    ));
                }
                Ok(powers(theta, rotary_dims)
                    .zip(factors)
                    .map(|(power, f)| 1.0 / (*f as f32 * power))
                    .collect())
            };
            let (short, long) =
                (scaled(&p.short_factor, "short_factor")?, scaled(&p.long_factor, "long_factor")?);
            let frequencies = if short == long {
                Frequencies::Fixed(short)
            } else {
                Frequencies::ByLength { limit, short, long }
            };
            (frequencies, p.attention_factor.unwrap_or(usual))
        }
        other => return Err(Error::unknown("rope type", other, TYPES)),
    })
}

/// θ^(2i/r) for each pair i of rotated dimensions, where r is the number of rotated dimensions.
fn powers(theta: f64, rotary_dims: i64) -> impl Iterator<Item = f32> {
    (0..(rotary_dims + 1) / 2)
        .map(move |i| (theta as f32).powf((2 * i) as f32 / rotary_dims as f32))
}

/// The frequencies without scaling, θ^(−2i/r).
fn plain(theta: f64, rotary_dims: i64) -> Vec<f32> {
    powers(theta, rotary_dims).map(|power| 1.0 / power).collect()
}

/// The frequencies of Llama 3.1. High frequencies are unchanged, low frequencies are divided by
/// `factor`, and frequencies in between are interpolated.
fn llama3(
    theta: f64,
    rotary_dims: i64,
    p: &RopeParameters,
    [factor, context]: [f64; 2],
    need: impl Fn(Option<f64>, &str) -> Result<f64>,
) -> Result<Vec<f32>> {
    let (low, high) = (
        need(p.low_freq_factor, "low_freq_factor")? as f32,
        need(p.high_freq_factor, "high_freq_factor")? as f32,
    );
    let (factor, context) = (factor as f32, context as f32);
    let scaled = |f: f32| {
        let wavelength = TAU / f;
        if wavelength < context / high {
            f
        } else if wavelength > context / low {
            f / factor
        } else {
            let smooth = (context / wavelength - low) / (high - low);
            (1.0 - smooth) * f / factor + smooth * f
        }
    };
    Ok(plain(theta, rotary_dims).into_iter().map(scaled).collect())
}

/// The frequencies of YaRN (Peng et al. 2023 §3.2). If a pair of dimensions makes many turns within
/// the original context, its frequency is unchanged. If it makes less than one turn, its frequency
/// is divided by `factor`. In between, the frequency is interpolated with a linear ramp.
fn yarn(theta: f64, rotary_dims: i64, p: &RopeParameters, factor: f64, original: f64) -> Vec<f32> {
    let last = rotary_dims as f64 - 1.0;
    // Returns the index of the pair that makes `turns` turns within the original context. If
    // `turns` is not set or is 0, uses `usual`, as in transformers.
    let pair = |turns: Option<f64>, usual: f64| {
        let turns = turns.filter(|t| *t != 0.0).unwrap_or(usual);
        rotary_dims as f64 * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln())
    };
    let (mut low, mut high) = (pair(p.beta_fast, 32.0), pair(p.beta_slow, 1.0));
    if p.truncate.unwrap_or(true) {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, mut high) = (low.max(0.0), high.min(last));
    if low == high {
        high += 0.001;
    }
    let (low, width, factor) = (low as f32, (high - low) as f32, factor as f32);
    let blend = |(i, power): (usize, f32)| {
        let slowed = ((i as f32 - low) / width).clamp(0.0, 1.0);
        1.0 / (factor * power) * slowed + 1.0 / power * (1.0 - slowed)
    };
    powers(theta, rotary_dims).enumerate().map(blend).collect()
}

/// The attention factor 0.1·m·ln(s) + 1 (YaRN, eq. 22). If `mscale` and `mscale_all_dim` are both
/// set, returns the factor for `mscale` divided by the factor for `mscale_all_dim`. The model
/// already scales its attention by the second factor.
fn yarn_attention(p: &RopeParameters, factor: f64) -> f64 {
    let of = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    match (p.mscale.filter(|m| *m != 0.0), p.mscale_all_dim.filter(|m| *m != 0.0)) {
        (Some(mscale), Some(all)) => of(mscale) / of(all),
        _ => of(1.0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::RopeFields;
    use super::*;

    fn frequencies_of(head_dim: i64, config: Value) -> Result<(Frequencies, f64)> {
        of(head_dim, &RopeParameters::partial(&config, &RopeFields::COMMON)?)
    }

    /// The expected values were computed in numpy with float32, like `_compute_*_parameters` in
    /// transformers 5.23. Each case consists of the configuration, the width of a head, a number of
    /// tokens, the expected attention factor, and some of the expected frequencies by index.
    #[test]
    fn every_rope_type_has_the_same_frequencies_as_in_transformers() {
        let yarn =
            json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024 });
        let deep = json!({ "rope_type": "yarn", "rope_theta": 1e6, "factor": 40.0,
            "original_max_position_embeddings": 4096, "beta_fast": 16,
            "beta_slow": 2, "mscale": 0.707, "mscale_all_dim": 1.0, "truncate": false });
        let by_ratio = json!({ "rope_type": "yarn", "factor": null,
            "original_max_position_embeddings": 1024, "attention_factor": 1.25 });
        let llama3 = json!({ "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256 });
        let long = json!({ "type": "longrope", "short_factor": [1.0, 1.25, 1.5, 1.75],
            "long_factor": [2.0, 4.0, 8.0, 16.0],
            "original_max_position_embeddings": 1024 });
        let mut explicit = long.clone();
        explicit["factor"] = json!(32.0);
        explicit["attention_factor"] = json!(1.19);
        let dynamic = json!({ "type": "dynamic", "factor": 2.0 });
        let linear = json!({ "type": "linear", "factor": 4.0 });
        type Case<'a> = (&'a Value, i64, usize, f64, &'a [(usize, f64)]);
        let cases: [Case; 11] = [
            (&Value::Null, 16, 1, 1.0, &[(0, 1.0), (1, 0.316_227_764), (7, 0.000_316_227_786)]),
            (&linear, 16, 1, 1.0, &[(0, 0.25), (1, 0.079_056_941), (7, 7.905_694_66e-5)]),
            (&dynamic, 16, 4096, 1.0, &[(1, 0.316_227_764), (7, 0.000_316_227_786)]),
            (
                &dynamic,
                16,
                8192,
                1.0,
                &[(1, 0.270_296_127), (4, 0.005_337_762_65), (7, 0.000_105_409_257)],
            ),
            (
                &yarn,
                16,
                1,
                1.138_629_436_111_989,
                &[
                    (1, 0.316_227_764),
                    (2, 0.081_250_004_5),
                    (4, 0.004_375_000_02),
                    (5, 0.000_790_569_466),
                ],
            ),
            (
                &deep,
                32,
                1,
                0.921_042_355_316_340,
                &[
                    (4, 0.031_622_778_6),
                    (5, 0.009_520_862_25),
                    (6, 0.001_738_219_06),
                    (15, 5.928_434_28e-8),
                ],
            ),
            (&by_ratio, 16, 1, 1.25, &[(2, 0.081_250_004_5), (3, 0.019_764_237_1)]),
            (
                &llama3,
                16,
                1,
                1.0,
                &[
                    (1, 0.193_922_758),
                    (2, 0.010_538_231_6),
                    (3, 0.000_911_583_134),
                    (7, 1.289_173_16e-6),
                ],
            ),
            (
                &long,
                8,
                1024,
                1.095_445_115_010_332,
                &[(0, 1.0), (1, 0.079_999_998_2), (3, 0.000_571_428_565)],
            ),
            (
                &long,
                8,
                1025,
                1.095_445_115_010_332,
                &[(0, 0.5), (1, 0.025_000_000_4), (3, 6.250_000_3e-5)],
            ),
            (&explicit, 8, 1, 1.19, &[(2, 0.006_666_666_83)]),
        ];
        for (scaling, head_dim, tokens, attention, expected) in cases {
            let (frequencies, factor) = frequencies_of(
                head_dim,
                json!({ "rope_scaling": scaling, "max_position_embeddings": 4096 }),
            )
            .unwrap();
            let frequencies = frequencies.for_length(tokens);
            assert_eq!(frequencies.len() as i64, head_dim / 2, "{scaling}");
            assert!((factor - attention).abs() < 1e-12, "{scaling}: {factor}");
            for (i, f) in expected {
                let ours = f64::from(frequencies[*i]);
                assert!(
                    (ours - f).abs() < 1e-6 * f,
                    "{scaling} at {tokens} tokens: frequency {i} is {ours}, expected {f}"
                );
            }
        }
        let half =
            frequencies_of(16, json!({ "partial_rotary_factor": 0.5, "rope_scaling": linear }))
                .unwrap()
                .0;
        let expected = [0.25, 0.025_000_000_4, 0.002_499_999_94, 0.000_250_000_012];
        assert!(
            half.for_length(1)
                .iter()
                .zip(expected)
                .all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6 * b)
        );
    }

    #[test]
    fn the_error_names_the_parameter_that_is_missing_or_out_of_range() {
        let refused = |scaling: Value| {
            format!("{:?}", frequencies_of(8, json!({ "rope_scaling": scaling })).unwrap_err())
        };
        assert_eq!(
            refused(json!({ "rope_type": "lama3" })),
            "unknown rope type `lama3`\n  hint: did you mean `llama3`?\n  hint: valid: default, \
                dynamic, linear, llama3, longrope, yarn"
        );
        assert!(refused(json!({ "type": "linear" })).contains("must set `factor`"));
        assert!(
            refused(json!({ "type": "linear", "factor": 0.0 })).contains("greater than 0, got 0")
        );
        assert!(
            refused(json!({ "type": "dynamic", "factor": 2.0 }))
                .contains("`max_position_embeddings`")
        );
        assert!(
            refused(
                json!({ "type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64 })
            )
            .contains("`low_freq_factor`")
        );
        let long = |short: Value| {
            json!({ "type": "longrope", "factor": 2.0,
            "original_max_position_embeddings": 64, "short_factor": short })
        };
        assert!(
            refused(long(json!([1.0])))
                .contains("must have 4 numbers, one for each pair of rotated dimensions, got 1")
        );
        assert!(refused(long(json!([1, 1, 1, 1]))).contains("must set `long_factor`"));
        assert!(refused(json!({ "rope_theta": -1.0 })).contains("greater than 0, got -1"));
        assert!(
            refused(json!({ "partial_rotary_factor": 1.5 }))
                .contains("specify 1 to 8 rotated dimensions per head, got 12")
        );
    }
}
