//! The tables of the page.

use super::html::{escape, prose, section as section_of, table as table_of, tag};
use crate::eval::SplitRole;
use crate::results::{
    Figure, Figures, LOW_RATIO, PairedTest, SplitFigures, SplitInfo, Summary, number, p_value,
    signed,
};

/// The section with one table per split, and the table of the paired tests.
pub fn section(summary: &Summary) -> String {
    let mut order: Vec<&SplitInfo> = summary.splits.iter().collect();
    order.sort_by_key(|s| s.role != SplitRole::Shift);
    let mut text: String = order.iter().map(|split| table(summary, split)).collect();
    text += &tag(
        "p",
        "small",
        "Intervals are 95 % intervals over clusters and seeds. Points are 100·(accuracy − accuracy \
         of the base model). ▲ and ▼: the accuracy differs from the baseline at the 5 % level \
         after Holm’s correction. †: the perplexity ratio is below 0.5, so the text may be broken. \
         Calibration error: root mean square over bins of frequency − probability, with σ(score \
         difference) as the probability. Longer or shorter right: accuracy on the pairs whose \
         chosen completion has more or fewer tokens than the rejected one.",
    );
    text += &tests(summary);
    text += &notes(summary);
    section_of("results", "Results at the tuned points", &text)
}

fn table(summary: &Summary, split: &SplitInfo) -> String {
    let of = |f: &Figures| f.splits.iter().find(|s| s.split == split.split).cloned();
    let all: Vec<(&Figures, SplitFigures)> =
        summary.methods.iter().filter_map(|f| Some((f, of(f)?))).collect();
    let has_kl = all.iter().any(|(_, s)| s.kl.is_some());
    let elicits = all.iter().any(|(_, s)| s.elicitation.is_some());
    let mut columns = vec!["seeds", "accuracy", "points", "margin gain, nats", "perplexity ratio"];
    if has_kl {
        columns.push("KL, nats");
    }
    if elicits {
        columns.extend(["elicitation", "differential elicitation"]);
    }
    columns.extend(["calibration error", "longer right", "shorter right"]);
    let mut head = String::from("<th scope=\"col\">method</th>");
    head += &columns
        .iter()
        .map(|c| format!("<th scope=\"col\" class=\"n\">{}</th>", escape(c)))
        .collect::<String>();
    let three = |v: Option<f64>| v.map_or_else(|| "–".to_owned(), |v| number(v, 3));
    let mut rows = String::new();
    for (figures, s) in &all {
        let mut cells = vec![figures.seeds.len().to_string()];
        let mark = test_mark(summary, figures, split);
        cells.push(marked(s.accuracy.as_ref(), |v| number(v, 3), mark));
        cells.push(cell(s.points.as_ref(), |v| signed(v, 1)));
        cells.push(cell(s.margin_gain.as_ref(), |v| signed(v, 2)));
        let low = s.perplexity_ratio.as_ref().is_none_or(|r| r.mean.is_nan() || r.mean < LOW_RATIO);
        let broken = if low { "<span class=\"bad\"> †</span>" } else { "" };
        cells.push(marked(s.perplexity_ratio.as_ref(), |v| number(v, 2), broken));
        if has_kl {
            cells.push(cell(s.kl.as_ref(), |v| number(v, 4)));
        }
        if elicits {
            cells.extend([three(s.elicitation), three(s.differential_elicitation)]);
        }
        cells.push(three(s.calibration.as_ref().and_then(|c| c.rms)));
        cells.push(three(s.by_length.chosen_longer.accuracy));
        cells.push(three(s.by_length.rejected_longer.accuracy));
        let values: Vec<String> =
            figures.values.iter().map(|(f, v)| format!("{f} = {v}")).collect();
        let values = if values.is_empty() {
            String::new()
        } else {
            format!("<span class=\"small\">{}</span>", escape(&values.join(", ")))
        };
        rows += &row(&format!("{}{values}", escape(&figures.method)), &cells, "");
    }
    let mut base = vec![String::new(), three(split.base_accuracy)];
    base.extend(std::iter::repeat_n(String::new(), 3 + usize::from(has_kl)));
    if elicits {
        base.extend([String::new(), String::new()]);
    }
    base.push(three(split.base_calibration.as_ref().and_then(|c| c.rms)));
    base.push(three(split.base_by_length.chosen_longer.accuracy));
    base.push(three(split.base_by_length.rejected_longer.accuracy));
    rows += &row("base model", &base, "base-row");
    let clusters = split.clusters.map_or_else(
        || "clusters not recorded".to_owned(),
        |c| format!("{c} {}", if c == 1 { "cluster" } else { "clusters" }),
    );
    let selected = split.role == SplitRole::Shift
        && summary.studies.iter().any(|s| s.selected_on == crate::results::SelectedOn::Shift);
    let mark = if selected { " <span class=\"bad\">selected on the shift</span>" } else { "" };
    let detail = if split.data.is_empty() { String::new() } else { format!(": {}", split.data) };
    let heading = format!(
        "<h3>{}{} <span class=\"role\">{}</span>{mark}</h3> <span class=\"small\">{} pairs, \
         {clusters}</span>",
        escape(&split.split),
        escape(&detail),
        split.role.name(),
        split.pairs,
    );
    table_of(&heading, &format!("Results on {}", escape(&split.split)), &head, &rows)
}

fn row(head: &str, cells: &[String], class: &str) -> String {
    let cells: String = cells.iter().map(|cell| format!("<td class=\"n\">{cell}</td>")).collect();
    format!("<tr class=\"{class}\"><th scope=\"row\">{head}</th>{cells}</tr>\n")
}

/// A number with its interval on a second line.
fn cell(figure: Option<&Figure>, show: impl Fn(f64) -> String) -> String {
    marked(figure, show, "")
}

/// A number with a mark, and with its interval on a second line.
fn marked(figure: Option<&Figure>, show: impl Fn(f64) -> String, mark: &str) -> String {
    let Some(figure) = figure else { return format!("–{mark}") };
    let interval = figure.interval().map_or_else(String::new, |(low, high)| {
        format!("<span class=\"small\">{} to {}</span>", show(low), show(high))
    });
    format!("{}{mark}{interval}", show(figure.mean))
}

/// The mark of a significant difference from the baseline.
fn test_mark(summary: &Summary, figures: &Figures, split: &SplitInfo) -> &'static str {
    let test =
        summary.tests.tests.iter().find(|t| t.method == figures.method && t.split == split.split);
    let Some(test) = test.filter(|t| t.p_holm.is_some_and(|p| p < 0.05)) else { return "" };
    match &test.difference {
        Some(d) if d.mean > 0.0 => "<span class=\"good\"> ▲</span>",
        Some(_) => "<span class=\"bad\"> ▼</span>",
        None => "",
    }
}

fn tests(summary: &Summary) -> String {
    let Some(baseline) = &summary.tests.baseline else { return String::new() };
    let mut rows = String::new();
    for test in &summary.tests.tests {
        rows += &test_row(test);
    }
    let head: String = ["seeds", "difference, points", "p", "p after Holm", "detectable, points"]
        .iter()
        .map(|c| format!("<th scope=\"col\" class=\"n\">{c}</th>"))
        .collect();
    let heading = format!(
        "<h3>Paired tests against {}</h3> <span class=\"small\">Difference in accuracy on the \
         same clusters and seeds. Holm’s correction is over all rows. Detectable: the true \
         difference that such a study finds with a probability of 80 %.</span>",
        escape(baseline)
    );
    let head = format!("<th scope=\"col\">method</th><th scope=\"col\">split</th>{head}");
    table_of(&heading, "Paired tests", &head, &rows)
}

fn test_row(test: &PairedTest) -> String {
    let dash = || "–".to_owned();
    let remark = test
        .remark
        .as_ref()
        .map_or_else(String::new, |r| format!("<span class=\"small\">{}</span>", escape(r)));
    let class = if test.p_holm.is_some_and(|p| p < 0.05) { "strong" } else { "" };
    let cells = [
        test.seeds.len().to_string(),
        cell(test.difference.as_ref(), |v| signed(v, 1)),
        test.p.map_or_else(dash, |p| escape(&p_value(p))),
        test.p_holm.map_or_else(dash, |p| escape(&p_value(p))),
        test.detectable.map_or_else(dash, |v| number(v, 1)),
    ];
    let cells: String = cells.iter().map(|c| format!("<td class=\"n\">{c}</td>")).collect();
    format!(
        "<tr class=\"{class}\"><th scope=\"row\">{}{remark}</th><td>{}</td>{cells}</tr>\n",
        escape(&test.method),
        escape(&test.split)
    )
}

fn notes(summary: &Summary) -> String {
    if summary.notes.is_empty() {
        return String::new();
    }
    let items: String = summary.notes.iter().map(|n| tag("li", "", &prose(n))).collect();
    format!("<ul class=\"notes\">\n{items}</ul>\n")
}
