//! The accuracy on each split, as dots with whiskers.

use super::methods;
use crate::eval::SplitRole;
use crate::page::html::{Ids, escape, figure, section as section_of};
use crate::page::plot::{Anchor, Axis, Series, Svg};
use crate::results::{Figure, SplitInfo, Summary, number};

/// Size of a panel, and of its parts.
const WIDTH: f64 = 360.0;
const LEFT: f64 = 10.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 34.0;
const ROW: f64 = 38.0;
const BOTTOM: f64 = 46.0;

/// The section with one panel per split.
pub fn section(summary: &Summary, ids: &mut Ids) -> String {
    let all = summary.methods.iter().flat_map(|f| &f.splits).filter_map(|s| s.accuracy.as_ref());
    let values = all.flat_map(|a| [Some(a.mean), a.low, a.high]).flatten();
    let base = summary.splits.iter().filter_map(|s| s.base_accuracy);
    let axis = Axis::linear("accuracy", values.chain(base).chain([0.5]).collect::<Vec<_>>(), 5);
    // Shifts come first, because they answer the question.
    let mut order: Vec<&SplitInfo> = summary.splits.iter().collect();
    order.sort_by_key(|s| s.role != SplitRole::Shift);
    let panels: Vec<String> =
        order.iter().map(|split| panel(summary, split, &axis).finish(ids)).collect();
    let caption = "Accuracy of each method on each split, with 95 % intervals over clusters and \
                   seeds. The dashed line is the base model. A mark without a whisker has no \
                   interval; the notes give the reason.";
    section_of(
        "accuracy",
        "Accuracy on each split",
        &figure(&escape(caption), &methods(summary), &panels),
    )
}

fn panel(summary: &Summary, split: &SplitInfo, axis: &Axis) -> Svg {
    let rows: Vec<(usize, &str, &Figure)> = summary
        .methods
        .iter()
        .zip(&summary.rows)
        .filter_map(|(f, row)| {
            let of_split = f.splits.iter().find(|s| s.split == split.split)?;
            Some((row.method, f.method.as_str(), of_split.accuracy.as_ref()?))
        })
        .collect();
    let text = |name: &str, a: &Figure| {
        let interval = a.interval().map_or_else(String::new, |(low, high)| {
            format!(", 95 % interval {} to {}", number(low, 3), number(high, 3))
        });
        format!("{name}: {}{interval}", number(a.mean, 3))
    };
    let base = split.base_accuracy;
    let mut lines: Vec<String> = rows.iter().map(|(_, name, a)| text(name, a)).collect();
    lines.extend(base.map(|b| format!("base model: {}", number(b, 3))));
    let heading = format!("{} ({})", split.split, split.role.name());
    let bottom = TOP + ROW * rows.len() as f64 + 4.0;
    let mut svg = Svg::new(
        WIDTH,
        bottom + BOTTOM,
        &format!("Accuracy on {heading}"),
        &(lines.join(". ") + "."),
    );
    let x = |v: f64| LEFT + axis.at(v) * (WIDTH - LEFT - RIGHT);
    svg.text((LEFT, 18.0), Anchor::Start, "heading", &heading);
    for (value, label) in &axis.ticks {
        svg.line((x(*value), TOP), (x(*value), bottom), "grid");
        svg.text((x(*value), bottom + 16.0), Anchor::Middle, "tick", label);
    }
    svg.line((LEFT, bottom), (WIDTH - RIGHT, bottom), "axis");
    svg.text((0.5 * (LEFT + WIDTH - RIGHT), bottom + 38.0), Anchor::Middle, "title", &axis.title);
    if let Some(base) = base {
        svg.line((x(base), TOP), (x(base), bottom), "base");
    }
    for (i, (method, name, accuracy)) in rows.iter().enumerate() {
        let y = TOP + ROW * i as f64 + 26.0;
        let series = Series(*method);
        svg.text((LEFT + 2.0, y - 11.0), Anchor::Start, "row halo", &shortened(name));
        if let Some((low, high)) = accuracy.interval() {
            let class = format!("{} whisker", series.class());
            svg.line((x(low), y), (x(high), y), &class);
            for end in [low, high] {
                svg.line((x(end), y - 4.0), (x(end), y + 4.0), &class);
            }
        }
        let class = format!("{} mark", series.class());
        svg.shape(&series.mark((x(accuracy.mean), y), 5.0), &class, &text(name, accuracy));
    }
    svg
}

/// Shortens a name that does not fit into a panel.
fn shortened(name: &str) -> String {
    const MOST: usize = 48;
    if name.chars().count() <= MOST {
        return name.to_owned();
    }
    name.chars().take(MOST - 1).chain(['…']).collect()
}
