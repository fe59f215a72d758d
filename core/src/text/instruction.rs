//! Adds an instruction to the prompts of tokenised pairs, for the control that gives the model an
//! instruction instead of training it.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::pairs::{Limits, Tokenised, whole_pair};
use super::{TokenPair, Tokenizer};
use crate::api::{Message, PreferencePair, TemplateArgs, Text};
use crate::error::{Error, Result};

const SYSTEM: &str = "system";
const USER: &str = "user";

/// Returns the kept pairs of `base` with an instruction in the prompt, in the same order. `rows`
/// are the pairs from which `base` was tokenised, with the same `limits`.
///
/// The completions keep their tokens, so that the scores of both versions can be compared. The
/// length limits apply to the pairs without the instruction, which therefore does not shorten a
/// completion.
///
/// # Errors
/// Fails if `rows` yields an error, or if a pair cannot be rendered with the instruction. Also
/// fails if a prompt of `base` was truncated, or if the instruction would change the tokens of a
/// completion.
pub fn instructed(
    tokenizer: &Tokenizer,
    rows: impl IntoIterator<Item = Result<(usize, PreferencePair)>>,
    limits: &Limits,
    base: &Tokenised,
    instruction: &str,
) -> Result<Vec<TokenPair>> {
    let place: HashMap<usize, usize> =
        base.pairs.iter().enumerate().map(|(i, pair)| (pair.index, i)).collect();
    let system = accepts_system(tokenizer, instruction);
    let mut found: Vec<Option<TokenPair>> = vec![None; base.pairs.len()];
    let mut missing = base.pairs.len();
    for (index, row) in rows.into_iter().enumerate() {
        if missing == 0 {
            break;
        }
        let (row, pair) = row?;
        let Some(at) = place.get(&index).copied() else { continue };
        let (plain, cut) = (&base.pairs[at], &base.cuts[at]);
        if cut.prompt > 0 {
            return Err(Error::new(format!(
                "cannot add the instruction to pair {row}, because its prompt is truncated"
            ))
            .hint("raise `train.max_prompt_length`, or set it to `none`"));
        }
        let with = add(&pair, instruction, system)
            .map_err(|e| e.within(format!("cannot add the instruction to pair {row}")))?;
        let whole = whole_pair(tokenizer, index, row, &with, limits)?;
        let Ok((whole, _)) = whole else {
            return Err(Error::new(format!("pair {row} is empty with the instruction")));
        };
        if !(whole.chosen.starts_with(&plain.chosen) && whole.rejected.starts_with(&plain.rejected))
        {
            return Err(Error::new(format!(
                "the instruction changes the tokens of the completions of pair {row}, so the \
                    scores with and without it cannot be compared"
            )));
        }
        tokenizer.check(&whole.prompt)?;
        let TokenPair { index, row, chosen, rejected, .. } = plain.clone();
        found[at] = Some(TokenPair { index, row, prompt: whole.prompt, chosen, rejected });
        missing -= 1;
    }
    found
        .into_iter()
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| Error::internal("a pair of the split could not be read again"))
}

/// True if the chat template renders a system message. Some templates raise an error or leave it
/// out.
fn accepts_system(tokenizer: &Tokenizer, instruction: &str) -> bool {
    let messages = [Message::new(SYSTEM, instruction), Message::new(USER, "")];
    tokenizer
        .render_chat_with(&messages, &TemplateArgs::default(), true)
        .is_ok_and(|text| text.contains(instruction.trim()))
}

/// Returns the pair with the instruction in its prompt.
///
/// # Errors
/// Fails if the instruction belongs before the first user message, but there is none.
pub fn with_instruction(
    tokenizer: &Tokenizer,
    pair: &PreferencePair,
    instruction: &str,
) -> Result<PreferencePair> {
    add(pair, instruction, accepts_system(tokenizer, instruction))
}

/// Adds the instruction to the prompt of a pair. `system` is true if the chat template accepts
/// system messages.
fn add(pair: &PreferencePair, instruction: &str, system: bool) -> Result<PreferencePair> {
    let prompt = match &pair.prompt {
        Text::Plain(prompt) => Text::Plain(format!("{instruction}\n\n{prompt}")),
        Text::Messages(messages) => {
            let mut messages = messages.clone();
            let first = messages.first().is_some_and(|message| message.role() == SYSTEM);
            if first && system {
                messages[0] = joined(&messages[0], instruction, false)?;
            } else if system {
                messages.insert(0, Message::new(SYSTEM, instruction));
            } else {
                let user = messages
                    .iter()
                    .position(|message| message.role() == USER)
                    .ok_or_else(|| Error::new("the prompt has no user message"))?;
                messages[user] = joined(&messages[user], instruction, true)?;
            }
            Text::Messages(messages)
        }
    };
    Ok(PreferencePair { prompt, ..pair.clone() })
}

/// Adds the instruction to the content of a message, before or after its text.
fn joined(message: &Message, instruction: &str, before: bool) -> Result<Message> {
    let content = match message.fields().get("content") {
        Some(Value::Array(parts)) => {
            let text = |text: String| json!({"type": "text", "text": text});
            let mut parts = parts.clone();
            if before {
                parts.insert(0, text(format!("{instruction}\n\n")));
            } else {
                parts.push(text(format!("\n\n{instruction}")));
            }
            Value::Array(parts)
        }
        _ if before => Value::String(format!("{instruction}\n\n{}", message.text())),
        _ => Value::String(format!("{}\n\n{instruction}", message.text())),
    };
    message.clone().with("content", content)
}

#[cfg(test)]
mod tests;
