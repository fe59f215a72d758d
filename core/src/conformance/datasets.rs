//! Invariants of data sets. They are only checked if the data is available on this machine.

use std::collections::HashSet;

use super::example::with_example;
use super::{Invariant, Method, Verdict};
use crate::api::{Dataset, PreferencePair, Text};
use crate::error::{Context, Result};
use crate::registry::DatasetEntry;

/// The invariants for data sets.
pub const DATASETS: &[Invariant<Method<&'static DatasetEntry>>] = &[
    Invariant { name: "the splits have unique names", check: splits },
    Invariant { name: "the pairs of every split can be read and are complete", check: readable },
    Invariant { name: "reading a split twice gives the same pairs", check: repeatable },
    Invariant { name: "a split has as many pairs as it declares", check: counts },
    Invariant { name: "an unknown split is an error", check: unknown },
];

/// Number of pairs to read from each split.
const FIRST: usize = 200;
/// Maximum number of pairs to count. The declared size of a larger split is not verified.
const COUNTED: usize = 20_000;

/// Opens the data set with the given configuration. If that fails, opens the configuration of the
/// documented example instead. Then runs `check` on the data set.
fn of_open(
    method: &Method<&'static DatasetEntry>,
    check: impl FnOnce(&dyn Dataset) -> Result<Verdict>,
) -> Result<Verdict> {
    let build = |json: &str| method.entry.build(json);
    match build(&method.json).or_else(|_| build(&with_example(method.entry.into())?.json)) {
        Ok(dataset) => check(dataset.as_ref()),
        Err(e) if e.is_panic() => Err(e),
        Err(_) => Ok(Verdict::DoesNotApply("the data is not available")),
    }
}

fn splits(method: &Method<&'static DatasetEntry>) -> Result<Verdict> {
    of_open(method, |dataset| {
        let mut seen = HashSet::new();
        let splits = dataset.splits();
        if splits.is_empty() {
            return Ok(Verdict::Violated("the data set has no splits".to_owned()));
        }
        let odd =
            splits.into_iter().find(|s| s.name.trim().is_empty() || !seen.insert(s.name.clone()));
        Ok(Verdict::unless(
            odd.map(|s| format!("the split name `{}` is empty or not unique", s.name)),
        ))
    })
}

fn first(dataset: &dyn Dataset, split: &str) -> Result<Vec<PreferencePair>> {
    dataset
        .pairs(split)?
        .take(FIRST)
        .collect::<Result<_>>()
        .within(|| format!("the split `{split}` cannot be read"))
}

fn readable(method: &Method<&'static DatasetEntry>) -> Result<Verdict> {
    of_open(method, |dataset| {
        for split in dataset.splits() {
            let pairs = first(dataset, &split.name)?;
            if pairs.is_empty() {
                return Ok(Verdict::Violated(format!("the split `{}` has no pairs", split.name)));
            }
            if let Some((i, wrong)) =
                pairs.iter().enumerate().find_map(|(i, pair)| Some((i, wrong(pair)?)))
            {
                return Ok(Verdict::Violated(format!("pair {i} of `{}` {wrong}", split.name)));
            }
        }
        Ok(Verdict::Holds)
    })
}

/// Describes what is wrong with a pair; `None` if it is valid.
fn wrong(pair: &PreferencePair) -> Option<&'static str> {
    let texts = [&pair.prompt, &pair.chosen, &pair.rejected];
    let plain = texts.iter().filter(|t| matches!(t, Text::Plain(_))).count();
    let empty = |t: &Text| match t {
        Text::Plain(text) => text.is_empty(),
        Text::Messages(list) => list.is_empty(),
    };
    if !matches!(plain, 0 | 3) {
        Some("mixes plain text and messages")
    } else if empty(&pair.chosen) || empty(&pair.rejected) {
        Some("has an empty completion")
    } else if pair.chosen == pair.rejected {
        Some("has two identical completions")
    } else {
        None
    }
}

fn repeatable(method: &Method<&'static DatasetEntry>) -> Result<Verdict> {
    of_open(method, |dataset| {
        for split in dataset.splits() {
            let (mut one, mut two) = (dataset.pairs(&split.name)?, dataset.pairs(&split.name)?);
            for i in 0..FIRST {
                match (one.next().transpose()?, two.next().transpose()?) {
                    (None, None) => break,
                    (a, b) if a != b => {
                        return Ok(Verdict::Violated(format!(
                            "pair {i} of `{}` differs between two reads",
                            split.name
                        )));
                    }
                    _ => {}
                }
            }
        }
        Ok(Verdict::Holds)
    })
}

fn counts(method: &Method<&'static DatasetEntry>) -> Result<Verdict> {
    of_open(method, |dataset| {
        let mut declared = false;
        for split in dataset.splits() {
            let Some(pairs) = split.pairs.filter(|n| *n <= COUNTED) else { continue };
            declared = true;
            let found = dataset.pairs(&split.name)?.take(COUNTED + 1).count();
            if found != pairs {
                return Ok(Verdict::Violated(format!(
                    "`{}` declares {pairs} pairs, but has {found}",
                    split.name
                )));
            }
        }
        Ok(if declared {
            Verdict::Holds
        } else {
            Verdict::DoesNotApply(
                "the data set does not declare its size, or is too large to count",
            )
        })
    })
}

fn unknown(method: &Method<&'static DatasetEntry>) -> Result<Verdict> {
    of_open(method, |dataset| {
        const STRAY: &str = "no-such-split";
        Ok(Verdict::unless(
            dataset
                .pairs(STRAY)
                .is_ok()
                .then(|| format!("the data set returns pairs for the unknown split `{STRAY}`")),
        ))
    })
}
