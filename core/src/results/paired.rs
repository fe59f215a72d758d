//! Paired tests of the methods against a baseline, on the same clusters and seeds.

use serde::Serialize;

use super::collect::Collection;
use super::figures::{Figure, NO_CLUSTERS, table};
use super::methods::Row;
use super::recorded::RecordedRun;
use crate::error::{Error, Result};
use crate::eval::SplitRole;
use crate::statistics::{compare, holm, smallest_detectable_difference};

/// The difference between a method and the baseline on one split.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PairedTest {
    /// Name of the split.
    pub split: String,
    /// Name of the method.
    pub method: String,
    /// Seeds that both methods have.
    pub seeds: Vec<u64>,
    /// 100·(accuracy of the method − accuracy of the baseline), in percentage points. `None` if the
    /// methods have no seed in common or no clusters.
    pub difference: Option<Figure>,
    /// Two-sided p value of the hypothesis that the difference is 0.
    pub p: Option<f64>,
    /// The p value after Holm's correction over all tests of the table.
    pub p_holm: Option<f64>,
    /// The true difference in points that such a study detects with a probability of 80 %.
    pub detectable: Option<f64>,
    /// The reason, if there is no test.
    pub remark: Option<String>,
}

/// All tests against the baseline.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PairedTests {
    /// Name of the baseline; `None` if there is only one method.
    pub baseline: Option<String>,
    /// The tests on every split except the training data.
    pub tests: Vec<PairedTest>,
}

/// Returns the position of the baseline: the row or the method called `name`, otherwise the first
/// row with the intervention `preferred`, otherwise the first row.
///
/// # Errors
/// Fails if there is no method with this name.
pub(super) fn baseline(rows: &[Row], name: Option<&str>, preferred: Option<&str>) -> Result<usize> {
    let Some(name) = name else {
        let is_preferred = |r: &Row| preferred == Some(r.intervention.as_str());
        return Ok(rows.iter().position(is_preferred).unwrap_or(0));
    };
    let exact = rows.iter().position(|r| r.name == name);
    exact.or_else(|| rows.iter().position(|r| r.intervention == name)).ok_or_else(|| {
        let names: Vec<&str> = rows.iter().map(|r| r.name.as_str()).collect();
        Error::unknown("baseline", name, names)
    })
}

/// Tests every row against the row at `baseline`.
///
/// # Errors
/// Fails if the pairs of two runs do not match.
pub(super) fn tests(rows: &[Row], all: &Collection, baseline: usize) -> Result<PairedTests> {
    let Some(base) = rows.get(baseline).filter(|_| rows.len() > 1) else {
        return Ok(PairedTests::default());
    };
    let base_runs = all.runs(&base.runs);
    let splits: Vec<String> = base_runs
        .first()
        .map(|r| r.splits.iter().map(|s| s.name.clone()).collect())
        .unwrap_or_default();
    let mut tests = Vec::new();
    for split in splits.iter().filter(|s| SplitRole::of(s) != SplitRole::Train) {
        for (i, row) in rows.iter().enumerate() {
            if i != baseline {
                tests.push(test(split, row, &all.runs(&row.runs), &base_runs)?);
            }
        }
    }
    let p_values: Vec<f64> = tests.iter().filter_map(|t| t.p).collect();
    let adjusted = holm(&p_values).map_err(|e| Error::internal(e.to_string()))?;
    for (test, p) in tests.iter_mut().filter(|t| t.p.is_some()).zip(adjusted) {
        test.p_holm = Some(p);
    }
    Ok(PairedTests { baseline: Some(base.name.clone()), tests })
}

fn test(
    split: &str,
    row: &Row,
    runs: &[&RecordedRun],
    base: &[&RecordedRun],
) -> Result<PairedTest> {
    let has = |runs: &[&RecordedRun], seed: u64| runs.iter().any(|r| r.seed == seed);
    let both = |runs: &[&'_ RecordedRun]| -> Vec<usize> {
        (0..runs.len()).filter(|&i| has(base, runs[i].seed)).collect()
    };
    let ours: Vec<&RecordedRun> = both(runs).into_iter().map(|i| runs[i]).collect();
    let theirs: Vec<&RecordedRun> = base.iter().filter(|r| has(&ours, r.seed)).copied().collect();
    let mut found = PairedTest {
        split: split.to_owned(),
        method: row.name.clone(),
        seeds: ours.iter().map(|r| r.seed).collect(),
        difference: None,
        p: None,
        p_holm: None,
        detectable: None,
        remark: None,
    };
    if ours.is_empty() {
        found.remark = Some("the method and the baseline have no seed in common".to_owned());
        return Ok(found);
    }
    let credits = |runs: &[&RecordedRun]| {
        let by = runs[0].score();
        table(split, runs, |_| true, |p| p.credit(true, by))
    };
    let (Some(first), Some(second)) = (credits(&ours), credits(&theirs)) else {
        found.remark = Some(NO_CLUSTERS.replace("no interval", "no test"));
        return Ok(found);
    };
    let comparison = compare(&first, &second).map_err(|e| {
        Error::new(format!("cannot compare `{}` with the baseline on `{split}`", row.name))
            .because(e)
    })?;
    let difference = Figure::of(&comparison.difference, |v| 100.0 * v);
    let mut remarks: Vec<String> = difference.remark.iter().map(|r| (*r).to_owned()).collect();
    if ours.len() < runs.len().max(base.len()) {
        remarks.push(format!("only the {} seeds that both methods have", ours.len()));
    }
    found.remark = (!remarks.is_empty()).then(|| remarks.join("; "));
    found.p = comparison.p;
    found.detectable =
        smallest_detectable_difference(&comparison.difference, None).ok().map(|d| 100.0 * d);
    found.difference = Some(difference);
    Ok(found)
}
