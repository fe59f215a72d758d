//! Sample completions before and after training.

use super::html::{escape, section as section_of, tag};
use crate::api::{Message, Text};
use crate::eval::{Sample, SampledPrompt};
use crate::results::Summary;

/// Maximum number of characters of a text.
const MOST: usize = 1200;

/// The section with the completions of the first run of each method. Empty if there are none.
pub fn section(summary: &Summary) -> String {
    let mut text = String::new();
    for row in &summary.rows {
        let runs = summary.runs_of(row);
        let Some((run, samples)) = runs
            .iter()
            .find_map(|r| Some((r, r.completions.as_ref()?)))
            .filter(|(_, s)| !s.prompts.is_empty())
        else {
            continue;
        };
        let prompts: String = samples.prompts.iter().map(prompt).collect();
        text += &format!(
            "<details{}><summary>{} <span class=\"small\">seed {}, prompts of {}, greedy, at most \
             {} tokens</span></summary>\n{prompts}</details>\n",
            if text.is_empty() { " open=\"open\"" } else { "" },
            escape(&row.name),
            run.seed,
            escape(&samples.split),
            samples.max_new_tokens
        );
    }
    if text.is_empty() {
        return String::new();
    }
    section_of("completions", "Completions before and after training", &text)
}

fn prompt(sampled: &SampledPrompt) -> String {
    let shown = match &sampled.prompt {
        Text::Plain(text) => text.clone(),
        Text::Messages(messages) => {
            messages.last().map(Message::text).unwrap_or_default().into_owned()
        }
    };
    let mut text = format!("<div class=\"sample\">\n{}", part("prompt", "prompt", &shown));
    let sample = |s: &Sample| format!("{}{}", s.text, if s.ended { "" } else { " …" });
    text += "<div class=\"pair\">\n";
    text += &part("before", "", &sample(&sampled.before));
    if let Some(after) = &sampled.after {
        text += &part("after", "", &sample(after));
    }
    text + "</div>\n</div>\n"
}

fn part(label: &str, class: &str, text: &str) -> String {
    let text = text.trim();
    let shown: String = if text.is_empty() {
        "(nothing)".to_owned()
    } else if text.chars().count() > MOST {
        text.chars().take(MOST).chain(" …".chars()).collect()
    } else {
        text.to_owned()
    };
    let label = tag("h4", "", label);
    format!("<div class=\"text {class}\">{label}<pre>{}</pre></div>\n", escape(&shown))
}
