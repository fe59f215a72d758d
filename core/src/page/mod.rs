//! Writes the comparison of recorded runs as one HTML file.
//!
//! The file needs no network and no scripts, and can be read in light and dark themes, on a phone
//! and in print. All plots are SVG. The HTML is well-formed XML. All texts from data are escaped.

mod answer;
mod completions;
mod figures;
mod html;
mod origin;
mod plot;
mod results;

use html::{Ids, escape, tag};

use crate::eval::SplitRole;
use crate::results::Summary;

/// The style sheet, with the colours of both themes.
const STYLE: &str = include_str!("style.css");

/// Renders the page. `command` is the command that makes it.
pub fn render(summary: &Summary, command: &[String]) -> String {
    let mut ids = Ids::default();
    let title = format!("Does the preference carry over? {}", summary.title);
    let mut body = header(summary);
    body += &answer::section(summary);
    body += &results::section(summary);
    body += &figures::dots::section(summary, &mut ids);
    body += &figures::curves::section(summary, &mut ids);
    body += &figures::generalisation::section(summary, &mut ids);
    body += &figures::training::section(summary, &mut ids);
    body += &figures::states::section(summary, &mut ids);
    body += &completions::section(summary);
    body += &origin::section(summary, command);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<meta \
         name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<meta \
         name=\"color-scheme\" content=\"light dark\"/>\n<title>{}</title>\n<style>\n{STYLE}\
         </style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        escape(&title)
    )
}

/// The title, the question, the warnings and the data.
fn header(summary: &Summary) -> String {
    let mut text = String::from("<header>\n");
    text += &tag("p", "eyebrow", "reprpo report");
    text += &tag("h1", "", &escape(&summary.title));
    let baseline = summary.tests.baseline.as_ref().map_or_else(String::new, |name| {
        format!(" Does it carry over better than with <strong>{}</strong>?", escape(name))
    });
    text += &tag(
        "p",
        "question",
        &format!(
            "Does a preference that was trained on one distribution carry over to shifted \
                  data?{baseline}"
        ),
    );
    for warning in &summary.warnings {
        text +=
            &tag("p", "warning", &format!("<strong>Warning:</strong> {}", html::prose(warning)));
    }
    let runs = summary.collection.members.len();
    let mut facts = vec![
        (summary.groups.len().to_string(), plural(summary.groups.len(), "method")),
        (runs.to_string(), plural(runs, "run")),
    ];
    for split in &summary.splits {
        let clusters = split
            .clusters
            .map_or_else(|| "clusters unknown".to_owned(), |c| format!("{c} clusters"));
        let role = if split.role == SplitRole::Shift { "shift: " } else { "" };
        let label = format!("{role}{} pairs, {clusters}", split.split);
        facts.push((split.pairs.to_string(), label));
    }
    text += "<dl class=\"facts\">\n";
    for (value, label) in facts {
        text += &format!("<div><dt>{}</dt><dd>{}</dd></div>\n", escape(&label), escape(&value));
    }
    text + "</dl>\n</header>\n"
}

fn plural(n: usize, word: &str) -> String {
    if n == 1 { word.to_owned() } else { format!("{word}s") }
}
