//! Sample completions before and after training, and their formatting for the terminal and for
//! files.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::api::{Message, Text};
use crate::report::lines;

/// Completions of a few prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleCompletions {
    /// Split that the prompts come from.
    pub split: String,
    /// Maximum number of tokens in a completion.
    pub max_new_tokens: usize,
    /// The model at the start of training. This model generated the completions `before`.
    pub started_from: StartedFrom,
    /// True if the prompts of the completions `after` contain `eval.instruction`.
    #[serde(default)]
    pub instructed: bool,
    /// The prompts with their completions, in the order of the split.
    pub prompts: Vec<SampledPrompt>,
}

/// The model that training started from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartedFrom {
    /// The base model.
    Base,
    /// The base model with the experiment's `init_adapter`.
    InitAdapter,
}

/// A prompt and its completions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampledPrompt {
    /// Row number in the split.
    pub index: usize,
    /// The prompt as it appears in the data set, before the chat template is applied.
    pub prompt: Text,
    /// Completion by the model that training started from.
    pub before: Sample,
    /// Completion by the model with the trained adapter. `None` if there is no adapter.
    pub after: Option<Sample>,
}

/// A completion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The text, without the stop token.
    pub text: String,
    /// Number of tokens, including the stop token.
    pub tokens: usize,
    /// True if generation ended with a stop token. False if the completion reached the maximum
    /// number of tokens.
    pub ended: bool,
}

/// Maximum number of characters in a line.
const WIDTH: usize = 80;
/// Width of the first column, which labels the lines.
const LABEL: usize = 8;

/// Number of lines shown from the start and from the end of a long prompt.
const SHOWN: (usize, usize) = (2, 2);

impl SampleCompletions {
    /// Formats the completions for a terminal.
    pub fn plain(&self) -> String {
        let of = format!(
            "greedy completions of prompts from {}, at most {} tokens each",
            self.split, self.max_new_tokens
        );
        let trained = self.prompts.iter().any(|p| p.after.is_some());
        let and = if self.instructed { " and the instruction" } else { "" };
        let who = match (trained, self.started_from) {
            (false, _) => String::new(),
            (true, StartedFrom::Base) => {
                format!("before: the base model; after: with the adapter{and}\n")
            }
            (true, StartedFrom::InitAdapter) => {
                format!("before: with the initial adapter; after: with the trained adapter{and}\n")
            }
        };
        let mut text = format!("{of}\n{who}");
        for answered in &self.prompts {
            text.push('\n');
            text += &block(
                "prompt",
                &lines::shortened(&shown(&last_turn(&answered.prompt)), WIDTH - LABEL, SHOWN),
            );
            match &answered.after {
                None => text += &block("model", &answered.before.lines()),
                Some(after) => {
                    text += &block("before", &answered.before.lines());
                    text += &block("after", &after.lines());
                }
            }
        }
        text
    }

    /// Formats the completions as Markdown. They are put in a code block, so that generated text is
    /// not interpreted as Markdown.
    pub fn markdown(&self) -> String {
        let (head, blocks) = match self.plain().split_once("\n\n") {
            Some((head, blocks)) => (head.replace('\n', "  \n"), blocks.to_owned()),
            None => (self.plain(), String::new()),
        };
        let code: String = blocks
            .lines()
            .map(|line| if line.is_empty() { "\n".to_owned() } else { format!("    {line}\n") })
            .collect();
        format!("{head}\n\n{code}")
    }
}

impl Sample {
    fn lines(&self) -> Vec<String> {
        let cut = if self.ended { "" } else { " …" };
        lines::wrapped(&format!("{}{cut}", shown(&self.text)), WIDTH - LABEL)
    }
}

/// Returns the part of a prompt to show: the last message of a conversation, or the whole plain
/// text.
fn last_turn(prompt: &Text) -> Cow<'_, str> {
    match prompt {
        Text::Plain(text) => Cow::Borrowed(text),
        Text::Messages(messages) => messages.last().map(Message::text).unwrap_or_default(),
    }
}

fn shown(text: &str) -> String {
    match text.trim() {
        "" => "(nothing)".to_owned(),
        text => lines::visible(text),
    }
}

/// Formats `lines` with the label `name` in front of the first line.
fn block(name: &str, lines: &[String]) -> String {
    let head = |i: usize| if i == 0 { name } else { "" };
    lines
        .iter()
        .enumerate()
        .map(|(i, line)| format!("{:<LABEL$}{}\n", head(i), line.trim_end()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(text: &str, ended: bool) -> Sample {
        Sample { text: text.to_owned(), tokens: 3, ended }
    }

    fn completions(after: Option<Sample>) -> SampleCompletions {
        let prompt = Text::Messages(vec![
            Message::new("system", "Be brief."),
            Message::new("user", "Is it?\nSay so."),
        ]);
        SampleCompletions {
            split: "test".to_owned(),
            max_new_tokens: 3,
            started_from: StartedFrom::Base,
            instructed: false,
            prompts: vec![SampledPrompt {
                index: 4,
                prompt,
                before: sample("It is. And\u{1b}[31m", false),
                after,
            }],
        }
    }

    #[test]
    fn completions_before_and_after_training_are_shown_together() {
        assert_eq!(
            completions(Some(sample(" ", true))).plain(),
            "greedy completions of prompts from test, at most 3 tokens each\nbefore: the base \
                model; after: with the adapter\n\n\
             prompt  Is it?⏎\n        Say so.\nbefore  It is. And\\u{1b}[31m …\nafter   (nothing)\n"
        );
        let base = completions(None).plain();
        assert!(
            base.ends_with("\nmodel   It is. And\\u{1b}[31m …\n") && !base.contains("before"),
            "{base}"
        );
    }

    #[test]
    fn generated_text_in_a_file_is_not_markdown() {
        let mut completions = completions(Some(sample("# head\n\n```\n- point", true)));
        completions.prompts.push(completions.prompts[0].clone());
        let text = completions.markdown();
        let (head, blocks) = text.split_once("\n\n").expect("a head");
        assert_eq!(
            head,
            "greedy completions of prompts from test, at most 3 tokens each  \nbefore: the base \
                model; after: with the adapter"
        );
        assert!(
            blocks.contains("    after   # head⏎\n            ⏎\n            ```⏎\n"),
            "{blocks}"
        );
        assert!(blocks.lines().all(|l| l.is_empty() || l.starts_with("    ")), "{blocks}");
    }

    #[test]
    fn long_texts_are_wrapped_and_long_prompts_are_shortened() {
        let mut completions = completions(Some(sample(&"word ".repeat(100), true)));
        completions.prompts[0].prompt = Text::Plain("line\n".repeat(50));
        let text = completions.plain();
        assert!(text.lines().skip(2).all(|l| l.chars().count() <= WIDTH), "{text}");
        assert!(
            text.contains("        … 46 lines …\n") && text.matches("word").count() == 100,
            "{text}"
        );
    }
}
