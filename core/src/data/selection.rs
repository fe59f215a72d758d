//! Parts of splits as Hugging Face's datasets writes them: `train[:750]`, `train[10%:20%]`,
//! `train[-100:]+test`.
//!
//! They are read here and not in a data set, so that every one has them.

use crate::api::{Dataset, RowIter, SplitInfo};
use crate::error::{Error, Result};

/// A place between two pairs, counted from the beginning or, where negative, from the end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    Pairs(i64),
    Percent(i64),
}

impl Bound {
    /// As a number of pairs of `all`; what is outside is brought to the edge.
    fn of(self, all: usize) -> usize {
        let all = i64::try_from(all).unwrap_or(i64::MAX);
        let at = match self {
            Bound::Pairs(n) => n,
            // Python's `round`, which datasets uses, brings a half to the even neighbour.
            Bound::Percent(p) => (p as f64 * all as f64 / 100.0).round_ties_even() as i64,
        };
        let at = if at < 0 { all.saturating_add(at) } else { at };
        at.clamp(0, all) as usize
    }

    /// Whether it can be known without the number of pairs.
    fn counted(self) -> bool {
        matches!(self, Bound::Pairs(n) if n >= 0)
    }
}

/// One split, or a part of it.
#[derive(Clone, Debug, PartialEq)]
struct Part {
    split: String,
    from: Option<Bound>,
    to: Option<Bound>,
}

/// The parts that an expression means. A split's own name means that split, whatever signs are in
/// it.
fn parts(splits: &[SplitInfo], expression: &str) -> Result<Vec<Part>> {
    if splits.iter().any(|s| s.name == expression) {
        return Ok(vec![Part { split: expression.to_owned(), from: None, to: None }]);
    }
    expression
        .split('+')
        .map(|part| {
            part_of(part.trim())
                .map_err(|e| e.within(format!("the split `{expression}` cannot be understood")))
        })
        .collect()
}

fn part_of(text: &str) -> Result<Part> {
    let wrong = |why: String| {
        Error::new(why).hint(
            "valid: `train`, `train[:750]`, `train[10%:20%]`, `train[-100:]`, and several with `+`",
        )
    };
    let Some((split, slice)) = text.split_once('[') else {
        return if text.is_empty() {
            Err(wrong("the name of a split is missing".to_owned()))
        } else {
            Ok(Part { split: text.to_owned(), from: None, to: None })
        };
    };
    let slice =
        slice.strip_suffix(']').ok_or_else(|| wrong(format!("`{text}` has no `]` at its end")))?;
    let (from, to) =
        slice.split_once(':').ok_or_else(|| wrong(format!("`[{slice}]` has no `:`")))?;
    let bound = |text: &str| -> Result<Option<Bound>> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        let (digits, percent) =
            text.strip_suffix('%').map_or((text, false), |digits| (digits.trim_end(), true));
        let n: i64 = digits
            .replace('_', "")
            .parse()
            .map_err(|_| wrong(format!("`{text}` is no number of pairs and no percentage")))?;
        if percent && !(-100..=100).contains(&n) {
            return Err(wrong(format!("`{text}` is outside -100% to 100%")));
        }
        Ok(Some(if percent { Bound::Percent(n) } else { Bound::Pairs(n) }))
    };
    let split = split.trim();
    if split.is_empty() {
        return Err(wrong("the name of a split is missing".to_owned()));
    }
    Ok(Part { split: split.to_owned(), from: bound(from)?, to: bound(to)? })
}

/// A part with its bounds as numbers of pairs.
struct Range {
    split: SplitInfo,
    from: usize,
    to: Option<usize>,
}

/// The ranges that an expression means.
fn ranges(dataset: &dyn Dataset, expression: &str) -> Result<Vec<Range>> {
    let all = dataset.splits();
    parts(&all, expression)?
        .into_iter()
        .map(|Part { split, from, to }| {
            let info = all
                .iter()
                .find(|s| s.name == split)
                .ok_or_else(|| Error::unknown("split", &split, all.iter().map(|s| &s.name)))?;
            let known = match info.pairs {
                Some(pairs) => Some(pairs),
                None if from.is_none_or(Bound::counted) && to.is_none_or(Bound::counted) => None,
                None => Some(count(dataset, &split)?),
            };
            // Without the number of pairs a bound is a number from the beginning, and there is no
            // edge to bring it to.
            let at = |bound: Bound| bound.of(known.unwrap_or(usize::MAX));
            let (from, to) = (from.map_or(0, at), to.map(at));
            let end = to.or(known);
            let past = || -> Result<bool> {
                Ok(known.is_none() && from > 0 && dataset.rows(&split)?.nth(from).is_none())
            };
            if end.is_some_and(|end| from >= end) || past()? {
                let holds =
                    known.map_or_else(String::new, |n| format!(": `{split}` has {n} pairs"));
                return Err(Error::new(format!(
                    "the split `{expression}` has an empty part{holds}"
                )));
            }
            Ok(Range { split: SplitInfo { pairs: known, ..info.clone() }, from, to })
        })
        .collect()
}

fn count(dataset: &dyn Dataset, split: &str) -> Result<usize> {
    dataset.rows(split)?.try_fold(0, |n, pair| pair.map(|_| n + 1))
}

/// The names of the splits of which an expression means a part or the whole.
///
/// # Errors
/// An expression that is none.
pub fn named(dataset: &dyn Dataset, expression: &str) -> Result<Vec<String>> {
    Ok(parts(&dataset.splits(), expression)?.into_iter().map(|part| part.split).collect())
}

/// What a split, a part of one or several are, under the name `expression`.
///
/// # Errors
/// A split that the data set does not have, an expression that is none, or a part without pairs.
pub fn info(dataset: &dyn Dataset, expression: &str) -> Result<SplitInfo> {
    let ranges = ranges(dataset, expression)?;
    let pairs =
        ranges.iter().map(|r| r.split.pairs.map(|n| r.to.unwrap_or(n).min(n) - r.from)).sum();
    let mut describes: Vec<&str> = ranges.iter().map(|r| r.split.describes.as_str()).collect();
    describes.dedup();
    Ok(SplitInfo { name: expression.to_owned(), describes: describes.join(" + "), pairs })
}

/// The pairs of a split, a part of one or several, in order, each with the place of its row in its
/// own split.
///
/// # Errors
/// As [`info`], and where a split cannot be read.
pub fn rows<'a>(dataset: &'a dyn Dataset, expression: &str) -> Result<RowIter<'a>> {
    let parts = ranges(dataset, expression)?.into_iter().map(|Range { split, from, to }| {
        let most = to.map_or(usize::MAX, |to| to - from);
        // What is passed over may be broken too, and is then no reason to go on behind it.
        let mut left = from;
        let rows = dataset.rows(&split.name)?.filter(move |row| {
            let passed = left > 0 && row.is_ok();
            left -= usize::from(passed);
            !passed
        });
        Ok(rows.take(most))
    });
    Ok(Box::new(parts.collect::<Result<Vec<_>>>()?.into_iter().flatten()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{PairIter, PreferencePair, Text};

    struct Numbers {
        known: bool,
    }

    impl Dataset for Numbers {
        fn splits(&self) -> Vec<SplitInfo> {
            let split = |name: &str, n: usize| SplitInfo {
                name: name.into(),
                describes: format!("{name}.jsonl"),
                pairs: self.known.then_some(n),
            };
            vec![split("train", 25), split("test", 4), split("a+b[", 1)]
        }

        fn pairs(&self, split: &str) -> Result<PairIter<'_>> {
            let n = self
                .splits_known()
                .into_iter()
                .find(|(name, _)| *name == split)
                .map_or(0, |(_, n)| n);
            Ok(Box::new((0..n).map(|i| Ok(PreferencePair::new(i.to_string(), "c", "r")))))
        }
    }

    impl Numbers {
        fn splits_known(&self) -> [(&'static str, usize); 3] {
            [("train", 25), ("test", 4), ("a+b[", 1)]
        }
    }

    fn read(expression: &str) -> Vec<usize> {
        let both = [true, false].map(|known| {
            let data = Numbers { known };
            let read: Vec<usize> = rows(&data, expression)
                .unwrap()
                .map(|row| {
                    let (row, pair) = row.unwrap();
                    assert_eq!(
                        pair.prompt,
                        Text::from(row.to_string()),
                        "a part keeps the places that the rows have in the whole"
                    );
                    row
                })
                .collect();
            let told = info(&data, expression).unwrap();
            assert!(
                told.pairs.is_none_or(|n| n == read.len()) && (told.pairs.is_some() || !known),
                "{expression}: {told:?}, {}",
                read.len()
            );
            read
        });
        assert_eq!(both[0], both[1], "{expression}");
        both[0].clone()
    }

    fn error(expression: &str) -> String {
        format!("{:?}", info(&Numbers { known: true }, expression).unwrap_err())
    }

    #[test]
    fn parts_are_what_datasets_takes_them_for() {
        assert_eq!(read("train"), (0..25).collect::<Vec<_>>());
        assert_eq!(read("train[:3]"), [0, 1, 2]);
        assert_eq!(read(" train [ 20 : ] "), [20, 21, 22, 23, 24]);
        assert_eq!(read("train[-2:]"), [23, 24]);
        assert_eq!(read("train[3:-20]"), [3, 4]);
        assert_eq!(read("train[:1_000]"), (0..25).collect::<Vec<_>>());
        // 2.5 and 7.5 pairs: a half goes to the even number.
        assert_eq!(read("train[10%:30%]"), (2..8).collect::<Vec<_>>());
        assert_eq!(read("train[-10%:]"), [23, 24]);
        assert_eq!(read("train[:2]+test[50%:]+train[:1]"), [0, 1, 2, 3, 0]);
        assert_eq!(read("a+b["), [0], "a split's own name is not taken apart");
        assert_eq!(
            named(&Numbers { known: false }, "train[:2]+test[50%:]").unwrap(),
            ["train", "test"]
        );
        assert_eq!(named(&Numbers { known: false }, "a+b[").unwrap(), ["a+b["]);
    }

    #[test]
    fn what_is_no_part_says_what_one_is() {
        for (expression, why) in [
            ("train[:x]", "`x` is no number of pairs and no percentage"),
            ("train[5]", "`[5]` has no `:`"),
            ("train[1:2", "`train[1:2` has no `]` at its end"),
            ("train+", "the name of a split is missing"),
            ("[:3]", "the name of a split is missing"),
            ("train[:101%]", "`101%` is outside -100% to 100%"),
            (
                "train[:99999999999999999999]",
                "`99999999999999999999` is no number of pairs and no percentage",
            ),
        ] {
            let e = error(expression);
            assert!(
                e.starts_with(&format!(
                    "the split `{expression}` cannot be understood\n  \
                because {why}\n  hint: valid: `train`"
                )),
                "{e}"
            );
        }
        assert_eq!(
            error("trian[:3]"),
            "unknown split `trian`\n  hint: did you mean `train`?\n  hint: valid: a+b[, test, train"
        );
        assert_eq!(error("test[4:]"), "the split `test[4:]` has an empty part: `test` has 4 pairs");
        assert_eq!(
            error("test[3:1]"),
            "the split `test[3:1]` has an empty part: `test` has 4 pairs"
        );
    }

    #[test]
    fn it_describes_what_it_takes_from() {
        assert_eq!(
            info(&Numbers { known: true }, "train[:3]+train[5:]+test").unwrap().describes,
            "train.jsonl + test.jsonl"
        );
    }
}
