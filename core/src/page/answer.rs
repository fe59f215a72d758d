//! The answer to the question, in sentences.

use super::html::{escape, section as section_of, tag};
use crate::eval::SplitRole;
use crate::results::{PairedTest, Summary, p_value, signed};

/// The section with one paragraph per shift.
pub fn section(summary: &Summary) -> String {
    let mut text = String::new();
    for split in summary.splits.iter().filter(|s| s.role == SplitRole::Shift) {
        text += &tag(
            "p",
            "",
            &format!("{}{}", gains(summary, &split.split), tests(summary, &split.split)),
        );
    }
    if text.is_empty() {
        text = tag("p", "", "The runs did not score shifted data.");
    }
    section_of("answer", "In short", &text)
}

/// A sentence about the gains on a shift.
fn gains(summary: &Summary, split: &str) -> String {
    let (mut up, mut down, mut open) = (Vec::new(), Vec::new(), Vec::new());
    for figures in &summary.methods {
        let Some(points) =
            figures.splits.iter().find(|s| s.split == split).and_then(|s| s.points.as_ref())
        else {
            continue;
        };
        let text = match points.interval() {
            Some((low, high)) => format!(
                "{} ({} points, {} to {})",
                escape(&figures.method),
                signed(points.mean, 1),
                signed(low, 1),
                signed(high, 1)
            ),
            None => format!("{} ({} points)", escape(&figures.method), signed(points.mean, 1)),
        };
        match points.interval() {
            Some((low, _)) if low > 0.0 => up.push(text),
            Some((_, high)) if high < 0.0 => down.push(text),
            _ => open.push(text),
        }
    }
    let mut sentences = Vec::new();
    if !up.is_empty() {
        sentences.push(format!("accuracy rose with {}", up.join("; ")));
    }
    if !down.is_empty() {
        sentences.push(format!("accuracy fell with {}", down.join("; ")));
    }
    if !open.is_empty() {
        sentences.push(format!(
            "the data do not show in which direction accuracy changed with {}",
            open.join("; ")
        ));
    }
    let split = escape(split);
    format!("<strong>On {split}</strong>, {}. ", sentences.join(", and "))
}

/// A sentence about the comparison with the baseline.
fn tests(summary: &Summary, split: &str) -> String {
    let Some(baseline) = &summary.tests.baseline else { return String::new() };
    let baseline = escape(baseline);
    let tests: Vec<&PairedTest> = summary.tests.tests.iter().filter(|t| t.split == split).collect();
    let tested: Vec<&&PairedTest> = tests.iter().filter(|t| t.p_holm.is_some()).collect();
    if tested.is_empty() {
        return format!("No method could be tested against {baseline}.");
    }
    let different: Vec<String> = tested
        .iter()
        .filter(|t| t.p_holm.is_some_and(|p| p < 0.05))
        .filter_map(|t| {
            Some(format!(
                "{} by {} points (p {})",
                escape(&t.method),
                signed(t.difference.as_ref()?.mean, 1),
                escape(&sign(&p_value(t.p_holm?)))
            ))
        })
        .collect();
    let least = tested.iter().filter_map(|t| t.detectable).fold(f64::INFINITY, f64::min);
    let most = tested.iter().filter_map(|t| t.detectable).fold(0.0, f64::max);
    let power = if most > 0.0 && least < most {
        format!(" Such a study detects differences of {least:.1} to {most:.1} points.")
    } else if most > 0.0 {
        format!(" Such a study detects a difference of {most:.1} points.")
    } else {
        String::new()
    };
    if different.is_empty() {
        return format!(
            "After Holm’s correction, no method differs from {baseline} at the 5 % level.{power}"
        );
    }
    format!(
        "After Holm’s correction, these methods differ from {baseline} at the 5 % level: \
         {}.{power}",
        different.join("; ")
    )
}

fn sign(p: &str) -> String {
    if p.starts_with('<') { p.to_owned() } else { format!("= {p}") }
}
