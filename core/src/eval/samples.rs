//! What a model said before and after training, one below the other.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::api::{Message, Text};
use crate::report::lines;

/// Continuations of a few prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleCompletions {
    /// The split that the prompts are of.
    pub split: String,
    /// Most tokens of a continuation.
    pub max_new_tokens: usize,
    /// Which model spoke before.
    pub started_from: StartedFrom,
    /// In the data's order.
    pub prompts: Vec<SampledPrompt>,
}

/// The model that training began with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartedFrom {
    /// The base model.
    Base,
    /// The base model with the experiment's `init_adapter`.
    InitAdapter,
}

/// A prompt and what was said to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampledPrompt {
    /// The row of the split.
    pub index: usize,
    /// As the data set has it; the model was given it as it is trained on it.
    pub prompt: Text,
    /// By the model that training began with.
    pub before: Sample,
    /// By the model with the adapter; none where there is none.
    pub after: Option<Sample>,
}

/// A continuation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Without the token that ends it.
    pub text: String,
    /// Tokens, with it.
    pub tokens: usize,
    /// Whether it came to its end, rather than to the most tokens.
    pub ended: bool,
}

/// Characters of a line, and of the name before it.
const WIDTH: usize = 80;
const NAME: usize = 8;

/// Lines of a prompt that are shown, before and after what is left out.
const SHOWN: (usize, usize) = (2, 2);

impl SampleCompletions {
    /// For a terminal.
    pub fn plain(&self) -> String {
        let of = format!(
            "greedy completions of prompts of {}, at most {} tokens each",
            self.split, self.max_new_tokens
        );
        let trained = self.prompts.iter().any(|p| p.after.is_some());
        let who = match (trained, self.started_from) {
            (false, _) => String::new(),
            (true, StartedFrom::Base) => {
                "before: the base model; after: with the adapter\n".to_owned()
            }
            (true, StartedFrom::InitAdapter) => {
                "before: with the adapter that training began with; after: with the trained one\n"
                    .to_owned()
            }
        };
        let mut text = format!("{of}\n{who}");
        for answered in &self.prompts {
            text.push('\n');
            text += &block(
                "prompt",
                &lines::shortened(&shown(&last_turn(&answered.prompt)), WIDTH - NAME, SHOWN),
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

    /// For a file: the same as a block of code, because a model's words are no Markdown.
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
        lines::wrapped(&format!("{}{cut}", shown(&self.text)), WIDTH - NAME)
    }
}

/// What a person reads of a prompt: the text, or what was said last in a conversation.
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

/// Lines behind a name.
fn block(name: &str, lines: &[String]) -> String {
    let head = |i: usize| if i == 0 { name } else { "" };
    lines
        .iter()
        .enumerate()
        .map(|(i, line)| format!("{:<NAME$}{}\n", head(i), line.trim_end()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str, ended: bool) -> Sample {
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
            prompts: vec![SampledPrompt {
                index: 4,
                prompt,
                before: said("It is. And\u{1b}[31m", false),
                after,
            }],
        }
    }

    #[test]
    fn before_and_after_stand_below_each_other() {
        assert_eq!(
            completions(Some(said(" ", true))).plain(),
            "greedy completions of prompts of test, at most 3 tokens each\nbefore: the base \
                model; after: with the adapter\n\n\
             prompt  Is it?⏎\n        Say so.\nbefore  It is. And\\u{1b}[31m …\nafter   (nothing)\n"
        );
        let alone = completions(None).plain();
        assert!(
            alone.ends_with("\nmodel   It is. And\\u{1b}[31m …\n") && !alone.contains("before"),
            "{alone}"
        );
    }

    #[test]
    fn in_a_file_no_word_of_the_models_is_markdown() {
        let mut completions = completions(Some(said("# head\n\n```\n- point", true)));
        completions.prompts.push(completions.prompts[0].clone());
        let text = completions.markdown();
        let (head, blocks) = text.split_once("\n\n").expect("a head");
        assert_eq!(
            head,
            "greedy completions of prompts of test, at most 3 tokens each  \nbefore: the base \
                model; after: with the adapter"
        );
        assert!(
            blocks.contains("    after   # head⏎\n            ⏎\n            ```⏎\n"),
            "{blocks}"
        );
        assert!(blocks.lines().all(|l| l.is_empty() || l.starts_with("    ")), "{blocks}");
    }

    #[test]
    fn long_texts_keep_to_the_line_and_long_prompts_to_a_few() {
        let mut completions = completions(Some(said(&"word ".repeat(100), true)));
        completions.prompts[0].prompt = Text::Plain("line\n".repeat(50));
        let text = completions.plain();
        assert!(text.lines().skip(2).all(|l| l.chars().count() <= WIDTH), "{text}");
        assert!(
            text.contains("        … 46 lines …\n") && text.matches("word").count() == 100,
            "{text}"
        );
    }
}
