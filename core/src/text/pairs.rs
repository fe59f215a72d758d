//! Preference pairs as token ids, the way TRL makes them.
//!
//! A pair is looked at once, before training: one whose prompt leaves no room, or whose completion
//! has nothing in it, is dropped with its reason and counted, for a completion without tokens turns
//! the loss into NaN later.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use rayon::prelude::*;
use serde::Serialize;

use super::token_pair::{Prompt, TokenPair};
use super::{Findings, Tokenizer};
use crate::api::{Message, PreferencePair, TemplateArgs, Text};
use crate::error::{Error, Result};

/// How pairs are tokenised, and how many tokens they may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Prompt and completion together; what is over is cut off the completion's end.
    pub max_length: usize,
    /// The prompt; what is over is cut off its beginning.
    pub max_prompt_length: Option<usize>,
    /// Whether plain completions end with the end-of-sequence token. Those of messages end as the
    /// chat template has it.
    pub add_eos: bool,
    /// Whether plain text gets the special tokens that the tokenizer puts around a text, such as a
    /// BOS. Text of a chat template never does.
    pub special_tokens: bool,
    /// How many tokens the model is made for, where that is known. Longer pairs are counted, not
    /// cut.
    pub context: Option<usize>,
}

impl Limits {
    /// Plain text as `transformers` tokenises it, of any length.
    pub const NONE: Self = Self {
        max_length: usize::MAX,
        max_prompt_length: None,
        add_eos: true,
        special_tokens: true,
        context: None,
    };
}

/// Why a pair is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipReason {
    /// The prompt leaves no room for a completion in `max_length`.
    PromptTooLong,
    /// The prompt has no tokens, and the tokenizer none that could stand for its beginning.
    EmptyPrompt,
    /// The preferred completion has no tokens.
    EmptyChosen,
    /// The other completion has no tokens.
    EmptyRejected,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SkipReason::PromptTooLong => "the prompt leaves no room for a completion",
            SkipReason::EmptyPrompt => "the prompt is empty",
            SkipReason::EmptyChosen => "the chosen completion is empty",
            SkipReason::EmptyRejected => "the rejected completion is empty",
        })
    }
}

/// How many tokens were cut off a pair to fit the limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Off the prompt's beginning.
    pub prompt: usize,
    /// Off the end of the preferred completion.
    pub chosen: usize,
    /// Off the end of the other one.
    pub rejected: usize,
}

impl Cut {
    /// Whether any token was cut off.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("prompt", self.prompt),
            ("chosen completion", self.chosen),
            ("rejected completion", self.rejected),
        ];
        let cut = parts
            .into_iter()
            .filter(|(_, n)| *n > 0)
            .map(|(part, n)| format!("the {part} lost {n} token{}", if n == 1 { "" } else { "s" }));
        f.write_str(&cut.collect::<Vec<_>>().join(", "))
    }
}

/// What became of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is used.
    Kept {
        /// As ids.
        pair: TokenPair,
        /// What was cut off it.
        cut: Cut,
        /// The prompt on its own.
        prompt: Prompt,
    },
    /// It is not.
    Dropped(SkipReason),
}

/// A pair that is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DroppedPair {
    /// As in [`TokenPair`].
    pub index: usize,
    /// As in [`TokenPair`].
    pub row: usize,
    /// The reason.
    pub why: SkipReason,
}

/// The pairs of a data set as ids, and what was done to get them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokenised {
    /// Those that are used, in the data set's order.
    pub pairs: Vec<TokenPair>,
    /// What was cut off each of them.
    pub cuts: Vec<Cut>,
    /// A hash of the whole prompt of each of them, which pairs with the same prompt share.
    pub prompts: Vec<u64>,
    /// Those that are not used.
    pub dropped: Vec<DroppedPair>,
    /// What a user should hear about them.
    pub findings: Findings,
}

impl Tokenised {
    /// How many were dropped, for any reason.
    pub fn dropped(&self) -> usize {
        self.dropped.len()
    }

    /// How many were dropped, by reason.
    pub fn reasons(&self) -> BTreeMap<SkipReason, usize> {
        let mut reasons = BTreeMap::new();
        self.dropped.iter().for_each(|pair| *reasons.entry(pair.why).or_default() += 1);
        reasons
    }

    /// How many of those used were cut.
    pub fn truncated(&self) -> usize {
        self.cuts.iter().filter(|cut| cut.any()).count()
    }
}

/// Turns one pair into ids and holds it to the limits. `row` is the place of its row, which errors
/// name.
///
/// # Errors
/// As [`whole_pair`], and fails if the pair has a token that the model's embedding does not have.
pub fn tokenise_pair(
    tokenizer: &Tokenizer,
    index: usize,
    row: usize,
    pair: &PreferencePair,
    limits: &Limits,
) -> Result<Outcome> {
    let outcome = match whole_pair(tokenizer, index, row, pair, limits)? {
        Ok((whole, prompt)) => fit(whole, prompt, limits),
        Err(why) => Outcome::Dropped(why),
    };
    if let Outcome::Kept { pair, .. } = &outcome {
        for (part, ids) in [
            ("prompt", &pair.prompt),
            ("chosen completion", &pair.chosen),
            ("rejected completion", &pair.rejected),
        ] {
            tokenizer
                .check(ids)
                .map_err(|e| e.within(format!("cannot use the {part} of pair {row}")))?;
        }
    }
    Ok(outcome)
}

/// Turns one pair into ids, as long as they are; a completion may have none. As in TRL, the pair's
/// prompt is what the ids of the prompt, of prompt and chosen, and of prompt and rejected begin
/// with alike; a completion is what follows it. So a token that merges across the boundary, or a
/// generation prompt that a finished turn does not have, belongs to the completion.
///
/// # Errors
/// A pair of which one part is messages and another plain text, messages without a chat template,
/// or a chat template that refuses them.
pub fn whole_pair(
    tokenizer: &Tokenizer,
    index: usize,
    row: usize,
    pair: &PreferencePair,
    limits: &Limits,
) -> Result<Result<(TokenPair, Prompt), SkipReason>> {
    let texts = match (&pair.prompt, &pair.chosen, &pair.rejected) {
        (Text::Plain(prompt), Text::Plain(chosen), Text::Plain(rejected)) => {
            plain(tokenizer, prompt, [chosen, rejected], limits)
        }
        (Text::Messages(prompt), Text::Messages(chosen), Text::Messages(rejected)) => {
            if prompt.is_empty() {
                return Ok(Err(SkipReason::EmptyPrompt));
            }
            messages(tokenizer, prompt, [chosen, rejected], &pair.template_args)
                .map_err(|e| e.within(format!("cannot use pair {row}")))?
        }
        _ => {
            return Err(Error::new(format!("pair {row} mixes plain text and messages")).hint(
                "prompt, chosen and rejected have to be all plain text, or all lists of messages",
            ));
        }
    };
    let Texts { prompt, joint, special_tokens } = texts;
    let encode = |text: &str| {
        if special_tokens { tokenizer.encode_alone(text) } else { tokenizer.encode(text) }
    };
    let ids = encode(&prompt)?;
    let [mut chosen, mut rejected] = [encode(&joint[0])?, encode(&joint[1])?];
    let shared = common_prefix(&ids, &chosen).min(common_prefix(&ids, &rejected));
    chosen.drain(..shared);
    rejected.drain(..shared);
    let mut prompt = ids[..shared].to_vec();
    if prompt.is_empty() {
        // The first token of a completion is judged by what stands before it, so something has to.
        let Some(first) = tokenizer.bos().or(tokenizer.eos()) else {
            return Ok(Err(SkipReason::EmptyPrompt));
        };
        prompt.push(first.id);
    }
    Ok(Ok((TokenPair { index, row, prompt, chosen, rejected }, Prompt { ids, shared })))
}

/// How many leading ids two sequences share.
fn common_prefix(a: &[i64], b: &[i64]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Cuts a whole pair to the limits, or drops it.
pub fn fit(whole: TokenPair, of: Prompt, limits: &Limits) -> Outcome {
    let TokenPair { index, row, mut prompt, mut chosen, mut rejected } = whole;
    let over = limits.max_prompt_length.map_or(0, |most| prompt.len().saturating_sub(most.max(1)));
    prompt.drain(..over);
    let Some(room) = limits.max_length.checked_sub(prompt.len()).filter(|room| *room > 0) else {
        return Outcome::Dropped(SkipReason::PromptTooLong);
    };
    if chosen.is_empty() {
        return Outcome::Dropped(SkipReason::EmptyChosen);
    }
    if rejected.is_empty() {
        return Outcome::Dropped(SkipReason::EmptyRejected);
    }
    let cut = Cut {
        prompt: over,
        chosen: chosen.len().saturating_sub(room),
        rejected: rejected.len().saturating_sub(room),
    };
    chosen.truncate(room);
    rejected.truncate(room);
    Outcome::Kept { pair: TokenPair { index, row, prompt, chosen, rejected }, cut, prompt: of }
}

/// A pair's prompt, and the prompt with each of the completions.
struct Texts {
    prompt: String,
    joint: [String; 2],
    /// Whether the tokenizer puts its special tokens around them.
    special_tokens: bool,
}

fn plain(tokenizer: &Tokenizer, prompt: &str, completions: [&String; 2], limits: &Limits) -> Texts {
    let eos = tokenizer.eos().filter(|_| limits.add_eos).map_or("", |eos| eos.text.as_str());
    let joint = completions.map(|completion| {
        let end = if completion.ends_with(eos) { "" } else { eos };
        format!("{prompt}{completion}{end}")
    });
    Texts { prompt: prompt.to_owned(), joint, special_tokens: limits.special_tokens }
}

/// The prompt always gets the generation prompt, even behind an assistant's turn, as in TRL.
fn messages(
    tokenizer: &Tokenizer,
    prompt: &[Message],
    completions: [&Vec<Message>; 2],
    args: &TemplateArgs,
) -> Result<Texts> {
    let join = |completion: &[Message]| {
        tokenizer.render_chat_with(&[prompt, completion].concat(), args, false)
    };
    let joint = [join(completions[0])?, join(completions[1])?];
    Ok(Texts {
        prompt: tokenizer.render_chat_with(prompt, args, true)?,
        joint,
        special_tokens: false,
    })
}

/// A pair with its number and the place of its row.
type Numbered = (usize, usize, PreferencePair);

/// Turns pairs with the places of their rows into ids until `max_pairs` are kept, and counts what
/// is dropped on the way. No more is read than that takes.
///
/// # Errors
/// The iterator's own, and those of [`tokenise_pair`].
pub fn tokenise(
    tokenizer: &Tokenizer,
    rows: impl IntoIterator<Item = Result<(usize, PreferencePair)>>,
    limits: &Limits,
    max_pairs: Option<usize>,
) -> Result<Tokenised> {
    let mut all = Tokenised::default();
    each(tokenizer, rows, limits, max_pairs, |(index, row, pair), outcome| {
        match outcome {
            Outcome::Dropped(why) => all.dropped.push(DroppedPair { index, row, why }),
            Outcome::Kept { pair: kept, cut, prompt } => {
                all.findings.add(tokenizer, &pair, &kept, &prompt, limits.context);
                all.pairs.push(kept);
                all.cuts.push(cut);
                all.prompts.push(hash(&prompt.ids));
            }
        }
        Ok(())
    })?;
    Ok(all)
}

/// The same number for the same ids, in every process.
fn hash(ids: &[i64]) -> u64 {
    let mut hasher = DefaultHasher::new();
    ids.hash(&mut hasher);
    hasher.finish()
}

/// Turns pairs with the places of their rows into ids, several at once, and hands on what becomes
/// of each, in order, until `max_pairs` are kept. No more is read than that takes.
///
/// # Errors
/// The iterator's own, those of [`tokenise_pair`], and those of `take`.
pub fn each(
    tokenizer: &Tokenizer,
    rows: impl IntoIterator<Item = Result<(usize, PreferencePair)>>,
    limits: &Limits,
    max_pairs: Option<usize>,
    mut take: impl FnMut(Numbered, Outcome) -> Result<()>,
) -> Result<()> {
    /// Enough for every core, few enough to be held at once.
    const CHUNK: usize = 1024;
    let mut rows = rows.into_iter().enumerate();
    let mut kept = 0;
    loop {
        let wanted = max_pairs.map_or(CHUNK, |most| CHUNK.min(most.saturating_sub(kept)));
        let numbered = |(index, row): (usize, Result<_>)| row.map(|(row, pair)| (index, row, pair));
        let chunk = rows.by_ref().take(wanted).map(numbered).collect::<Result<Vec<Numbered>>>()?;
        if chunk.is_empty() {
            return Ok(());
        }
        let outcomes = chunk
            .par_iter()
            .map(|(index, row, pair)| tokenise_pair(tokenizer, *index, *row, pair, limits))
            .collect::<Vec<_>>();
        // In order, so that of several errors it is always the first that is told.
        for (numbered, outcome) in chunk.into_iter().zip(outcomes) {
            let outcome = outcome?;
            kept += usize::from(matches!(outcome, Outcome::Kept { .. }));
            take(numbered, outcome)?;
        }
    }
}

/// One pair as text, for the log: what is trained on stands between ⟨ and ⟩.
pub fn show_example(tokenizer: &Tokenizer, pair: &TokenPair) -> String {
    let text = |ids: &[i64]| tokenizer.decode(ids).unwrap_or_else(|e| format!("({e})"));
    let indented = |text: String| text.replace('\n', "\n  ");
    format!(
        "example: pair {}\nprompt ({} tokens, context only):\n  {}\nchosen ({} tokens, \
            trained):\n  ⟨{}⟩\nrejected ({} tokens, trained):\n  ⟨{}⟩",
        pair.row,
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
