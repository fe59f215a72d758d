//! Preference pairs as token ids, the way TRL makes them.
//!
//! A pair is looked at once, before training: one whose prompt leaves no room, or whose completion has nothing in it,
//! is dropped with its reason and counted, for a completion without tokens turns the loss into NaN later.

use std::collections::BTreeMap;
use std::fmt;

use rayon::prelude::*;
use serde::Serialize;

use super::Tokenizer;
use crate::api::{Message, PreferencePair, Text};
use crate::error::{Error, Result};

/// How long things may be, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Prompt and completion together; what is over is cut off the completion's end.
    pub max_length: usize,
    /// The prompt; what is over is cut off its beginning.
    pub max_prompt_length: Option<usize>,
    /// Whether plain completions end with the end-of-sequence token. Those of messages end as the chat template has it.
    pub add_eos: bool,
}

/// A preference pair as ids: the prompt `[p]`, and the two completions that continue it `[c]`, `[r]`, none of them empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPair {
    /// The row of the data set.
    pub index: usize,
    /// What both continue.
    pub prompt: Vec<i64>,
    /// The preferred completion.
    pub chosen: Vec<i64>,
    /// The other one.
    pub rejected: Vec<i64>,
}

impl TokenPair {
    /// Tokens of both sequences, the prompt counted twice, as TRL counts them.
    pub fn tokens(&self) -> usize {
        2 * self.prompt.len() + self.chosen.len() + self.rejected.len()
    }
}

/// Why a pair is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Drop {
    /// The prompt leaves no room for a completion in `max_length`.
    PromptTooLong,
    /// The prompt has no tokens, and the tokenizer none that could stand for its beginning.
    EmptyPrompt,
    /// The preferred completion has no tokens.
    EmptyChosen,
    /// The other completion has no tokens.
    EmptyRejected,
}

impl fmt::Display for Drop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Drop::PromptTooLong => "the prompt leaves no room for a completion",
            Drop::EmptyPrompt => "the prompt is empty",
            Drop::EmptyChosen => "the chosen completion is empty",
            Drop::EmptyRejected => "the rejected completion is empty",
        })
    }
}

/// What became of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is used.
    Kept {
        /// As ids.
        pair: TokenPair,
        /// Whether the prompt or a completion was cut.
        truncated: bool,
        /// Whether the prompt alone has other ids than where it stands before a completion.
        prefix_mismatch: bool,
    },
    /// It is not.
    Dropped(Drop),
}

/// The pairs of a data set as ids, and what was done to get them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokenised {
    /// Those that are used, in the data set's order.
    pub pairs: Vec<TokenPair>,
    /// How many were dropped, by reason.
    pub dropped: BTreeMap<Drop, usize>,
    /// How many of those used have a prompt with other ids alone than before a completion.
    pub prefix_mismatches: usize,
    /// How many of those used were cut.
    pub truncated: usize,
    /// How many of those used have two completions that are the same tokens: there is nothing to prefer.
    pub identical: usize,
}

impl Tokenised {
    /// How many were dropped, for any reason.
    pub fn dropped(&self) -> usize {
        self.dropped.values().sum()
    }
}

/// Turns one pair into ids and holds it to the limits.
///
/// # Errors
/// As [`whole_pair`], and fails if the pair has a token that the model's embedding does not have.
pub fn tokenise_pair(tokenizer: &Tokenizer, index: usize, pair: &PreferencePair, limits: &Limits) -> Result<Outcome> {
    let outcome = match whole_pair(tokenizer, index, pair, limits.add_eos)? {
        Ok((whole, prefix_mismatch)) => fit(whole, prefix_mismatch, limits),
        Err(why) => Outcome::Dropped(why),
    };
    if let Outcome::Kept { pair, .. } = &outcome {
        for (part, ids) in [("prompt", &pair.prompt), ("chosen completion", &pair.chosen), ("rejected completion", &pair.rejected)] {
            tokenizer.check(ids).map_err(|e| e.within(format!("cannot use the {part} of pair {index}")))?;
        }
    }
    Ok(outcome)
}

/// Turns one pair into ids, as long as they are; a completion may have none. A completion is what follows the prompt's
/// ids in the ids of both together. Beside it, whether the prompt alone has other ids than where it stands before a
/// completion.
///
/// # Errors
/// A pair of which one part is messages and another plain text, messages without a chat template, or a chat template
/// that refuses them.
pub fn whole_pair(tokenizer: &Tokenizer, index: usize, pair: &PreferencePair, add_eos: bool) -> Result<Result<(TokenPair, bool), Drop>> {
    let texts = match (&pair.prompt, &pair.chosen, &pair.rejected) {
        (Text::Plain(prompt), Text::Plain(chosen), Text::Plain(rejected)) => plain(tokenizer, prompt, [chosen, rejected], add_eos),
        (Text::Messages(prompt), Text::Messages(chosen), Text::Messages(rejected)) => {
            if prompt.is_empty() {
                return Ok(Err(Drop::EmptyPrompt));
            }
            messages(tokenizer, prompt, [chosen, rejected]).map_err(|e| e.within(format!("cannot use pair {index}")))?
        }
        _ => {
            return Err(Error::new(format!("pair {index} mixes plain text and messages"))
                .hint("prompt, chosen and rejected have to be all plain text, or all lists of messages"));
        }
    };
    let Texts { prompt, joint } = texts;
    let mut prompt = tokenizer.encode(&prompt)?;
    let mut prefix_mismatch = false;
    let mut tails = [Vec::new(), Vec::new()];
    for (tail, text) in tails.iter_mut().zip(&joint) {
        let ids = tokenizer.encode(text)?;
        prefix_mismatch |= !ids.starts_with(&prompt);
        *tail = ids.get(prompt.len()..).unwrap_or_default().to_vec();
    }
    let [chosen, rejected] = tails;

    if prompt.is_empty() {
        // The first token of a completion is judged by what stands before it, so something has to.
        let Some(first) = tokenizer.bos().or(tokenizer.eos()) else { return Ok(Err(Drop::EmptyPrompt)) };
        prompt.push(first.id);
    }
    Ok(Ok((TokenPair { index, prompt, chosen, rejected }, prefix_mismatch)))
}

/// Cuts a whole pair to the limits, or drops it.
pub fn fit(whole: TokenPair, prefix_mismatch: bool, limits: &Limits) -> Outcome {
    let TokenPair { index, mut prompt, mut chosen, mut rejected } = whole;
    let over = limits.max_prompt_length.map_or(0, |most| prompt.len().saturating_sub(most.max(1)));
    prompt.drain(..over);
    let Some(room) = limits.max_length.checked_sub(prompt.len()).filter(|room| *room > 0) else {
        return Outcome::Dropped(Drop::PromptTooLong);
    };
    if chosen.is_empty() {
        return Outcome::Dropped(Drop::EmptyChosen);
    }
    if rejected.is_empty() {
        return Outcome::Dropped(Drop::EmptyRejected);
    }
    let truncated = over > 0 || chosen.len() > room || rejected.len() > room;
    chosen.truncate(room);
    rejected.truncate(room);
    Outcome::Kept { pair: TokenPair { index, prompt, chosen, rejected }, truncated, prefix_mismatch }
}

/// A pair's prompt, and the prompt with each of the completions.
struct Texts {
    prompt: String,
    joint: [String; 2],
}

fn plain(tokenizer: &Tokenizer, prompt: &str, completions: [&String; 2], add_eos: bool) -> Texts {
    let eos = tokenizer.eos().filter(|_| add_eos).map_or("", |eos| eos.text.as_str());
    let joint = completions.map(|completion| {
        let end = if completion.ends_with(eos) { "" } else { eos };
        format!("{prompt}{completion}{end}")
    });
    Texts { prompt: prompt.to_owned(), joint }
}

fn messages(tokenizer: &Tokenizer, prompt: &[Message], completions: [&Vec<Message>; 2]) -> Result<Texts> {
    // A prompt that ends in the middle of the assistant's turn is not to begin another one.
    let begin_answer = prompt.last().is_none_or(|m| m.role != "assistant");
    let before = tokenizer.render_chat(prompt, begin_answer)?;
    let join = |completion: &[Message]| {
        if completion.is_empty() { Ok(before.clone()) } else { tokenizer.render_chat(&[prompt, completion].concat(), false) }
    };
    let joint = [join(completions[0])?, join(completions[1])?];
    Ok(Texts { prompt: before, joint })
}

/// Turns pairs into ids until `max_pairs` are kept, and counts what is dropped on the way. No more is read than that
/// takes.
///
/// # Errors
/// The iterator's own, and those of [`tokenise_pair`].
pub fn tokenise(
    tokenizer: &Tokenizer,
    pairs: impl IntoIterator<Item = Result<PreferencePair>>,
    limits: &Limits,
    max_pairs: Option<usize>,
) -> Result<Tokenised> {
    /// Enough for every core, few enough to be held at once.
    const CHUNK: usize = 1024;
    let mut rows = pairs.into_iter().enumerate();
    let mut all = Tokenised::default();
    loop {
        let wanted = max_pairs.map_or(CHUNK, |most| CHUNK.min(most.saturating_sub(all.pairs.len())));
        let chunk = rows.by_ref().take(wanted).map(|(index, pair)| Ok((index, pair?))).collect::<Result<Vec<_>>>()?;
        if chunk.is_empty() {
            return Ok(all);
        }
        let outcomes = chunk.par_iter().map(|(index, pair)| tokenise_pair(tokenizer, *index, pair, limits)).collect::<Vec<_>>();
        // In order, so that of several errors it is always the first that is told.
        for outcome in outcomes {
            match outcome? {
                Outcome::Dropped(why) => *all.dropped.entry(why).or_default() += 1,
                Outcome::Kept { pair, truncated, prefix_mismatch } => {
                    all.identical += usize::from(pair.chosen == pair.rejected);
                    all.pairs.push(pair);
                    all.truncated += usize::from(truncated);
                    all.prefix_mismatches += usize::from(prefix_mismatch);
                }
            }
        }
    }
}

/// One pair as text, for the log: what is trained on stands between ⟨ and ⟩.
pub fn show_example(tokenizer: &Tokenizer, pair: &TokenPair) -> String {
    let text = |ids: &[i64]| tokenizer.decode(ids).unwrap_or_else(|e| format!("({e})"));
    let indented = |text: String| text.replace('\n', "\n  ");
    format!(
        "example: pair {}\nprompt ({} tokens, context only):\n  {}\nchosen ({} tokens, trained):\n  ⟨{}⟩\nrejected ({} tokens, trained):\n  ⟨{}⟩",
        pair.index,
        pair.prompt.len(),
        indented(text(&pair.prompt)),
        pair.chosen.len(),
        indented(text(&pair.chosen)),
        pair.rejected.len(),
        indented(text(&pair.rejected)),
    )
}

#[cfg(test)]
mod tests;
