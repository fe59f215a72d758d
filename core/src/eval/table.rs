//! Formats the results of an evaluation as a table with one row per split.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::details;
use super::notes;
use super::split_role::SplitRole;
use super::statistics::{Metric, SplitSummary};
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
    /// Loss on unrelated text: the mean increase of −log p per token of the chosen completions of
    /// the split `rnd` or a part of it, in nats. `None` without this split or without a trained
    /// model.
    #[serde(default)]
    pub forgetting: Option<Metric>,
}

impl Table {
    /// Creates a table. The rows are sorted by [`SplitRole`]; splits with the same role keep the
    /// given order.
    pub fn new(title: impl Into<String>, mut splits: Vec<SplitSummary>) -> Self {
        splits.sort_by_key(|split| SplitRole::of(&split.split));
        let forgetting = splits
            .iter()
            .find(|split| SplitRole::of(&split.split) == SplitRole::Unrelated)
            .and_then(|split| split.change.as_ref()?.loss_change);
        Self { title: title.into(), splits, max_length: None, forgetting }
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
        let controls = experiment.controls();
        let controls =
            if controls.is_empty() { String::new() } else { format!(" ({})", controls.join("; ")) };
        let (method, model) = (method.join(" × "), last(&experiment.model));
        format!("{method} on {}{part}, {model}{controls}", data.name)
    }

    /// Formats the table for a terminal.
    pub fn plain(&self) -> String {
        format!("{}\n\n{}\n{}", self.title, self.grid().plain(), self.legend("\n"))
    }

    /// Formats the further metrics of each split for a terminal.
    pub fn details(&self) -> String {
        format!("{}\n{}", details::grid(self).plain(), details::legend(self, "\n"))
    }

    /// Formats the table and the further metrics as Markdown, for `eval/table.md`.
    pub fn markdown(&self) -> String {
        format!(
            "**{}**\n\n{}\n{}\n{}\n{}",
            self.title,
            self.grid().markdown(),
            self.legend("  \n"),
            details::grid(self).markdown(),
            details::legend(self, "  \n")
        )
    }

    /// Converts the table to JSON, for `eval/summary.json`.
    pub fn json(&self) -> Value {
        // This cannot fail, because the table only contains numbers, strings and lists.
        serde_json::to_value(self).unwrap_or_default()
    }

    /// True if the table compares a trained model with its base model.
    pub(super) fn compares(&self) -> bool {
        self.splits.iter().any(|s| s.change.is_some())
    }

    fn grid(&self) -> Grid {
        let mut columns = vec![
            ("split", Align::Left),
            ("data", Align::Left),
            ("n", Align::Right),
            ("clusters", Align::Right),
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
                s.clusters.map_or_else(dash, |clusters| clusters.to_string()),
                value(s.base_accuracy, |v| format!("{v:.3}")),
            ];
            if let Some(c) = &s.change {
                row.push(value(c.accuracy, |v| format!("{v:.3}")));
                row.push(value(c.ratio, |v| format!("{v:.2}")));
                row.push(c.points.map_or_else(dash, |e| match e.interval() {
                    Some((low, high)) => {
                        format!("{} [{}, {}]", signed(e.value, 1), signed(low, 1), signed(high, 1))
                    }
                    None => signed(e.value, 1),
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
    fn perplexity(&self, ratio: Option<Metric>) -> String {
        let marked = |ratio: Option<Metric>| perplexity_mark(ratio).len();
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
        lines.extend(notes::intervals(self));
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
        lines.extend(self.splits.iter().filter_map(notes::shared_prompts));
        lines.extend(self.splits.iter().filter_map(notes::best_of));
        lines.extend(self.splits.iter().filter_map(notes::overlap));
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
pub fn perplexity_mark(ratio: Option<Metric>) -> &'static str {
    // Do not write `r.value < …`, because that would not mark NaN.
    if ratio.is_some_and(|r| r.value >= LOW_PERPLEXITY_RATIO) { "" } else { "*" }
}

/// Formats the value of a metric, or a dash if there is none.
pub(super) fn value(metric: Option<Metric>, show: impl Fn(f64) -> String) -> String {
    metric.map_or_else(dash, |m| show(m.value))
}

/// Stands for a missing value.
pub(super) fn dash() -> String {
    "–".to_owned()
}

/// Formats a number with its sign, or without a sign if it rounds to zero.
pub(super) fn signed(v: f64, digits: usize) -> String {
    let text = format!("{v:+.digits$}");
    if text.bytes().any(|b| b.is_ascii_digit() && b != b'0') {
        text
    } else {
        text.trim_start_matches(['+', '-']).to_owned()
    }
}

#[cfg(test)]
mod tests;
