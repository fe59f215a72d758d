//! Comparison of methods along the strength of the training: gains against the perplexity ratio.
//!
//! Stronger training moves every number. A method is therefore compared at all its learning rates,
//! and at the same damage to the text.

use std::collections::BTreeMap;

use serde::Serialize;

use super::collect::Collection;
use super::methods::{Method, MethodPoint};
use super::pairs::PairRecord;
use super::recorded::RecordedRun;
use crate::error::{Error, Result};
use crate::eval::SplitRole;
use crate::statistics::{AtTarget, Point, at_target};

/// Name of the field with the learning rate.
const LEARNING_RATE: &str = "train.lr";

/// A method at one point of the search.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CurvePoint {
    /// Name of the method.
    pub method: String,
    /// The values of the searched fields.
    pub values: BTreeMap<String, String>,
    /// Peak learning rate.
    pub learning_rate: Option<f64>,
    /// Seeds of the runs.
    pub seeds: Vec<u64>,
    /// True if this is the method's tuned point.
    pub tuned: bool,
    /// Mean log perplexity ratio on the chosen text of [`Curves::matched_on`], in nats. `None` if
    /// no pair has finite scores.
    pub log_ratio: Option<f64>,
    /// Gain in accuracy on each split, in percentage points.
    pub gains: BTreeMap<String, f64>,
}

/// The gain of a method at the matched perplexity ratio.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MatchedGain {
    /// Name of the split.
    pub split: String,
    /// The gain in percentage points; `None` if it is unknown.
    pub points: Option<f64>,
}

/// A method at the matched perplexity ratio.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Matched {
    /// Name of the method.
    pub method: String,
    /// The neighbouring learning rates between which the ratio crosses the target.
    pub learning_rates: Option<(f64, f64)>,
    /// The gains on each split. Empty if there is no interpolation.
    pub gains: Vec<MatchedGain>,
    /// The reason, if there is no interpolation, or a warning.
    pub remark: Option<String>,
}

/// The comparison along the strength of the training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Curves {
    /// The split whose chosen text gives the perplexity ratio.
    pub matched_on: String,
    /// The perplexity ratio at which methods are compared.
    pub target: f64,
    /// The points of all methods.
    pub points: Vec<CurvePoint>,
    /// Each method at the target.
    pub matched: Vec<Matched>,
}

/// Computes the points of all methods, and each method at the perplexity ratio `target` of the
/// split `on`. By default, the split is the test data, otherwise the training data.
///
/// # Errors
/// Fails if `target` is not greater than 0, or if the runs did not score the split `on`.
pub(super) fn of(
    methods: &[Method],
    all: &Collection,
    target: f64,
    on: Option<&str>,
) -> Result<Curves> {
    if !(target > 0.0 && target.is_finite()) {
        return Err(Error::new(format!(
            "the matched perplexity ratio must be greater than 0, got {target}"
        )));
    }
    let splits: Vec<&str> = all
        .members
        .first()
        .map(|m| m.run.splits.iter().map(|s| s.name.as_str()).collect())
        .unwrap_or_default();
    let matched_on = match on {
        Some(on) if splits.contains(&on) => on,
        Some(on) => return Err(Error::unknown("split", on, splits)),
        None => {
            let role = |role| splits.iter().find(|s| SplitRole::of(s) == role);
            role(SplitRole::Test)
                .or_else(|| role(SplitRole::Train))
                .or_else(|| splits.first())
                .copied()
                .unwrap_or_default()
        }
    };
    let (mut points, mut matched) = (Vec::new(), Vec::new());
    for method in methods {
        let of_method: Vec<CurvePoint> = method
            .points
            .iter()
            .enumerate()
            .map(|(i, p)| point(method, p, method.tuned_point == Some(i), all, matched_on))
            .collect();
        matched.push(at_ratio(method, &of_method, target, &splits));
        points.extend(of_method);
    }
    Ok(Curves { matched_on: matched_on.to_owned(), target, points, matched })
}

fn point(
    method: &Method,
    point: &MethodPoint,
    tuned: bool,
    all: &Collection,
    matched_on: &str,
) -> CurvePoint {
    let runs: Vec<&RecordedRun> = all.runs(&point.runs);
    let gain = |split: &str| {
        mean(&runs, split, |r, p| {
            Some(100.0 * (p.credit(true, r.score()) - p.credit(false, r.score())))
        })
    };
    let finite = |_: &RecordedRun, p: &PairRecord| p.is_finite().then(|| p.log_perplexity_ratio());
    CurvePoint {
        method: method.name.clone(),
        values: point.values.clone(),
        learning_rate: runs.first().and_then(|r| r.learning_rate()),
        seeds: runs.iter().map(|r| r.seed).collect(),
        tuned,
        log_ratio: mean(&runs, matched_on, finite),
        gains: runs
            .first()
            .map(|r| &r.splits)
            .into_iter()
            .flatten()
            .filter_map(|s| Some((s.name.clone(), gain(&s.name)?)))
            .collect(),
    }
}

/// Mean over the pairs and the runs.
fn mean(
    runs: &[&RecordedRun],
    split: &str,
    value: impl Fn(&RecordedRun, &PairRecord) -> Option<f64>,
) -> Option<f64> {
    let values: Vec<f64> = runs
        .iter()
        .filter_map(|r| Some((r, r.split(split)?)))
        .flat_map(|(r, s)| s.pairs.iter().filter_map(|p| value(r, p)).collect::<Vec<_>>())
        .collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The method at the perplexity ratio `target`.
fn at_ratio(method: &Method, all: &[CurvePoint], target: f64, splits: &[&str]) -> Matched {
    let none = |remark: String| Matched {
        method: method.name.clone(),
        learning_rates: None,
        gains: Vec::new(),
        remark: Some(remark),
    };
    // Only the learning rate may vary. If the search varied other fields as well, use the points
    // that share the other values of the tuned point.
    let others = |p: &CurvePoint| -> BTreeMap<String, String> {
        let fields = p.values.iter().filter(|(field, _)| *field != LEARNING_RATE);
        fields.map(|(field, value)| (field.clone(), value.clone())).collect()
    };
    let anchor = all.iter().find(|p| p.tuned).or_else(|| all.first()).map(&others);
    let points: Vec<&CurvePoint> =
        all.iter().filter(|p| Some(others(p)) == anchor && p.log_ratio.is_some()).collect();
    if points.len() < 2 {
        return none(format!(
            "not bracketed: {} learning rate with the same other values",
            points.len()
        ));
    }
    let mut gains = Vec::new();
    let (mut rates, mut remark) = (None, None);
    for split in splits {
        let line: Option<Vec<Point>> = points
            .iter()
            .map(|p| {
                Some(Point {
                    learning_rate: p.learning_rate?,
                    log_ratio: p.log_ratio?,
                    y: *p.gains.get(*split)?,
                })
            })
            .collect();
        let Some(line) = line else {
            gains.push(MatchedGain { split: (*split).to_owned(), points: None });
            continue;
        };
        match at_target(&line, target.ln()) {
            Ok(AtTarget::Interpolated { y, learning_rates, crossings }) => {
                rates = Some(learning_rates);
                if crossings > 1 {
                    remark = Some(format!(
                        "the ratio crosses the target {crossings} times; this is the first \
                            crossing"
                    ));
                }
                gains.push(MatchedGain { split: (*split).to_owned(), points: Some(y) });
            }
            Ok(AtTarget::NotBracketed { min, max }) => {
                return none(format!(
                    "not bracketed: the ratios are between {:.3} and {:.3}",
                    min.exp(),
                    max.exp()
                ));
            }
            Err(e) => return none(e.to_string()),
        }
    }
    Matched { method: method.name.clone(), learning_rates: rates, gains, remark }
}
