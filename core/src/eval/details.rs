//! The second table of an evaluation, with further metrics of both models.

use super::statistics::{Metric, ModelMetrics, SplitSummary};
use super::table::{Table, dash, signed, value};
use crate::report::{Align, Grid};

/// A metric of a model, formatted.
type Shown = fn(&ModelMetrics) -> Option<String>;

/// The columns that show a metric of the base model and of the trained model.
const OF_MODELS: [(&str, Shown); 5] = [
    ("margin", |m| m.margin.map(|v| signed(v.value, 2))),
    ("log σ", |m| m.mean_log_sigmoid.map(|v| format!("{:.4}", v.value))),
    ("calibration error", |m| three(m.calibration.as_ref()?.expected)),
    ("acc, chosen longer", |m| three(m.accuracy_by_length.chosen_longer.accuracy)),
    ("acc, rejected longer", |m| three(m.accuracy_by_length.rejected_longer.accuracy)),
];

fn three(value: Option<f64>) -> Option<String> {
    value.map(|v| format!("{v:.3}"))
}

/// The table of further metrics, with one row per split.
pub(super) fn grid(table: &Table) -> Grid {
    let (compares, kl) = (table.compares(), has_kl(table));
    let mut columns = vec![("split", Align::Left)];
    columns.extend(OF_MODELS.map(|(name, _)| (name, Align::Right)));
    if compares {
        columns.push(("loss change", Align::Right));
    }
    if kl {
        columns.push(("KL", Align::Right));
    }
    let mut grid = Grid::new(columns);
    for split in &table.splits {
        let mut row = vec![split.split.clone()];
        row.extend(OF_MODELS.map(|(_, shown)| both(split, compares, shown)));
        let change = |of: fn(&SplitSummary) -> Option<Metric>| value(of(split), |v| signed(v, 3));
        if compares {
            row.push(change(|s| s.change.as_ref()?.loss_change));
        }
        if kl {
            row.push(value(split.change.as_ref().and_then(|c| c.kl), |v| format!("{v:.4}")));
        }
        grid.row(row);
    }
    grid
}

/// Formats a metric as `base → trained`, or only of the base model if there is no trained model.
fn both(split: &SplitSummary, compares: bool, shown: Shown) -> String {
    let of = |model: &Option<ModelMetrics>| model.as_ref().and_then(shown).unwrap_or_else(dash);
    if compares {
        format!("{} → {}", of(&split.base), of(&split.trained))
    } else {
        of(&split.base)
    }
}

fn has_kl(table: &Table) -> bool {
    table.splits.iter().any(|s| s.change.as_ref().is_some_and(|c| c.kl.is_some()))
}

/// Explains the columns of the table.
pub(super) fn legend(table: &Table, line_end: &str) -> String {
    let mut lines = vec![
        "margin: mean log p(chosen) − log p(rejected), in nats; log σ: mean log σ of the \
            difference of the scores, at best 0"
            .to_owned(),
        "calibration error: expected difference between σ of the difference of the scores and the \
            frequency of the chosen completion"
            .to_owned(),
    ];
    if table.compares() {
        lines[0].insert_str(0, "base → trained; ");
        lines.push(
            "loss change: increase of −log p per token of the chosen text, in nats".to_owned(),
        );
    }
    if has_kl(table) {
        lines.push("KL: of the trained model from the base model, in nats per token".to_owned());
    }
    lines.extend(table.forgetting.map(|m| {
        let interval = m.interval().map_or_else(String::new, |(low, high)| {
            format!(" [{}, {}]", signed(low, 3), signed(high, 3))
        });
        format!(
            "forgetting: {}{interval} nats per token, the loss change on unrelated text (rnd)",
            signed(m.value, 3)
        )
    }));
    lines.join(line_end) + "\n"
}
