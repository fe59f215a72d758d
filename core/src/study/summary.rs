//! The tables of a study, and its summary as JSON.

use serde_json::{Value, json};

use super::plan::{Plan, SEED};
use super::record::values;
use super::results::{Phase, Results, Run, State, Trial};
use super::space::text;
use crate::eval::statistics::SplitSummary;
use crate::eval::{PERPLEXITY_NOTE, perplexity_mark, table};
use crate::report::{Align, Grid};

/// Replaces a number that does not exist.
const DASH: &str = "–";

/// The summary of a study as JSON: one object for each trial.
pub fn json(plan: &Plan, results: &Results) -> Value {
    let row = |trial: &Trial| {
        let run = &results.runs[&trial.run];
        let mut row = json!({
            "values": named_values(plan, trial, run),
            "run": run.folder,
            "loss": run.outcome.loss,
            "splits": run.outcome.splits,
            "error": error(run),
        });
        if plan.file.is_some() {
            row["method"] = json!(plan.groups[trial.group].name);
            row["phase"] = json!(if trial.phase == Phase::Search { "search" } else { "final" });
            row["searched"] = values(&trial.point);
            row["seed"] = json!(run.experiment.train.seed);
            row["score"] = json!(run.score);
        }
        row
    };
    results.ordered().into_iter().map(row).collect()
}

fn error(run: &Run) -> Option<&str> {
    match &run.state {
        State::Failed(error) => Some(error),
        State::Missing => Some("the run is not complete"),
        State::Finished => None,
    }
}

/// The values that distinguish a run from the others, with the names of their fields.
fn named_values(plan: &Plan, trial: &Trial, run: &Run) -> Vec<(String, String)> {
    let group = &plan.groups[trial.group];
    let of_axis = |field: &String| {
        let label = group.labels.iter().find(|(name, _)| name == field);
        let seed = (field == SEED).then(|| run.experiment.train.seed.to_string());
        Some((field.clone(), label.map(|(_, value)| text(value)).or(seed)?))
    };
    let searched = trial.point.iter().map(|(field, value)| (field.clone(), text(value)));
    plan.axes.iter().filter_map(of_axis).chain(searched).collect()
}

/// The tables and notes of a study as text, for the terminal or as Markdown.
pub fn text_of(plan: &Plan, results: &Results, markdown: bool) -> String {
    let rendered = |grid: &Grid| if markdown { grid.markdown() } else { grid.plain() };
    let line_end = if markdown { "  \n" } else { "\n" };
    let runs: Vec<&Run> = results
        .ordered()
        .into_iter()
        .filter(|trial| trial.phase == Phase::Final || plan.file.is_none())
        .map(|trial| &results.runs[&trial.run])
        .collect();
    let mut parts = Vec::new();
    match &plan.file {
        None => parts.push(rendered(&grid_table(plan, results))),
        Some(_) => {
            if plan.search.is_some() {
                parts.push(rendered(&search_table(plan, results)));
            }
            if !runs.is_empty() {
                parts.push(rendered(&method_table(plan, results)));
            }
        }
    }
    parts.push(notes(plan, results, &runs, line_end));
    parts.join("\n")
}

/// The splits of all runs, in the order in which they first occur.
fn splits<'r>(runs: impl Iterator<Item = &'r Run>) -> Vec<&'r str> {
    let mut found: Vec<&str> = Vec::new();
    for split in runs.flat_map(|run| &run.outcome.splits) {
        if !found.contains(&split.split.as_str()) {
            found.push(&split.split);
        }
    }
    found
}

fn of_split<'r>(run: &'r Run, split: &str) -> Option<&'r crate::eval::statistics::Change> {
    run.outcome.splits.iter().find(|s| s.split == split)?.change.as_ref()
}

/// The table of a grid, with one row for each run.
fn grid_table(plan: &Plan, results: &Results) -> Grid {
    let trials = results.ordered();
    let runs: Vec<&Run> = trials.iter().map(|trial| &results.runs[&trial.run]).collect();
    let splits = splits(runs.iter().copied());
    let columns = plan
        .axes
        .iter()
        .map(|field| (field.clone(), Align::Left))
        .chain([("loss".to_owned(), Align::Right)]);
    let of =
        |s: &&str| [(format!("{s}, points"), Align::Right), ("ppl ratio".to_owned(), Align::Right)];
    let mut grid = Grid::new(columns.chain(splits.iter().flat_map(of)));
    for (trial, run) in trials.iter().zip(&runs) {
        let mut cells: Vec<String> =
            named_values(plan, trial, run).into_iter().map(|(_, value)| value).collect();
        cells.push(match (&run.state, run.outcome.loss) {
            (State::Finished, Some([first, last])) => format!("{first:.4} → {last:.4}"),
            (State::Finished, None) => DASH.to_owned(),
            _ => "failed".to_owned(),
        });
        for split in &splits {
            let change = of_split(run, split);
            let points = change.and_then(|c| c.points);
            cells.push(points.map_or_else(
                || DASH.to_owned(),
                |points| match points.interval() {
                    Some((low, high)) => format!("{:+.1} [{low:+.1}, {high:+.1}]", points.value),
                    None => format!("{:+.1}", points.value),
                },
            ));
            // Show the perplexity ratio next to the change in accuracy, because a higher accuracy
            // means little if the model no longer writes coherent text.
            let ratio = change.and_then(|c| c.perplexity_ratio);
            cells.push(
                ratio.map_or_else(|| DASH.to_owned(), |r| format!("{:.2}", r.value))
                    + perplexity_mark(ratio),
            );
        }
        grid.row(cells);
    }
    grid
}

/// The table of the search, with one row for each trial.
fn search_table(plan: &Plan, results: &Results) -> Grid {
    let mut grid = Grid::new([
        ("search", Align::Left),
        ("mean log σ", Align::Right),
        ("", Align::Left),
        ("values", Align::Left),
    ]);
    for (i, group) in plan.groups.iter().enumerate() {
        for trial in results.trials.iter().filter(|t| t.group == i && t.phase == Phase::Search) {
            let run = &results.runs[&trial.run];
            let score = match &run.state {
                State::Failed(_) => "failed".to_owned(),
                State::Missing => "missing".to_owned(),
                State::Finished => {
                    run.score.map_or_else(|| DASH.to_owned(), |score| format!("{score:.4}"))
                }
            };
            let is_tuned = results.tuned[i].as_ref() == Some(&trial.point) && trial.share >= 1.0;
            let mark = match (is_tuned, trial.share < 1.0) {
                (true, _) => "tuned".to_owned(),
                (_, true) => format!("{:.3} of the steps", trial.share),
                _ => String::new(),
            };
            let values: Vec<String> =
                trial.point.iter().map(|(field, v)| format!("{field} = {}", text(v))).collect();
            grid.row([group.name.clone(), score, mark, values.join(", ")]);
        }
    }
    grid
}

/// The table of the final runs, with one row for each method and point. Its numbers are means over
/// the seeds, with the smallest and the largest value.
fn method_table(plan: &Plan, results: &Results) -> Grid {
    let finals = || results.ordered().into_iter().filter(|trial| trial.phase == Phase::Final);
    let all = finals().map(|trial| &results.runs[&trial.run]);
    let splits = splits(all);
    let columns = ["method", "values"].map(|name| (name.to_owned(), Align::Left));
    let seeds = [("seeds".to_owned(), Align::Right)];
    let of =
        |s: &&str| [(format!("{s}, points"), Align::Right), ("ppl ratio".to_owned(), Align::Right)];
    let mut grid = Grid::new(columns.into_iter().chain(seeds).chain(splits.iter().flat_map(of)));
    let mut rows: Vec<(usize, &super::space::Point)> = Vec::new();
    for trial in finals() {
        if !rows.contains(&(trial.group, &trial.point)) {
            rows.push((trial.group, &trial.point));
        }
    }
    for (group, point) in rows {
        let runs: Vec<&Run> = finals()
            .filter(|trial| trial.group == group && trial.point == *point)
            .map(|trial| &results.runs[&trial.run])
            .collect();
        let finished: Vec<&&Run> = runs.iter().filter(|run| run.state == State::Finished).collect();
        let values: Vec<String> = point.iter().map(|(_, value)| text(value)).collect();
        let count = match finished.len() == runs.len() {
            true => runs.len().to_string(),
            false => format!("{} of {}", finished.len(), runs.len()),
        };
        let mut cells = vec![plan.groups[group].name.clone(), values.join(", "), count];
        for split in &splits {
            let changes: Vec<_> = finished.iter().filter_map(|run| of_split(run, split)).collect();
            let points: Vec<f64> = changes.iter().filter_map(|c| Some(c.points?.value)).collect();
            cells.push(mean_and_range(&points, |v| format!("{v:+.1}")));
            let ratios: Vec<f64> =
                changes.iter().filter_map(|c| Some(c.perplexity_ratio?.value)).collect();
            let mark = changes.iter().map(|c| perplexity_mark(c.perplexity_ratio));
            let mark = mark.max_by_key(|mark| mark.len()).unwrap_or_default();
            cells.push(mean_and_range(&ratios, |v| format!("{v:.2}")) + mark);
        }
        grid.row(cells);
    }
    grid
}

fn mean_and_range(values: &[f64], shown: impl Fn(f64) -> String) -> String {
    if values.is_empty() {
        return DASH.to_owned();
    }
    let mean = shown(values.iter().sum::<f64>() / values.len() as f64);
    if values.len() == 1 {
        return mean;
    }
    let (low, high) = values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(*v), high.max(*v)));
    format!("{mean} ({} to {})", shown(low), shown(high))
}

/// The notes below the tables.
fn notes(plan: &Plan, results: &Results, runs: &[&Run], line_end: &str) -> String {
    let mut lines = Vec::new();
    if plan.file.is_none() {
        lines.push(
            "loss: mean over the first and over the last quarter of the steps; points: 100·(acc − \
                base acc), with a 95 % interval over clusters of pairs, if there is one"
                .to_owned(),
        );
    } else if !runs.is_empty() {
        lines.push(
            "points: 100·(acc − base acc); mean over the seeds (smallest to largest value, which \
                is not a confidence interval)"
                .to_owned(),
        );
    }
    if !runs.is_empty() {
        lines.push(
            "ppl ratio: of the split on its left; below 1 means that the chosen text became less \
                likely"
                .to_owned(),
        );
    }
    let changes = || runs.iter().flat_map(|r| &r.outcome.splits).filter_map(|s| s.change.as_ref());
    if changes().any(|c| !perplexity_mark(c.perplexity_ratio).is_empty()) {
        lines.push(PERPLEXITY_NOTE.to_owned());
    }
    if let Some(search) = &plan.search {
        lines.push(match search.select_on_shift {
            true => "SELECTED ON THE SHIFTED SET: the tuned points are the best on `oos`, so the \
                results on `oos` are not a measure of generalisation"
                .to_owned(),
            false => "mean log σ: of the score difference between chosen and rejected on the \
                held-out training pairs; the tuned points have the largest value"
                .to_owned(),
        });
    }
    lines.extend(ends(plan, results));
    lines.extend(threads(results));
    for (group, error) in &results.errors {
        lines.push(format!("error: {}: {error}", plan.groups[*group].name));
    }
    lines.extend(dropped_and_cut(runs));
    lines.join(line_end) + "\n"
}

/// Warnings about tuned values at the end of what was searched.
fn ends(plan: &Plan, results: &Results) -> Vec<String> {
    let mut lines = Vec::new();
    for (group, point) in plan.groups.iter().zip(&results.tuned) {
        for (field, value) in point.iter().flatten() {
            let dimension = group.space.iter().find(|dimension| dimension.field == *field);
            if let Some(end) = dimension.and_then(|dimension| dimension.end(value)) {
                lines.push(format!(
                    "warning: the tuned `{field}` of {}, {}, is the {end} searched value; the best \
                        one may be beyond it",
                    group.name,
                    text(value)
                ));
            }
        }
    }
    lines
}

/// A warning if runs were computed with different numbers of threads.
fn threads(results: &Results) -> Option<String> {
    let mut counts: Vec<usize> = results.runs.values().filter_map(|run| run.threads).collect();
    counts.sort_unstable();
    counts.dedup();
    let shown: Vec<String> = counts.iter().map(usize::to_string).collect();
    (counts.len() > 1).then(|| {
        format!(
            "warning: the runs used different numbers of threads ({}), so their last digits can \
                differ for that reason",
            shown.join(", ")
        )
    })
}

/// Returns one line for each split in which pairs were dropped or truncated. The counts are from
/// the run that dropped or truncated the most pairs.
fn dropped_and_cut(runs: &[&Run]) -> Vec<String> {
    let mut most: Vec<&SplitSummary> = Vec::new();
    for split in runs.iter().flat_map(|run| &run.outcome.splits) {
        match most.iter_mut().find(|known| known.split == split.split) {
            Some(known) if known.dropped + known.truncated < split.dropped + split.truncated => {
                *known = split
            }
            Some(_) => {}
            None => most.push(split),
        }
    }
    let line = |split: &&SplitSummary| {
        table::dropped_and_cut(&split.split, split.dropped, split.truncated, None)
    };
    most.iter().filter_map(line).collect()
}
