//! The motion of hidden states along and across the preference vector, per layer.

use crate::page::html::{Ids, escape, figure, section as section_of};
use crate::page::plot::{Axis, Frame, Series, legend};
use crate::results::{LayerMotion, StatesRecord, Summary, number};

/// A line of the plot: its name, and its value for a layer.
type Line = (&'static str, fn(&LayerMotion) -> f64);

const LINES: [Line; 4] = [
    ("chosen, along", |m| m.chosen_along),
    ("rejected, along", |m| m.rejected_along),
    ("chosen, across", |m| m.chosen_across),
    ("rejected, across", |m| m.rejected_across),
];

/// The values of all lines at one layer.
type Layer = (usize, [f64; 4]);

/// The section with one panel per method. Empty if no run recorded the motion.
pub fn section(summary: &Summary, ids: &mut Ids) -> String {
    let found: Vec<(&str, Vec<&StatesRecord>)> = summary
        .rows
        .iter()
        .map(|row| {
            let runs = summary.runs_of(row);
            (row.name.as_str(), runs.iter().filter_map(|r| r.states.as_ref()).collect())
        })
        .filter(|(_, states): &(_, Vec<_>)| !states.is_empty())
        .collect();
    if found.is_empty() {
        return String::new();
    }
    let means: Vec<(&str, Vec<Layer>)> =
        found.iter().map(|(name, states)| (*name, mean(states))).collect();
    let values: Vec<f64> = means
        .iter()
        .flat_map(|(_, layers)| layers.iter().flat_map(|(_, values)| *values))
        .chain([0.0])
        .collect();
    let panels: Vec<String> =
        means.iter().map(|(name, layers)| panel(name, layers, &values).svg.finish(ids)).collect();
    let first = found[0].1[0];
    let caption = format!(
        "Motion of the pooled hidden states by training, relative to the length of the \
         preference vector h(chosen) − h(rejected) of the model at the start. Along is the signed \
         part in its direction; across is the length of the rest. Means over {} pairs of {} and \
         over seeds.",
        first.pairs, first.split
    );
    let key = legend(LINES.iter().enumerate().map(|(i, (name, _))| (Series(i), *name)));
    section_of("states", "Motion of the states", &figure(&escape(&caption), &key, &panels))
}

/// Means over the runs, for the layers that all runs have.
fn mean(states: &[&StatesRecord]) -> Vec<Layer> {
    let of = |s: &StatesRecord, layer: usize| s.sites.iter().find(|m| m.layer == layer).cloned();
    states[0]
        .sites
        .iter()
        .filter_map(|site| {
            let all: Option<Vec<LayerMotion>> = states.iter().map(|s| of(s, site.layer)).collect();
            let all = all?;
            let mean = |value: fn(&LayerMotion) -> f64| {
                all.iter().map(value).sum::<f64>() / all.len() as f64
            };
            Some((site.layer, LINES.map(|(_, value)| mean(value))))
        })
        .collect()
}

fn panel(name: &str, layers: &[Layer], values: &[f64]) -> Frame {
    let lines: Vec<String> = layers
        .iter()
        .map(|(layer, values)| {
            let parts: Vec<String> = LINES
                .iter()
                .zip(values)
                .map(|((name, _), v)| format!("{name} {}", number(*v, 2)))
                .collect();
            format!("layer {layer}: {}", parts.join(", "))
        })
        .collect();
    let mut frame = Frame::new(
        name,
        &(lines.join(". ") + "."),
        Axis::linear("layer", layers.iter().map(|(l, _)| *l as f64), 6),
        Axis::linear("motion / preference vector", values.iter().copied(), 5),
    );
    frame.horizontal(0.0, "zero");
    for (i, (name, _)) in LINES.iter().enumerate() {
        let series = Series(i);
        let points: Vec<(f64, f64)> =
            layers.iter().map(|(layer, values)| (*layer as f64, values[i])).collect();
        frame.path(&points, &format!("{} curve", series.class()));
        for point in points {
            let mark = series.mark(frame.at(point), 3.0);
            let hint = format!("layer {}, {name}: {}", point.0, number(point.1, 3));
            frame.svg.shape(&mark, &format!("{} mark", series.class()), &hint);
        }
    }
    frame
}
