//! The gains against the perplexity ratio, over all points of the search.

use super::methods;
use crate::eval::SplitRole;
use crate::page::html::{Ids, escape, figure, section as section_of, table as table_of};
use crate::page::plot::{Axis, Frame, Series};
use crate::results::{SplitInfo, Summary, number, signed};

/// The section with one panel per split, and the table at the matched ratio.
pub fn section(summary: &Summary, ids: &mut Ids) -> String {
    let curves = &summary.curves;
    let ratios = || {
        let points = curves.points.iter().filter_map(|p| p.log_ratio).map(f64::exp);
        points.chain([1.0, curves.target]).collect::<Vec<_>>()
    };
    let title = format!("perplexity ratio on `{}`", curves.matched_on).replace('`', "");
    let gains = curves.points.iter().flat_map(|p| p.gains.values().copied()).chain([0.0]);
    let y = Axis::linear("gain in points", gains.collect::<Vec<_>>(), 5);
    let mut order: Vec<&SplitInfo> = summary.splits.iter().collect();
    order.sort_by_key(|s| s.role != SplitRole::Shift);
    let panels: Vec<String> = order
        .iter()
        .map(|split| panel(summary, split, Axis::log(&title, ratios()), y.clone(), ids))
        .collect();
    let caption = format!(
        "Gain in accuracy against the perplexity ratio on the chosen text of {}. A ratio below 1 \
         means that the chosen text became less likely. Lines join the points of a method by \
         learning rate. Large marks are tuned points, the cross is the base model, and the dashed \
         line is the ratio {}.",
        curves.matched_on, curves.target
    );
    let text = figure(&escape(&caption), &methods(summary), &panels) + &table(summary);
    section_of("strength", "Gain at equal strength of training", &text)
}

fn panel(summary: &Summary, split: &SplitInfo, x: Axis, y: Axis, ids: &mut Ids) -> String {
    let heading = format!("{} ({})", split.split, split.role.name());
    let mut lines = Vec::new();
    for point in &summary.curves.points {
        let Some((ratio, gain)) = point.log_ratio.zip(point.gains.get(&split.split)) else {
            continue;
        };
        lines.push(format!(
            "{}{}: ratio {}, gain {} points",
            point.method,
            values(&point.values),
            number(ratio.exp(), 3),
            signed(*gain, 1)
        ));
    }
    let description = lines.join(". ") + ".";
    let mut frame = Frame::new(&format!("Gain on {heading}"), &description, x, y);
    frame.horizontal(0.0, "zero");
    frame.vertical(summary.curves.target, "target");
    let (bx, by) = frame.at((1.0, 0.0));
    frame.svg.line((bx - 5.0, by), (bx + 5.0, by), "cross");
    frame.svg.line((bx, by - 5.0), (bx, by + 5.0), "cross");
    for (i, method) in summary.groups.iter().enumerate() {
        let series = Series(i);
        let points: Vec<_> = summary
            .curves
            .points
            .iter()
            .filter(|p| p.method == method.name)
            .filter_map(|p| Some((p, p.log_ratio?.exp(), *p.gains.get(&split.split)?)))
            .collect();
        let path: Vec<(f64, f64)> = points.iter().map(|(_, x, y)| (*x, *y)).collect();
        frame.path(&path, &format!("{} curve", series.class()));
        for (point, ratio, gain) in points {
            let size = if point.tuned { 6.0 } else { 3.5 };
            let class = format!("{} mark", series.class());
            let hint = format!(
                "{}{}: ratio {}, {} points, {} seeds",
                point.method,
                values(&point.values),
                number(ratio, 3),
                signed(gain, 1),
                point.seeds.len()
            );
            let mark = series.mark(frame.at((ratio, gain)), size);
            frame.svg.shape(&mark, &class, &hint);
        }
    }
    frame.svg.finish(ids)
}

fn values(values: &std::collections::BTreeMap<String, String>) -> String {
    let all: Vec<String> = values.iter().map(|(f, v)| format!("{f}={v}")).collect();
    if all.is_empty() { String::new() } else { format!(", {}", all.join(", ")) }
}

/// Each method at the matched ratio.
fn table(summary: &Summary) -> String {
    let curves = &summary.curves;
    let mut head = String::from("<th scope=\"col\">method</th><th scope=\"col\">between</th>");
    for split in &summary.splits {
        head += &format!("<th scope=\"col\" class=\"n\">{}, points</th>", escape(&split.split));
    }
    let mut rows = String::new();
    for method in &curves.matched {
        let rates = method
            .learning_rates
            .map(|(a, b)| if a == b { format!("{a:e}") } else { format!("{a:e} and {b:e}") });
        let mut row = format!("<th scope=\"row\">{}</th>", escape(&method.method));
        match (&rates, &method.remark) {
            (None, remark) => {
                row += &format!(
                    "<td colspan=\"{}\" class=\"unknown\">{}</td>",
                    summary.splits.len() + 1,
                    escape(remark.as_deref().unwrap_or_default())
                );
            }
            (Some(rates), remark) => {
                let mark = remark.as_ref().map_or_else(String::new, |r| {
                    format!(" <span class=\"small\">{}</span>", escape(r))
                });
                row += &format!("<td>{}{mark}</td>", escape(rates));
                for split in &summary.splits {
                    let gain = method.gains.iter().find(|g| g.split == split.split);
                    let text =
                        gain.and_then(|g| g.points).map_or("–".to_owned(), |v| signed(v, 1));
                    row += &format!("<td class=\"n\">{text}</td>");
                }
            }
        }
        rows += &format!("<tr>{row}</tr>\n");
    }
    let heading = format!(
        "<h3>Each method at a perplexity ratio of {}</h3> <span class=\"small\">Linear \
         interpolation between neighbouring learning rates, without extrapolation and without an \
         interval.</span>",
        curves.target
    );
    table_of(&heading, "Methods at the same perplexity ratio", &head, &rows)
}
