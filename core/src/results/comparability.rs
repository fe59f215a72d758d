//! Checks that runs scored the same pairs with the same settings.

use std::collections::BTreeMap;

use super::collect::Member;
use super::pairs::{PairRecord, ScoredSplit};
use super::recorded::RecordedRun;
use crate::error::{Error, Result};

/// Fields that must be equal in all runs, because they change the scores of the same pairs.
const FIELDS: [&str; 5] =
    ["dtype", "train.max_length", "train.max_prompt_length", "eval.score", "eval.max_pairs"];

/// Checks that all runs can be compared with the first one.
///
/// # Errors
/// Fails if a field, the model, the data or the scored pairs differ. The error names both runs and
/// the difference.
pub(super) fn check(members: &[Member]) -> Result<()> {
    let Some((first, others)) = members.split_first() else { return Ok(()) };
    others.iter().try_for_each(|other| pair(&first.run, &other.run))
}

fn pair(a: &RecordedRun, b: &RecordedRun) -> Result<()> {
    let differ = |what: String| {
        Error::new(format!(
            "`{}` and `{}` cannot be compared: {what}",
            a.folder.display(),
            b.folder.display()
        ))
        .hint("compare only runs that scored the same pairs with the same settings")
    };
    let shown = |run: &RecordedRun, field: &str| {
        run.field(field).map_or_else(|| "not set".to_owned(), |v| format!("`{v}`"))
    };
    let fields =
        |field: &str| differ(format!("`{field}` is {} and {}", shown(a, field), shown(b, field)));
    match (&a.model, &b.model) {
        (Some(x), Some(y)) if x == y => {}
        (Some(_), Some(_)) if a.field("model") == b.field("model") => {
            return Err(differ("`model` has the same name, but different contents".to_owned()));
        }
        (None, _) | (_, None) if a.field("model") == b.field("model") => {}
        _ => return Err(fields("model")),
    }
    if let Some(field) = FIELDS.iter().find(|field| a.field(field) != b.field(field)) {
        return Err(fields(field));
    }
    for split in &a.splits {
        let Some(other) = b.split(&split.name) else {
            return Err(differ(format!(
                "only the first run scored the split `{}` (`eval.splits`)",
                split.name
            )));
        };
        let base = split.name.split(['[', '+']).next().unwrap_or_default();
        if let (Some(x), Some(y)) = (a.data.get(base), b.data.get(base))
            && x != y
        {
            return Err(differ(format!(
                "`dataset` has different data in the split `{}`",
                split.name
            )));
        }
        if let Some(what) = pairs(split, other) {
            return Err(differ(what));
        }
    }
    if let Some(more) = b.splits.iter().find(|s| a.split(&s.name).is_none()) {
        return Err(differ(format!(
            "only the second run scored the split `{}` (`eval.splits`)",
            more.name
        )));
    }
    Ok(())
}

/// Describes the first difference between the scored pairs of a split in two runs.
pub(super) fn pairs(a: &ScoredSplit, b: &ScoredSplit) -> Option<String> {
    let by_index = |s: &ScoredSplit| -> BTreeMap<usize, Vec<usize>> {
        s.pairs.iter().map(|p| (p.index(), tokens(p))).collect()
    };
    let (x, y) = (by_index(a), by_index(b));
    if let Some((index, _)) = x.iter().find(|(index, _)| !y.contains_key(index)) {
        return Some(format!("only the first run scored pair {index} of `{}`", a.name));
    }
    if let Some((index, _)) = y.iter().find(|(index, _)| !x.contains_key(index)) {
        return Some(format!("only the second run scored pair {index} of `{}`", a.name));
    }
    if let Some((index, _)) = x.iter().find(|(index, tokens)| y.get(index) != Some(tokens)) {
        return Some(format!("pair {index} of `{}` has completions of other lengths", a.name));
    }
    let clusters = a.pairs.iter().zip(&b.pairs);
    clusters
        .filter(|(p, q)| p.cluster.is_some() && q.cluster.is_some() && p.cluster != q.cluster)
        .map(|(p, _)| format!("pair {} of `{}` is in different clusters", p.index(), a.name))
        .next()
}

fn tokens(pair: &PairRecord) -> Vec<usize> {
    vec![pair.base.chosen.tokens, pair.base.rejected.tokens]
}
