//! The training curves: the loss of the steps, and the validations.

use crate::page::html::{Ids, escape, figure, section as section_of};
use crate::page::plot::{Axis, Frame, Series};
use crate::results::{RecordedRun, Row, Summary, number};

/// Maximum number of points in a line.
const POINTS: usize = 150;

/// The section with the loss of each method, and the accuracy of the validations.
pub fn section(summary: &Summary, ids: &mut Ids) -> String {
    let mut panels = Vec::new();
    for row in &summary.rows {
        let runs = summary.runs_of(row);
        if runs.iter().any(|r| r.steps.len() > 1) {
            panels.push(loss(row, &runs).svg.finish(ids));
        }
    }
    panels.extend(accuracy(summary).map(|frame| frame.svg.finish(ids)));
    if panels.is_empty() {
        return String::new();
    }
    let caption = "Loss of each training step, one thin line per seed; losses of different \
                   methods have different scales. Dashed lines with marks are the held-out pairs \
                   of validations.";
    let names = summary.groups.iter().enumerate().map(|(i, m)| (Series(i), m.name.as_str()));
    let text = figure(&escape(caption), &crate::page::plot::legend(names), &panels);
    section_of("training", "Training", &text)
}

/// The losses of the runs of a row.
fn loss(row: &Row, runs: &[&RecordedRun]) -> Frame {
    let losses = runs.iter().flat_map(|r| r.steps.iter().map(|s| s.loss));
    let held_out = runs.iter().flat_map(|r| validation(r, "loss")).map(|p| p.1);
    let y = Axis::linear("loss", losses.chain(held_out).collect::<Vec<_>>(), 4);
    let steps = runs.iter().flat_map(|r| r.steps.iter().map(|s| s.step as f64));
    let x = Axis::linear("step", steps.chain([0.0]).collect::<Vec<_>>(), 5);
    let lines: Vec<String> = runs
        .iter()
        .filter_map(|r| {
            let (first, last) = (r.steps.first()?, r.steps.last()?);
            Some(format!(
                "seed {}: loss {} at step {}, {} at step {}",
                r.seed,
                number(first.loss, 3),
                first.step,
                number(last.loss, 3),
                last.step
            ))
        })
        .collect();
    let mut frame = Frame::new(&format!("Loss of {}", row.name), &(lines.join(". ") + "."), x, y);
    let series = Series(row.method);
    for run in runs {
        let points: Vec<(f64, f64)> = run.steps.iter().map(|s| (s.step as f64, s.loss)).collect();
        frame.path(&thinned(&points), &format!("{} thin", series.class()));
        let held_out = validation(run, "loss");
        frame.path(&held_out, &format!("{} thin dashed", series.class()));
        for point in held_out {
            let mark = series.mark(frame.at(point), 2.5);
            let hint = format!("seed {}, validation: {}", run.seed, number(point.1, 3));
            frame.svg.shape(&mark, &format!("{} dot", series.class()), &hint);
        }
    }
    frame
}

/// The accuracies of the validations of all rows. `None` without validations.
fn accuracy(summary: &Summary) -> Option<Frame> {
    let runs: Vec<(usize, &str, &RecordedRun)> = summary
        .rows
        .iter()
        .flat_map(|row| summary.runs_of(row).into_iter().map(|r| (row.method, &*row.name, r)))
        .filter(|(.., r)| !validation(r, "accuracy").is_empty())
        .collect();
    if runs.is_empty() {
        return None;
    }
    let all: Vec<(f64, f64)> = runs.iter().flat_map(|(.., r)| validation(r, "accuracy")).collect();
    let lines: Vec<String> = runs
        .iter()
        .filter_map(|(_, name, r)| {
            let (step, last) = *validation(r, "accuracy").last()?;
            Some(format!("{name}, seed {}: {} at step {step}", r.seed, number(last, 3)))
        })
        .collect();
    let mut frame = Frame::new(
        "Accuracy on held-out training pairs",
        &(lines.join(". ") + "."),
        Axis::linear("step", all.iter().map(|p| p.0).chain([0.0]).collect::<Vec<_>>(), 5),
        Axis::linear("accuracy", all.iter().map(|p| p.1).collect::<Vec<_>>(), 4),
    );
    for (method, name, run) in runs {
        let series = Series(method);
        let points = validation(run, "accuracy");
        frame.path(&points, &format!("{} thin dashed", series.class()));
        for point in points {
            let mark = series.mark(frame.at(point), 3.0);
            let hint = format!("{name}, seed {}: {}", run.seed, number(point.1, 3));
            frame.svg.shape(&mark, &format!("{} dot", series.class()), &hint);
        }
    }
    Some(frame)
}

/// The steps and values of a metric of the validations.
fn validation(run: &RecordedRun, metric: &str) -> Vec<(f64, f64)> {
    run.validations.iter().filter_map(|v| Some((v.step as f64, *v.values.get(metric)?))).collect()
}

/// Replaces groups of consecutive points by their means, so that few points are left.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(POINTS).max(1);
    points
        .chunks(size)
        .map(|chunk| {
            let n = chunk.len() as f64;
            let sum = chunk.iter().fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
            (sum.0 / n, sum.1 / n)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_thinned_to_means() {
        let points: Vec<(f64, f64)> = (0..1000).map(|i| (f64::from(i), 2.0)).collect();
        let thin = thinned(&points);
        assert!(thin.len() <= POINTS && thin[0] == (3.0, 2.0), "{:?}", &thin[..2]);
        assert_eq!(thinned(&points[..3]), points[..3]);
    }
}
