//! What a data set promises, where it opens without files.

use std::collections::HashSet;

use super::example::of_example;
use super::{Invariant, Method, Verdict};
use crate::api::{Dataset, PreferencePair, Text};
use crate::error::{Context, Result};
use crate::registry::DatasetEntry;

/// What every data set is held to.
pub const DATASETS: &[Invariant<Method<&'static DatasetEntry>>] = &[
    Invariant { name: "its splits have names of their own", check: splits },
    Invariant { name: "the pairs of every split can be read and are whole", check: readable },
    Invariant { name: "reading a split twice gives the same pairs", check: repeatable },
    Invariant { name: "a split holds as many pairs as it says", check: counts },
    Invariant { name: "a split that it does not have is an error", check: unknown },
];

/// How many pairs of a split are looked at.
const FIRST: usize = 200;
/// Splits that say they hold more are not counted.
const COUNTED: usize = 20_000;

/// Holds the data set to `check`: at its defaults if it opens with them, and otherwise as its
/// example makes it.
fn of_open(
    method: &Method<&'static DatasetEntry>,
    check: impl FnOnce(&dyn Dataset) -> Result<Verdict>,
) -> Result<Verdict> {
    let build = |json: &str| method.entry.build(json);
    match build(&method.json).or_else(|_| build(&of_example(method.entry.into())?.json)) {
        Ok(dataset) => check(dataset.as_ref()),
        Err(e) if e.is_panic() => Err(e),
        Err(_) => Ok(Verdict::DoesNotApply("what it opens is not here")),
    }
}

fn splits(method: &Method<&'static DatasetEntry>) -> Result<Verdict> {
    of_open(method, |dataset| {
        let mut seen = HashSet::new();
        let splits = dataset.splits();
        if splits.is_empty() {
            return Ok(Verdict::Violated("it has no split".to_owned()));
        }
        let odd =
            splits.into_iter().find(|s| s.name.trim().is_empty() || !seen.insert(s.name.clone()));
        Ok(Verdict::unless(odd.map(|s| format!("`{}` is no name of its own", s.name))))
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
                return Ok(Verdict::Violated(format!("the split `{}` holds no pair", split.name)));
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

/// What is wrong with a pair.
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
        Some("prefers a completion to itself")
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
                            "pair {i} of `{}` is another one the second time",
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
        let mut said = false;
        for split in dataset.splits() {
            let Some(pairs) = split.pairs.filter(|n| *n <= COUNTED) else { continue };
            said = true;
            let found = dataset.pairs(&split.name)?.take(COUNTED + 1).count();
            if found != pairs {
                return Ok(Verdict::Violated(format!(
                    "`{}` says {pairs} pairs and holds {found}",
                    split.name
                )));
            }
        }
        Ok(if said {
            Verdict::Holds
        } else {
            Verdict::DoesNotApply("it does not say how many, or very many")
        })
    })
}

fn unknown(method: &Method<&'static DatasetEntry>) -> Result<Verdict> {
    of_open(method, |dataset| {
        const STRAY: &str = "no-such-split";
        Ok(Verdict::unless(
            dataset.pairs(STRAY).is_ok().then(|| format!("it has pairs for the split `{STRAY}`")),
        ))
    })
}
