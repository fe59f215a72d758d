//! Formats the results of an evaluation as a table with one row per split.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::statistics::{Estimate, SplitSummary};
use crate::config::Experiment;
use crate::hub::short;
use crate::registry::Registry;
use crate::report::{Align, Grid};

/// The results of an evaluation, as a table with one row per split.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Table {
    /// Title of the table, in the form `INTERVENTION × TRANSFORM × ADAPTER on DATA, MODEL`.
    pub title: String,
    /// The rows, sorted from in-distribution to unrelated data.
    pub splits: Vec<SplitSummary>,
    /// Maximum total number of tokens in a prompt and its completion. `None` if the length was
    /// unlimited or is unknown.
    pub max_length: Option<usize>,
}

impl Table {
    /// Creates a table. The splits train, test, oos and rnd come first. The other splits follow in
    /// the given order.
    pub fn new(title: impl Into<String>, mut splits: Vec<SplitSummary>) -> Self {
        let place = |s: &SplitSummary| {
            ["train", "test", "oos", "rnd"].iter().position(|n| *n == s.split).unwrap_or(usize::MAX)
        };
        splits.sort_by_key(place);
        Self { title: title.into(), splits, max_length: None }
    }

    /// Sets the maximum total number of tokens in a prompt and its completion. `usize::MAX` means
    /// unlimited.
    #[must_use]
    pub fn limited_to(mut self, tokens: usize) -> Self {
        self.max_length = Some(tokens).filter(|tokens| *tokens != usize::MAX);
        self
    }

    /// Returns the title for an experiment. It contains the names of the methods, the data set
    /// (e.g. `files:pairs.jsonl`) and the model.
    pub fn title_of(experiment: &Experiment, registry: &Registry) -> String {
        let method: Vec<&str> =
            [&experiment.intervention, &experiment.transform, &experiment.adapter]
                .iter()
                .map(|c| c.name.as_str())
                .filter(|n| *n != "none")
                .collect();
        let last = |path: &str| {
            let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or(path);
            match name.split_once('@') {
                Some((name, commit)) => format!("{name}@{}", short(commit)),
                None => name.to_owned(),
            }
        };
        let data = &experiment.dataset;
        let field = registry.dataset(&data.name).ok().and_then(|entry| entry.argument);
        let argument = field.and_then(|field| data.config.get(field)?.as_str());
        let part = argument
            .filter(|a| !a.is_empty())
            .map_or_else(String::new, |a| format!(":{}", last(a)));
        format!("{} on {}{part}, {}", method.join(" × "), data.name, last(&experiment.model))
    }

    /// Formats the table for a terminal.
    pub fn plain(&self) -> String {
        format!("{}\n\n{}\n{}", self.title, self.grid().plain(), self.legend("\n"))
    }

    /// Formats the table as Markdown, for `eval/table.md`.
    pub fn markdown(&self) -> String {
        format!("**{}**\n\n{}\n{}", self.title, self.grid().markdown(), self.legend("  \n"))
    }

    /// Converts the table to JSON, for `eval/summary.json`.
    pub fn json(&self) -> Value {
        // This cannot fail, because the table only contains numbers, strings and lists.
        serde_json::to_value(self).unwrap_or_default()
    }

    fn compares(&self) -> bool {
        self.splits.iter().any(|s| s.change.is_some())
    }

    fn grid(&self) -> Grid {
        let mut columns = vec![
            ("split", Align::Left),
            ("data", Align::Left),
            ("n", Align::Right),
            ("base acc", Align::Right),
        ];
        if self.compares() {
            columns.extend(
                ["acc", "ratio", "points (95 % CI)", "margin gain", "ppl ratio"]
                    .map(|c| (c, Align::Right)),
            );
        }
        let mut grid = Grid::new(columns);
        for s in &self.splits {
            let mut row = vec![
                s.split.clone(),
                s.data.clone(),
                s.n.to_string(),
                value(s.base_accuracy, |v| format!("{v:.3}")),
            ];
            if let Some(c) = &s.change {
                row.push(value(c.accuracy, |v| format!("{v:.3}")));
                row.push(value(c.ratio, |v| format!("{v:.2}")));
                row.push(c.points.map_or_else(dash, |e| {
                    format!("{} [{}, {}]", signed(e.value, 1), signed(e.low, 1), signed(e.high, 1))
                }));
                row.push(value(c.margin_gain, |v| signed(v, 2)));
                row.push(self.perplexity(c.perplexity_ratio));
            }
            grid.row(row);
        }
        grid
    }

    /// Formats a perplexity ratio, and marks it with `*` if it is low. If the column has a mark,
    /// cells without a mark end in a space, so that the digits align.
    fn perplexity(&self, ratio: Option<Estimate>) -> String {
        let marked = |ratio: Option<Estimate>| perplexity_mark(ratio).len();
        let widest = self
            .splits
            .iter()
            .map(|s| s.change.as_ref().map_or(0, |c| marked(c.perplexity_ratio)))
            .max()
            .unwrap_or(0);
        format!("{}{:widest$}", value(ratio, |v| format!("{v:.2}")), perplexity_mark(ratio))
    }

    fn legend(&self, line_end: &str) -> String {
        let mut lines = vec![
            "acc: fraction of pairs whose chosen completion scores higher, with ties counted as \
                one half"
                .to_owned(),
        ];
        if self.compares() {
            lines[0].push_str(
                "; ratio: acc / base acc; points: 100·(acc − base acc), not significant if the \
                    interval contains 0",
            );
            lines.push(
                "margin gain: mean increase of log p(chosen) − log p(rejected), in nats; ppl \
                    ratio: below 1 means that the chosen text became less likely"
                    .to_owned(),
            );
        }
        if self
            .splits
            .iter()
            .filter_map(|s| s.change.as_ref())
            .any(|c| !perplexity_mark(c.perplexity_ratio).is_empty())
        {
            lines.push(PERPLEXITY_NOTE.to_owned());
        }
        let broken: usize = self.splits.iter().map(|s| s.not_finite).sum();
        if broken > 0 {
            lines.push(format!(
                "pairs with an infinite or NaN score (only acc includes them): {broken}"
            ));
        }
        lines.extend(
            self.splits
                .iter()
                .filter_map(|s| dropped_and_cut(&s.split, s.dropped, s.truncated, self.max_length)),
        );
        lines.join(line_end) + "\n"
    }
}

/// Formats the numbers of dropped and truncated pairs of a split as one line. Returns `None` if
/// both are 0.
pub fn dropped_and_cut(
    split: &str,
    dropped: usize,
    truncated: usize,
    max_length: Option<usize>,
) -> Option<String> {
    let limit = max_length
        .map_or_else(String::new, |tokens| format!("; pairs are limited to {tokens} tokens"));
    (dropped + truncated > 0)
        .then(|| format!("{split}: pairs dropped: {dropped}, truncated: {truncated}{limit}"))
}

/// Perplexity ratios below this value are marked with `*`.
const LOW_PERPLEXITY_RATIO: f64 = 0.5;

/// Footnote that explains the mark `*`.
pub const PERPLEXITY_NOTE: &str = "*: ppl ratio below 0.5 or unknown: the chosen text is at least \
    twice as perplexing as before, so the accuracy may be that of a model whose text is broken";

/// Returns `*` if a perplexity ratio is below 0.5 or unknown, and an empty string otherwise.
pub fn perplexity_mark(ratio: Option<Estimate>) -> &'static str {
    // Do not write `r.value < …`, because that would not mark NaN.
    if ratio.is_some_and(|r| r.value >= LOW_PERPLEXITY_RATIO) { "" } else { "*" }
}

fn value(estimate: Option<Estimate>, show: impl Fn(f64) -> String) -> String {
    estimate.map_or_else(dash, |e| show(e.value))
}

fn dash() -> String {
    "–".to_owned()
}

/// Formats a number with its sign, or without a sign if it rounds to zero.
fn signed(v: f64, digits: usize) -> String {
    let text = format!("{v:+.digits$}");
    if text.bytes().any(|b| b.is_ascii_digit() && b != b'0') {
        text
    } else {
        text.trim_start_matches(['+', '-']).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::statistics::Change;

    fn estimate(value: f64, low: f64, high: f64) -> Option<Estimate> {
        Some(Estimate { value, low, high })
    }

    fn split(name: &str, data: &str, change: Option<Change>) -> SplitSummary {
        SplitSummary {
            split: name.into(),
            data: data.into(),
            n: 100,
            not_finite: 0,
            dropped: 0,
            truncated: 0,
            base_accuracy: estimate(0.5, 0.4, 0.6),
            change,
        }
    }

    fn change() -> Change {
        Change {
            accuracy: estimate(0.62, 0.5, 0.7),
            ratio: None,
            points: estimate(12.0, -0.01, 24.0),
            margin_gain: estimate(-3.456, -4.0, -3.0),
            perplexity_ratio: estimate(0.934, 0.9, 1.0),
        }
    }

    #[test]
    fn rows_are_sorted_by_distribution_and_numbers_align() {
        let table = Table::new(
            "a × b on c, m",
            vec![
                split("other", "x", Some(change())),
                split("oos", "easy|hard", Some(change())),
                split("train", "math", Some(change())),
            ],
        );
        let lines: Vec<String> = table.plain().lines().map(str::to_owned).collect();
        assert_eq!(
            lines[..6],
            [
                "a × b on c, m",
                "",
                "split  data         n  base acc    acc  ratio    points (95 % CI)  margin gain  \
                    ppl ratio",
                "train  math       100     0.500  0.620      –  +12.0 [0.0, +24.0]        \
                    -3.46       0.93",
                "oos    easy|hard  100     0.500  0.620      –  +12.0 [0.0, +24.0]        \
                    -3.46       0.93",
                "other  x          100     0.500  0.620      –  +12.0 [0.0, +24.0]        \
                    -3.46       0.93",
            ]
        );
        assert!(table.markdown().contains("| oos   | easy\\|hard | 100 |"), "{}", table.markdown());
    }

    #[test]
    fn a_perplexity_ratio_below_a_half_is_marked_and_explained() {
        let ratio = |r: Option<f64>| Change {
            perplexity_ratio: r.and_then(|r| estimate(r, r, r)),
            ..change()
        };
        let table = |ratios: &[Option<f64>]| {
            Table::new("t", ratios.iter().map(|r| split("s", "d", Some(ratio(*r)))).collect())
        };
        let marked = table(&[Some(0.31), Some(1.05), None]);
        for text in [marked.plain(), marked.markdown()] {
            assert!(
                text.contains("0.31*") && text.contains("1.05") && text.contains("–*"),
                "{text}"
            );
            assert!(text.contains("*: ppl ratio below 0.5 or unknown"), "{text}");
        }
        // Ratios with and without a mark must end in the same column.
        let ends: Vec<usize> = marked
            .plain()
            .lines()
            .filter_map(|l| Some(l.find("0.31").or(l.find("1.05"))? + 4))
            .collect();
        assert!(ends.len() == 2 && ends[0] == ends[1], "{}", marked.plain());
        let fine = table(&[Some(0.5), Some(1.05)]).plain();
        assert!(!fine.contains('*'), "{fine}");
    }

    #[test]
    fn without_a_trained_model_there_are_no_columns_of_changes() {
        let text = Table::new("m", vec![split("test", "math", None)]).plain();
        assert_eq!(
            text,
            "m\n\nsplit  data    n  base acc\ntest   math  100     0.500\n\nacc: fraction of \
                pairs whose chosen completion scores higher, with ties counted as one half\n"
        );
    }
}
