//! Notes below the evaluation table, about intervals and about overlap with the training data.

use super::statistics::{Metric, SplitSummary};
use super::table::{Table, signed, value};
use crate::statistics::NoInterval;

/// Explains the intervals in the table, and why some splits have none. Returns no lines if the
/// table has no intervals to explain.
pub(super) fn intervals(table: &Table) -> Vec<String> {
    let points = |split: &SplitSummary| split.change.as_ref()?.points;
    let with = |wanted: &dyn Fn(&Metric) -> bool| -> Vec<&SplitSummary> {
        table.splits.iter().filter(|split| points(split).is_some_and(|p| wanted(&p))).collect()
    };
    let mut lines = Vec::new();
    let given = with(&|points| points.interval().is_some());
    if given.iter().any(|split| split.clusters.is_some()) {
        lines.push(
            "95 % CI: over clusters of dependent pairs, for this one training; another seed can \
                give other results"
                .to_owned(),
        );
    }
    if given.iter().any(|split| split.clusters.is_none()) {
        lines.push(
            "the intervals are from an older version, which treated all pairs as independent; \
                repeat the evaluation with `reprpo eval RUN`"
                .to_owned(),
        );
    }
    for reason in [NoInterval::OneCluster, NoInterval::FewClusters, NoInterval::NoVariation] {
        let names: Vec<&str> = with(&|points| points.no_interval == Some(reason))
            .iter()
            .map(|split| split.split.as_str())
            .collect();
        if !names.is_empty() {
            lines.push(format!("no interval for {}: {reason}", names.join(", ")));
        }
    }
    lines
}

/// Warns if pairs with the same prompt are in different clusters. Returns `None` if they are not.
pub(super) fn shared_prompts(split: &SplitSummary) -> Option<String> {
    let (prompts, clusters) = split.prompts.zip(split.clusters)?;
    (prompts < clusters).then(|| {
        format!(
            "{}: pairs with the same prompt are in different clusters ({prompts} prompts, \
                {clusters} clusters); to treat them as dependent, name the column of the prompt \
                with `--cluster`",
            split.split
        )
    })
}

/// Describes the overlap of a split with the training data. Returns `None` if there is none.
pub(super) fn overlap(split: &SplitSummary) -> Option<String> {
    let overlap = split.overlap.filter(|overlap| overlap.prompts + overlap.pairs > 0)?;
    let scored = match (overlap.pairs, overlap.excluded) {
        (0, _) => "",
        (_, true) => " (not scored)",
        (pairs, false) if pairs == split.n => " (scored, because there are no other pairs)",
        (_, false) => " (scored, because `eval.overlap` is `keep`)",
    };
    Some(format!(
        "{}: pairs with a prompt of the training data: {}, also with both completions: {}{scored}",
        split.split, overlap.prompts, overlap.pairs
    ))
}

/// Describes the accuracy over rows with several pairs. Returns `None` if there are none.
pub(super) fn best_of(split: &SplitSummary) -> Option<String> {
    let best = split.best_of.as_ref()?;
    let pairs = match (best.fewest_pairs, best.most_pairs) {
        (fewest, most) if fewest == most => most.to_string(),
        (fewest, most) => format!("{fewest} to {most}"),
    };
    let share = |metric: Option<Metric>| value(metric, |v| format!("{v:.3}"));
    let mut line = format!(
        "{}: chosen above every rejected answer in {} of {} rows with {pairs} pairs",
        split.split,
        share(best.base),
        best.rows
    );
    if let Some(points) = best.points {
        let interval = points.interval().map_or_else(String::new, |(low, high)| {
            format!(" [{}, {}]", signed(low, 1), signed(high, 1))
        });
        line += &format!(
            ", after training {} ({} points{interval})",
            share(best.trained),
            signed(points.value, 1)
        );
    }
    Some(line)
}
