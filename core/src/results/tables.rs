//! The comparison as text: for a terminal, as Markdown and as CSV.

use super::figures::SplitFigures;
use super::format::{MISSING, number, optional, p_value, rate, signed, with_interval};
use super::methods::described;
use super::summary::{SplitInfo, Summary};
use crate::eval::PERPLEXITY_NOTE;
use crate::eval::SplitRole;
use crate::report::{Align, Grid};

/// Perplexity ratios below this value are marked.
pub(crate) const LOW_RATIO: f64 = 0.5;

/// A table with its heading.
struct Part {
    heading: String,
    grid: Grid,
    legend: Vec<String>,
}

/// Formats the comparison for a terminal.
pub fn plain(summary: &Summary) -> String {
    let mut text = format!("{}\n", summary.title);
    for warning in &summary.warnings {
        text += &format!("warning: {warning}\n");
    }
    for part in parts(summary) {
        text += &format!("\n{}\n\n{}", part.heading, part.grid.plain());
        text += &part.legend.iter().map(|line| format!("{line}\n")).collect::<String>();
    }
    text + &remarks(summary, "")
}

/// Formats the comparison as Markdown.
pub fn markdown(summary: &Summary) -> String {
    let mut text = format!("# {}\n", summary.title);
    for warning in &summary.warnings {
        text += &format!("\n> **Warning:** {warning}\n");
    }
    for part in parts(summary) {
        text += &format!("\n## {}\n\n{}\n", part.heading, part.grid.markdown());
        text += &part.legend.iter().map(|line| format!("{line}  \n")).collect::<String>();
    }
    text + &remarks(summary, "- ")
}

fn remarks(summary: &Summary, bullet: &str) -> String {
    let mut text = String::new();
    if !summary.notes.is_empty() {
        text += "\nNotes:\n\n";
        text += &summary.notes.iter().map(|n| format!("{bullet}{n}\n")).collect::<String>();
    }
    if !summary.left_out.is_empty() {
        text += &format!("\nRuns left out: {}\n\n", summary.left_out.len());
        for run in &summary.left_out {
            text += &format!("{bullet}`{}`: {}\n", run.run.display(), run.reason);
        }
    }
    text
}

fn parts(summary: &Summary) -> Vec<Part> {
    let mut parts: Vec<Part> = summary.splits.iter().map(|s| of_split(summary, s)).collect();
    parts.extend(tests(summary));
    parts.push(matched(summary));
    parts.push(points(summary));
    parts
}

/// Describes a split in one line, e.g. `oos: places, shift, 100 pairs in 34 clusters`.
pub(crate) fn split_line(split: &SplitInfo) -> String {
    let clusters =
        split.clusters.map_or_else(String::new, |c| format!(" in {c} {}", plural(c, "cluster")));
    let data = if split.data.is_empty() { String::new() } else { format!("{}, ", split.data) };
    format!("{}: {data}{}, {} pairs{clusters}", split.split, split.role.name(), split.pairs)
}

fn plural(n: usize, word: &str) -> String {
    if n == 1 { word.to_owned() } else { format!("{word}s") }
}

/// One row per method, with all metrics on one split.
fn of_split(summary: &Summary, split: &SplitInfo) -> Part {
    let of = |f: &super::Figures| f.splits.iter().find(|s| s.split == split.split).cloned();
    let all: Vec<SplitFigures> = summary.methods.iter().filter_map(&of).collect();
    let has_kl = all.iter().any(|s| s.kl.is_some());
    let elicits = all.iter().any(|s| s.elicitation.is_some());
    let mut columns = vec![
        ("method", Align::Left),
        ("seeds", Align::Right),
        ("acc", Align::Right),
        ("points (95 % CI)", Align::Right),
        ("margin gain", Align::Right),
        ("ppl ratio", Align::Right),
    ];
    if has_kl {
        columns.push(("KL", Align::Right));
    }
    if elicits {
        columns.extend([("elicit.", Align::Right), ("diff. elicit.", Align::Right)]);
    }
    columns.extend([
        ("cal. error", Align::Right),
        ("longer right", Align::Right),
        ("shorter right", Align::Right),
    ]);
    let mut grid = Grid::new(columns);
    // Without a mark, a space keeps the digits aligned.
    let is_low = |ratio: Option<f64>| ratio.is_none_or(|v| v.is_nan() || v < LOW_RATIO);
    let has_low = all.iter().any(|s| is_low(s.perplexity_ratio.as_ref().map(|f| f.mean)));
    let marks = if has_low { " " } else { "" };
    let three = |v: f64| number(v, 3);
    let error = |c: &Option<crate::statistics::Calibration>| {
        optional(c.as_ref().and_then(|c| c.rms), three)
    };
    let mut base = vec!["base model".to_owned(), String::new()];
    base.push(optional(split.base_accuracy, three));
    base.extend(std::iter::repeat_n(String::new(), 3 + usize::from(has_kl)));
    if elicits {
        base.extend([String::new(), String::new()]);
    }
    base.extend([
        error(&split.base_calibration),
        optional(split.base_by_length.chosen_longer.accuracy, three),
        optional(split.base_by_length.rejected_longer.accuracy, three),
    ]);
    grid.row(base);
    for figures in &summary.methods {
        let Some(s) = of(figures) else { continue };
        let mut row = vec![figures.method.clone(), figures.seeds.len().to_string()];
        row.push(s.accuracy.as_ref().map_or_else(|| MISSING.to_owned(), |a| three(a.mean)));
        row.push(with_interval(s.points.as_ref(), |v| signed(v, 1)));
        row.push(s.margin_gain.as_ref().map_or_else(|| MISSING.into(), |f| signed(f.mean, 2)));
        let ratio = s.perplexity_ratio.as_ref().map(|f| f.mean);
        let mark = if is_low(ratio) { "*" } else { marks };
        row.push(optional(ratio, |v| number(v, 2)) + mark);
        if has_kl {
            row.push(optional(s.kl.as_ref().map(|f| f.mean), |v| number(v, 4)));
        }
        if elicits {
            row.push(optional(s.elicitation, three));
            row.push(optional(s.differential_elicitation, three));
        }
        row.push(error(&s.calibration));
        row.push(optional(s.by_length.chosen_longer.accuracy, three));
        row.push(optional(s.by_length.rejected_longer.accuracy, three));
        grid.row(row);
    }
    let mut legend = Vec::new();
    if has_low {
        legend.push(PERPLEXITY_NOTE.to_owned());
    }
    let is_last = summary.splits.last().is_some_and(|last| last.split == split.split);
    if is_last {
        legend.push(
            "points: 100·(acc − base acc), with a 95 % interval over clusters and seeds; margin \
                gain in nats; ppl ratio: below 1, the chosen text became less likely"
                .to_owned(),
        );
        legend.push(
            "cal. error: root mean square over bins of frequency − probability, with σ(score \
                difference) as the probability"
                .to_owned(),
        );
        legend.push(
            "longer right, shorter right: acc on the pairs whose chosen completion has more or \
                fewer tokens than the rejected one"
                .to_owned(),
        );
    }
    let mark = match (split.role, marked(summary)) {
        (SplitRole::Shift, true) => " (values selected on the shift)",
        _ => "",
    };
    Part { heading: format!("{}{mark}", split_line(split)), grid, legend }
}

/// True if a study selected its values on the shifted data.
pub(crate) fn marked(summary: &Summary) -> bool {
    summary.studies.iter().any(|s| s.selected_on == super::SelectedOn::Shift)
}

fn tests(summary: &Summary) -> Option<Part> {
    let baseline = summary.tests.baseline.as_ref()?;
    let mut grid = Grid::new([
        ("split", Align::Left),
        ("method", Align::Left),
        ("seeds", Align::Right),
        ("difference (95 % CI)", Align::Right),
        ("p", Align::Right),
        ("p (Holm)", Align::Right),
        ("detectable", Align::Right),
    ]);
    for test in &summary.tests.tests {
        grid.row([
            test.split.clone(),
            test.method.clone(),
            test.seeds.len().to_string(),
            with_interval(test.difference.as_ref(), |v| signed(v, 1)),
            optional(test.p, p_value),
            optional(test.p_holm, p_value),
            optional(test.detectable, |v| number(v, 1)),
        ]);
    }
    let mut legend = vec![
        format!(
            "difference: accuracy minus the accuracy of {baseline}, in percentage points, on the \
                same clusters and seeds; Holm's correction is over all rows"
        ),
        "detectable: the true difference in points that such a study finds with a probability of \
            80 %"
            .to_owned(),
    ];
    let mut remarks: Vec<String> = summary
        .tests
        .tests
        .iter()
        .filter_map(|t| Some(format!("{} on {}: {}", t.method, t.split, t.remark.as_ref()?)))
        .collect();
    let same = summary.tests.tests.iter().all(|t| t.remark == summary.tests.tests[0].remark);
    if same && let Some(remark) = summary.tests.tests.first().and_then(|t| t.remark.clone()) {
        remarks = vec![remark];
    }
    legend.extend(remarks);
    Some(Part { heading: format!("Paired tests against {baseline}"), grid, legend })
}

fn matched(summary: &Summary) -> Part {
    let curves = &summary.curves;
    let mut columns = vec![("method".to_owned(), Align::Left), ("lr".to_owned(), Align::Left)];
    columns.extend(summary.splits.iter().map(|s| (format!("{}, points", s.split), Align::Right)));
    columns.push(("remark".to_owned(), Align::Left));
    let mut grid = Grid::new(columns);
    for method in &curves.matched {
        let rates = method.learning_rates.map_or_else(
            || MISSING.to_owned(),
            |(a, b)| if a == b { rate(a) } else { format!("{} to {}", rate(a), rate(b)) },
        );
        let mut row = vec![method.method.clone(), rates];
        for split in &summary.splits {
            let gain = method.gains.iter().find(|g| g.split == split.split);
            row.push(optional(gain.and_then(|g| g.points), |v| signed(v, 1)));
        }
        row.push(method.remark.clone().unwrap_or_default());
        grid.row(row);
    }
    let legend = vec![
        "linear interpolation between neighbouring learning rates, without extrapolation and \
            without an interval"
            .to_owned(),
    ];
    Part {
        heading: format!(
            "At a perplexity ratio of {} on the chosen text of `{}`",
            curves.target, curves.matched_on
        ),
        grid,
        legend,
    }
}

fn points(summary: &Summary) -> Part {
    let mut columns = vec![
        ("method".to_owned(), Align::Left),
        ("values".to_owned(), Align::Left),
        ("seeds".to_owned(), Align::Right),
        ("ppl ratio".to_owned(), Align::Right),
    ];
    columns.extend(summary.splits.iter().map(|s| (format!("{}, points", s.split), Align::Right)));
    let mut grid = Grid::new(columns);
    for point in &summary.curves.points {
        let mark = if point.tuned { " *" } else { "" };
        let mut row = vec![
            point.method.clone(),
            format!("{}{mark}", described(&point.values)),
            point.seeds.len().to_string(),
            optional(point.log_ratio.map(f64::exp), |v| number(v, 3)),
        ];
        for split in &summary.splits {
            row.push(optional(point.gains.get(&split.split).copied(), |v| signed(v, 1)));
        }
        grid.row(row);
    }
    let legend = vec!["*: the tuned point".to_owned()];
    Part { heading: "All points".to_owned(), grid, legend }
}
