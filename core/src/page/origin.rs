//! The commands and configurations that made the page.

use super::html::{escape, section as section_of, tag};
use crate::error::quoted;
use crate::results::{RecordedRun, Summary};

/// The section with the commands, the runs and their configurations.
pub fn section(summary: &Summary, command: &[String]) -> String {
    let line = |words: &[String]| words.iter().map(quoted).collect::<Vec<_>>().join(" ");
    let mut commands: Vec<String> = summary
        .studies
        .iter()
        .filter(|s| !s.command.is_empty())
        .map(|s| line(&s.command))
        .collect();
    commands.push(line(command));
    let mut text = tag("p", "", "These commands made the results and this page:");
    text += &format!("<pre class=\"commands\">{}</pre>\n", escape(&commands.join("\n")));
    let singles = summary.collection.members.iter().any(|m| m.place.is_none());
    if singles {
        text += &tag(
            "p",
            "",
            "<code>reprpo reproduce RUN</code> repeats a run with its recorded configuration, \
             which is shown below.",
        );
    }
    let mut rows = String::new();
    for row in &summary.rows {
        for run in summary.runs_of(row) {
            rows += &format!(
                "<tr><th scope=\"row\">{}</th><td>{}</td><td><code>{}</code></td></tr>\n",
                escape(&row.name),
                run.seed,
                escape(&run.folder.display().to_string())
            );
        }
    }
    text += &format!(
        "<details><summary>Runs at the tuned points</summary>\n<div class=\"scroll\" \
         tabindex=\"0\"><table>\n<thead><tr><th scope=\"col\">method</th><th scope=\"col\">seed\
         </th><th scope=\"col\">folder</th></tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n\
         </details>\n"
    );
    for row in &summary.rows {
        let Some(run) = summary.runs_of(row).first().copied() else { continue };
        text += &format!(
            "<details><summary>Configuration of {} <span class=\"small\">seed {}</span></summary>\n\
             <pre>{}</pre></details>\n",
            escape(&row.name),
            run.seed,
            escape(&configuration(run))
        );
    }
    if !summary.left_out.is_empty() {
        let items: String = summary
            .left_out
            .iter()
            .map(|l| {
                let run = escape(&l.run.display().to_string());
                format!("<li><code>{run}</code>: {}</li>\n", escape(&l.reason))
            })
            .collect();
        text += &format!(
            "<h3>Runs left out: {}</h3>\n<ul class=\"notes\">\n{items}</ul>\n",
            summary.left_out.len()
        );
    }
    let version = env!("CARGO_PKG_VERSION");
    text += &tag("p", "small", &format!("Written by reprpo {version}."));
    section_of("origin", "Commands and configurations", &text)
}

/// The configuration of a run without its sections `cache` and `record`, which contain paths of the
/// machine and do not change the results. Its fingerprints follow as comments. The text is a valid
/// configuration file.
fn configuration(run: &RecordedRun) -> String {
    let mut lines: Vec<&str> = Vec::new();
    let mut is_shown = true;
    for line in run.toml.lines() {
        if line.starts_with('[') {
            is_shown = !["[cache]", "[record]"].contains(&line);
            // The comment above a section belongs to it.
            while !is_shown && lines.last().is_some_and(|l| l.is_empty() || l.starts_with('#')) {
                lines.pop();
            }
        }
        if is_shown {
            lines.push(line);
        }
    }
    let model = run.model.iter().map(|digest| format!("# model: sha256 {digest}"));
    let data = run.data.iter().map(|(split, digest)| format!("# data, {split}: sha256 {digest}"));
    let fingerprints: Vec<String> = model.chain(data).collect();
    format!("{}\n\n{}\n", lines.join("\n"), fingerprints.join("\n"))
}
