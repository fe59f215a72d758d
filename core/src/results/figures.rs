//! The metrics of a method on each split, with intervals over clusters and seeds.

use std::collections::BTreeMap;

use serde::Serialize;

use super::methods::Row;
use super::pairs::PairRecord;
use super::recorded::RecordedRun;
use crate::config::Score;
use crate::eval::SplitRole;
use crate::statistics::{
    AccuracyByLength, Calibration, Estimate, Interval, NoInterval, Observation, Scope, ScoredPair,
    Table, accuracy_by_length, both_orders, differential_elicitation, elicitation,
};

/// A metric: its mean, and its 95 % interval over clusters and seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Mean over pairs and seeds.
    pub mean: f64,
    /// Lower end of the interval.
    pub low: Option<f64>,
    /// Upper end of the interval.
    pub high: Option<f64>,
    /// The reason, if there is no interval or if it covers less than clusters and seeds.
    pub remark: Option<&'static str>,
    /// Number of pairs.
    pub pairs: usize,
    /// Number of clusters, if they are known.
    pub clusters: Option<usize>,
    /// Number of seeds.
    pub seeds: usize,
}

/// The remark of a figure without clusters.
pub(super) const NO_CLUSTERS: &str =
    "no interval: the runs do not record clusters, because an older version wrote them";

impl Figure {
    /// Converts an estimate. `scale` is applied to the mean and to both ends.
    pub(super) fn of(estimate: &Estimate, scale: impl Fn(f64) -> f64) -> Self {
        let bounds = estimate.bounds();
        let remark = match estimate.interval {
            Interval::Given { scope: Scope::ClustersAndSeeds, .. } => None,
            Interval::Given { scope: Scope::ClustersOnly, .. } => {
                Some("the interval is over clusters only, because there is one seed")
            }
            Interval::Absent(NoInterval::OneCluster) => {
                Some("no interval: all pairs are in one cluster")
            }
            Interval::Absent(NoInterval::FewClusters) => {
                Some("no interval: there are fewer than 8 effective clusters")
            }
            Interval::Absent(NoInterval::NoVariation) => {
                Some("no interval: all clusters have the same value")
            }
        };
        Self {
            mean: scale(estimate.mean),
            low: bounds.map(|b| scale(b.low)),
            high: bounds.map(|b| scale(b.high)),
            remark,
            pairs: estimate.pairs,
            clusters: Some(estimate.clusters),
            seeds: estimate.seeds,
        }
    }

    /// Both ends of the interval, if there is one.
    pub fn interval(&self) -> Option<(f64, f64)> {
        Some((self.low?, self.high?))
    }
}

/// The metrics of a row on one split.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SplitFigures {
    /// Name of the split.
    pub split: String,
    /// Relation of the split to the training data.
    pub role: SplitRole,
    /// Accuracy of the trained model, from 0 to 1; ties count ½.
    pub accuracy: Option<Figure>,
    /// 100·(accuracy − base accuracy), in percentage points.
    pub points: Option<Figure>,
    /// Mean increase of log p(chosen) − log p(rejected), in nats.
    pub margin_gain: Option<Figure>,
    /// exp(mean(log ppl_base(y⁺) − log ppl_π(y⁺))).
    pub perplexity_ratio: Option<Figure>,
    /// KL divergence from the reference, in nats per token, if the runs recorded it.
    pub kl: Option<Figure>,
    /// Elicitation, if the tuned capability is known.
    pub elicitation: Option<f64>,
    /// Differential elicitation, if the tuned capability is known.
    pub differential_elicitation: Option<f64>,
    /// Calibration of σ(score difference) over all pairs and seeds.
    pub calibration: Option<Calibration>,
    /// Accuracy by the lengths of the completions, over all pairs and seeds.
    pub by_length: AccuracyByLength,
    /// Number of pairs without a finite score in at least one run. Only the accuracies include
    /// them.
    pub not_finite: usize,
}

/// The metrics of a row of the main table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Name of the row.
    pub method: String,
    /// The searched values.
    pub values: BTreeMap<String, String>,
    /// Seeds of the runs.
    pub seeds: Vec<u64>,
    /// Folders of the runs.
    pub runs: Vec<String>,
    /// How the values were selected.
    pub tuned: super::methods::Tuned,
    /// True if these are runs of the search, because the study has no final runs at this point.
    pub search_runs: bool,
    /// The metrics on each split.
    pub splits: Vec<SplitFigures>,
}

/// Accuracy on a shift after training on the shifted distribution itself, by split.
pub(super) type Capabilities = BTreeMap<String, f64>;

/// Computes the metrics of a row. `runs` are the runs of the row.
pub(super) fn of_row(row: &Row, runs: &[&RecordedRun], tuned: &Capabilities) -> Figures {
    let splits = runs.first().map(|r| r.splits.as_slice()).unwrap_or_default();
    Figures {
        method: row.name.clone(),
        values: row.values.clone(),
        seeds: runs.iter().map(|r| r.seed).collect(),
        runs: runs.iter().map(|r| r.folder.display().to_string()).collect(),
        tuned: row.tuned,
        search_runs: row.search_runs,
        splits: splits.iter().map(|s| of_split(&s.name, runs, tuned)).collect(),
    }
}

fn of_split(split: &str, runs: &[&RecordedRun], tuned: &Capabilities) -> SplitFigures {
    let by = runs.first().map(|r| r.score()).unwrap_or_default();
    let skipped = not_finite(split, runs);
    let finite = |p: &PairRecord| !skipped.contains(&p.index());
    let all = |_: &PairRecord| true;
    let accuracy = share(split, runs, all, |p| p.credit(true, by));
    let points =
        figure(split, runs, all, |p| p.credit(true, by) - p.credit(false, by), |v| 100. * v);
    let base = base_accuracy(split, runs);
    let capability = tuned.get(split).copied();
    let mean = accuracy.as_ref().map(|a| a.mean);
    let has_kl =
        runs.iter().all(|r| r.split(split).is_some_and(|s| s.pairs.iter().all(|p| p.kl.is_some())));
    SplitFigures {
        split: split.to_owned(),
        role: SplitRole::of(split),
        accuracy,
        points,
        margin_gain: figure(split, runs, finite, PairRecord::margin_gain, |v| v),
        perplexity_ratio: figure(split, runs, finite, PairRecord::log_perplexity_ratio, f64::exp),
        kl: if has_kl {
            figure(split, runs, finite, |p| p.kl.unwrap_or(f64::NAN), |v| v)
        } else {
            None
        },
        elicitation: mean.zip(capability).and_then(|(a, t)| elicitation(a, t)),
        differential_elicitation: mean
            .zip(base)
            .zip(capability)
            .and_then(|((a, b), t)| differential_elicitation(a, b, t)),
        calibration: calibration(split, runs, true, by),
        by_length: accuracy_by_length(&scored(split, runs, true, by)),
        not_finite: skipped.len(),
    }
}

/// Accuracy of the base model, from 0 to 1, in the first run.
pub(super) fn base_accuracy(split: &str, runs: &[&RecordedRun]) -> Option<f64> {
    let run = runs.first()?;
    let pairs = &run.split(split)?.pairs;
    let sum: f64 = pairs.iter().map(|p| p.credit(false, run.score())).sum();
    (!pairs.is_empty()).then(|| sum / pairs.len() as f64)
}

/// Row numbers of the pairs without a finite score in at least one run.
pub(super) fn not_finite(split: &str, runs: &[&RecordedRun]) -> Vec<usize> {
    let mut found: Vec<usize> = runs
        .iter()
        .filter_map(|r| r.split(split))
        .flat_map(|s| s.pairs.iter().filter(|p| !p.is_finite()).map(PairRecord::index))
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn scored(split: &str, runs: &[&RecordedRun], trained: bool, by: Score) -> Vec<ScoredPair> {
    let splits = runs.iter().filter_map(|r| r.split(split));
    splits.flat_map(|s| s.pairs.iter().map(|p| p.scored(trained, by))).collect()
}

/// Calibration of σ(score(y⁺) − score(y⁻)) with both orders of each pair. Pairs without a finite
/// score are left out.
pub(super) fn calibration(
    split: &str,
    runs: &[&RecordedRun],
    trained: bool,
    by: Score,
) -> Option<Calibration> {
    let chosen: Vec<f64> = scored(split, runs, trained, by)
        .iter()
        .map(|p| 1.0 / (1.0 + (p.rejected - p.chosen).exp()))
        .filter(|p| p.is_finite())
        .collect();
    Calibration::of(&both_orders(&chosen)).filter(|_| !chosen.is_empty())
}

/// Builds the table of the values of pairs under all seeds. Returns `None` if a run has no
/// clusters, or if no pair is left.
pub(super) fn table(
    split: &str,
    runs: &[&RecordedRun],
    keep: impl Fn(&PairRecord) -> bool,
    value: impl Fn(&PairRecord) -> f64,
) -> Option<Table> {
    let mut observations = Vec::new();
    for run in runs {
        for pair in run.split(split)?.pairs.iter().filter(|p| keep(p)) {
            observations.push(Observation {
                pair: pair.index(),
                cluster: pair.cluster.clone()?,
                seed: run.seed,
                value: value(pair),
            });
        }
    }
    Table::from_pairs(observations).ok()
}

fn figure(
    split: &str,
    runs: &[&RecordedRun],
    keep: impl Fn(&PairRecord) -> bool,
    value: impl Fn(&PairRecord) -> f64,
    scale: impl Fn(f64) -> f64,
) -> Option<Figure> {
    match table(split, runs, &keep, &value) {
        Some(table) => Some(Figure::of(&Estimate::of(&table), scale)),
        None => without_interval(split, runs, keep, value, scale),
    }
}

fn share(
    split: &str,
    runs: &[&RecordedRun],
    keep: impl Fn(&PairRecord) -> bool,
    value: impl Fn(&PairRecord) -> f64,
) -> Option<Figure> {
    match table(split, runs, &keep, &value) {
        Some(table) => Estimate::of_share(&table).map(|e| Figure::of(&e, |v| v)),
        None => without_interval(split, runs, keep, value, |v| v),
    }
}

/// The mean over all pairs and runs, without an interval.
fn without_interval(
    split: &str,
    runs: &[&RecordedRun],
    keep: impl Fn(&PairRecord) -> bool,
    value: impl Fn(&PairRecord) -> f64,
    scale: impl Fn(f64) -> f64,
) -> Option<Figure> {
    let values: Vec<f64> = runs
        .iter()
        .filter_map(|r| r.split(split))
        .flat_map(|s| s.pairs.iter().filter(|p| keep(p)).map(&value))
        .collect();
    (!values.is_empty()).then(|| Figure {
        mean: scale(values.iter().sum::<f64>() / values.len() as f64),
        low: None,
        high: None,
        remark: Some(NO_CLUSTERS),
        pairs: values.len() / runs.len().max(1),
        clusters: None,
        seeds: runs.len(),
    })
}
