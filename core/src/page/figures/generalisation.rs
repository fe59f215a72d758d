//! The gain on shifted data against the gain on the training distribution, for every run.

use super::methods;
use crate::eval::SplitRole;
use crate::page::html::{Ids, escape, figure, section as section_of};
use crate::page::plot::{Axis, Frame, Series};
use crate::results::{RecordedRun, Summary, signed};

/// The section with one panel per shift. Empty without a shift or without test data.
pub fn section(summary: &Summary, ids: &mut Ids) -> String {
    let role = |role| summary.splits.iter().filter(move |s| s.role == role);
    let Some(inside) = role(SplitRole::Test).next().or_else(|| role(SplitRole::Train).next())
    else {
        return String::new();
    };
    let mut panels = Vec::new();
    for shift in role(SplitRole::Shift) {
        panels.push(panel(summary, &inside.split, &shift.split).finish(ids));
    }
    if panels.is_empty() {
        return String::new();
    }
    let caption = format!(
        "Gain on shifted data against the gain on {}, one mark per run. Large marks are runs at \
         tuned points. On the dashed line, both gains are equal.",
        inside.split
    );
    let text = figure(&escape(&caption), &methods(summary), &panels);
    section_of("generalisation", "Generalisation", &text)
}

/// A run in the plot.
struct Dot<'a> {
    method: usize,
    name: &'a str,
    run: &'a RecordedRun,
    tuned: bool,
    gains: (f64, f64),
}

fn panel(summary: &Summary, inside: &str, shift: &str) -> crate::page::plot::Svg {
    let mut dots = Vec::new();
    for (i, method) in summary.groups.iter().enumerate() {
        for (j, point) in method.points.iter().enumerate() {
            for run in summary.collection.runs(&point.runs) {
                if let Some(gains) = gain(run, inside).zip(gain(run, shift)) {
                    let tuned = method.tuned_point == Some(j);
                    dots.push(Dot { method: i, name: &method.name, run, tuned, gains });
                }
            }
        }
    }
    let lines: Vec<String> = dots.iter().map(|dot| text(dot, inside, shift)).collect();
    let x: Vec<f64> = dots.iter().map(|d| d.gains.0).chain([0.0]).collect();
    let y: Vec<f64> = dots.iter().map(|d| d.gains.1).chain([0.0]).collect();
    let mut frame = Frame::new(
        &format!("Gain on {shift} against {inside}"),
        &(lines.join(". ") + "."),
        Axis::linear(&format!("gain on {inside}, points"), x, 5),
        Axis::linear(&format!("gain on {shift}, points"), y, 5),
    );
    frame.horizontal(0.0, "zero");
    frame.vertical(0.0, "zero");
    frame.diagonal("target");
    for dot in &dots {
        let series = Series(dot.method);
        let (size, class) = if dot.tuned { (5.0, "mark") } else { (3.5, "mark faint") };
        let mark = series.mark(frame.at(dot.gains), size);
        let class = format!("{} {class}", series.class());
        frame.svg.shape(&mark, &class, &text(dot, inside, shift));
    }
    frame.svg
}

fn text(dot: &Dot<'_>, inside: &str, shift: &str) -> String {
    let rate = dot.run.field("train.lr").map_or_else(String::new, |r| format!(", lr {r}"));
    format!(
        "{}{rate}, seed {}: {} points on {inside}, {} on {shift}",
        dot.name,
        dot.run.seed,
        signed(dot.gains.0, 1),
        signed(dot.gains.1, 1)
    )
}

/// The gain of a run on a split, in points.
fn gain(run: &RecordedRun, split: &str) -> Option<f64> {
    let pairs = &run.split(split)?.pairs;
    let by = run.score();
    let sum: f64 = pairs.iter().map(|p| p.credit(true, by) - p.credit(false, by)).sum();
    (!pairs.is_empty()).then(|| 100.0 * sum / pairs.len() as f64)
}
