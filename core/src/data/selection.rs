//! Selects parts of splits with the syntax of Hugging Face's `datasets`: `train[:750]`,
//! `train[10%:20%]`, `train[-100:]+test`.
//!
//! The expressions are parsed here and not by the data sets, so that every data set supports them.

use crate::api::{Dataset, RowIter, SplitInfo};
use crate::error::{Error, Result};

/// Start or end of a slice. Negative bounds count from the end of the split.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    Pairs(i64),
    Percent(i64),
}

impl Bound {
    /// Converts the bound to an index into a split of `all` pairs. The index is clamped to
    /// `0..=all`.
    fn of(self, all: usize) -> usize {
        let all = i64::try_from(all).unwrap_or(i64::MAX);
        let at = match self {
            Bound::Pairs(n) => n,
            // Round half to even, like Python's `round`, which `datasets` uses.
            Bound::Percent(p) => (p as f64 * all as f64 / 100.0).round_ties_even() as i64,
        };
        let at = if at < 0 { all.saturating_add(at) } else { at };
        at.clamp(0, all) as usize
    }

    /// True if the bound can be resolved without knowing the number of pairs in the split.
    fn is_absolute(self) -> bool {
        matches!(self, Bound::Pairs(n) if n >= 0)
    }
}

/// A split, or a part of a split.
#[derive(Clone, Debug, PartialEq)]
struct Part {
    split: String,
    from: Option<Bound>,
    to: Option<Bound>,
}

/// Parses an expression into parts. An expression that equals the name of a split selects that
/// split, even if the name contains `[` or `+`.
fn parts(splits: &[SplitInfo], expression: &str) -> Result<Vec<Part>> {
    if splits.iter().any(|s| s.name == expression) {
        return Ok(vec![Part { split: expression.to_owned(), from: None, to: None }]);
    }
    expression
        .split('+')
        .map(|part| {
            part_of(part.trim()).map_err(|e| e.within(format!("invalid split `{expression}`")))
        })
        .collect()
}

fn part_of(text: &str) -> Result<Part> {
    let wrong = |why: String| {
        Error::new(why).hint(
            "valid: `train`, `train[:750]`, `train[10%:20%]`, `train[-100:]`, or several joined \
                with `+`",
        )
    };
    let Some((split, slice)) = text.split_once('[') else {
        return if text.is_empty() {
            Err(wrong("missing split name".to_owned()))
        } else {
            Ok(Part { split: text.to_owned(), from: None, to: None })
        };
    };
    let slice =
        slice.strip_suffix(']').ok_or_else(|| wrong(format!("`{text}` must end with `]`")))?;
    let (from, to) =
        slice.split_once(':').ok_or_else(|| wrong(format!("`[{slice}]` must contain `:`")))?;
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
            .map_err(|_| wrong(format!("`{text}` is not a number of pairs or a percentage")))?;
        if percent && !(-100..=100).contains(&n) {
            return Err(wrong(format!("`{text}` must be between -100% and 100%")));
        }
        Ok(Some(if percent { Bound::Percent(n) } else { Bound::Pairs(n) }))
    };
    let split = split.trim();
    if split.is_empty() {
        return Err(wrong("missing split name".to_owned()));
    }
    Ok(Part { split: split.to_owned(), from: bound(from)?, to: bound(to)? })
}

/// A part of a split, with its bounds resolved to indices.
struct Range {
    split: SplitInfo,
    from: usize,
    to: Option<usize>,
}

/// Resolves an expression to ranges. If a bound depends on an unknown split size, counts the pairs
/// of that split.
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
                None if from.is_none_or(Bound::is_absolute)
                    && to.is_none_or(Bound::is_absolute) =>
                {
                    None
                }
                None => Some(count(dataset, &split)?),
            };
            // If the number of pairs is unknown, all bounds are non-negative indices. They need no
            // clamping.
            let at = |bound: Bound| bound.of(known.unwrap_or(usize::MAX));
            let (from, to) = (from.map_or(0, at), to.map(at));
            let end = to.or(known);
            let past = || -> Result<bool> {
                Ok(known.is_none() && from > 0 && dataset.rows(&split)?.nth(from).is_none())
            };
            if end.is_some_and(|end| from >= end) || past()? {
                let size = known.map_or_else(String::new, |n| format!(": `{split}` has {n} pairs"));
                return Err(Error::new(format!(
                    "split `{expression}` contains an empty range{size}"
                )));
            }
            Ok(Range { split: SplitInfo { pairs: known, ..info.clone() }, from, to })
        })
        .collect()
}

fn count(dataset: &dyn Dataset, split: &str) -> Result<usize> {
    dataset.rows(split)?.try_fold(0, |n, pair| pair.map(|_| n + 1))
}

/// Returns the names of the splits that an expression refers to.
///
/// # Errors
/// Fails if the expression is not valid.
pub fn named(dataset: &dyn Dataset, expression: &str) -> Result<Vec<String>> {
    Ok(parts(&dataset.splits(), expression)?.into_iter().map(|part| part.split).collect())
}

/// Describes the pairs that `expression` selects. The returned name is the expression itself.
///
/// # Errors
/// Fails if the expression is not valid, if it refers to an unknown split, or if one of its ranges
/// is empty.
pub fn info(dataset: &dyn Dataset, expression: &str) -> Result<SplitInfo> {
    let ranges = ranges(dataset, expression)?;
    let pairs =
        ranges.iter().map(|r| r.split.pairs.map(|n| r.to.unwrap_or(n).min(n) - r.from)).sum();
    let mut describes: Vec<&str> = ranges.iter().map(|r| r.split.describes.as_str()).collect();
    describes.dedup();
    Ok(SplitInfo { name: expression.to_owned(), describes: describes.join(" + "), pairs })
}

/// Iterates over the pairs that `expression` selects. Row numbers refer to the whole split.
///
/// # Errors
/// Fails in the same cases as [`info`], and if a split cannot be read.
pub fn rows<'a>(dataset: &'a dyn Dataset, expression: &str) -> Result<RowIter<'a>> {
    let parts = ranges(dataset, expression)?.into_iter().map(|Range { split, from, to }| {
        let most = to.map_or(usize::MAX, |to| to - from);
        // Skip the rows before the range, but return their errors.
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
                        "row numbers refer to the whole split"
                    );
                    row
                })
                .collect();
            let info = info(&data, expression).unwrap();
            assert!(
                info.pairs.is_none_or(|n| n == read.len()) && (info.pairs.is_some() || !known),
                "{expression}: {info:?}, {}",
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
    fn parts_select_the_same_rows_as_in_datasets() {
        assert_eq!(read("train"), (0..25).collect::<Vec<_>>());
        assert_eq!(read("train[:3]"), [0, 1, 2]);
        assert_eq!(read(" train [ 20 : ] "), [20, 21, 22, 23, 24]);
        assert_eq!(read("train[-2:]"), [23, 24]);
        assert_eq!(read("train[3:-20]"), [3, 4]);
        assert_eq!(read("train[:1_000]"), (0..25).collect::<Vec<_>>());
        // 2.5 is rounded to 2 and 7.5 to 8.
        assert_eq!(read("train[10%:30%]"), (2..8).collect::<Vec<_>>());
        assert_eq!(read("train[-10%:]"), [23, 24]);
        assert_eq!(read("train[:2]+test[50%:]+train[:1]"), [0, 1, 2, 3, 0]);
        assert_eq!(
            read("a+b["),
            [0],
            "a split name that looks like an expression must not be parsed as one"
        );
        assert_eq!(
            named(&Numbers { known: false }, "train[:2]+test[50%:]").unwrap(),
            ["train", "test"]
        );
        assert_eq!(named(&Numbers { known: false }, "a+b[").unwrap(), ["a+b["]);
    }

    #[test]
    fn errors_about_expressions_explain_the_notation() {
        for (expression, why) in [
            ("train[:x]", "`x` is not a number of pairs or a percentage"),
            ("train[5]", "`[5]` must contain `:`"),
            ("train[1:2", "`train[1:2` must end with `]`"),
            ("train+", "missing split name"),
            ("[:3]", "missing split name"),
            ("train[:101%]", "`101%` must be between -100% and 100%"),
            (
                "train[:99999999999999999999]",
                "`99999999999999999999` is not a number of pairs or a percentage",
            ),
        ] {
            let e = error(expression);
            assert!(
                e.starts_with(&format!(
                    "invalid split `{expression}`\n  \
                because {why}\n  hint: valid: `train`"
                )),
                "{e}"
            );
        }
        assert_eq!(
            error("trian[:3]"),
            "unknown split `trian`\n  hint: did you mean `train`?\n  hint: valid: a+b[, test, train"
        );
        assert_eq!(
            error("test[4:]"),
            "split `test[4:]` contains an empty range: `test` has 4 pairs"
        );
        assert_eq!(
            error("test[3:1]"),
            "split `test[3:1]` contains an empty range: `test` has 4 pairs"
        );
    }

    #[test]
    fn the_description_names_each_split_once() {
        assert_eq!(
            info(&Numbers { known: true }, "train[:3]+train[5:]+test").unwrap().describes,
            "train.jsonl + test.jsonl"
        );
    }
}
