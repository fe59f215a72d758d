//! Tokenises preference pairs in the same way as TRL.
//!
//! This happens once, before training. A pair is dropped if its prompt leaves no room for a
//! completion, or if a completion is empty, because a completion without tokens makes the loss NaN.
//! Dropped pairs are counted by reason.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use rayon::prelude::*;
use serde::Serialize;

use super::token_pair::{Prompt, TokenPair};
use super::{Findings, Tokenizer};
use crate::api::{Message, PreferencePair, TemplateArgs, Text};
use crate::error::{Error, Result};

/// Settings for tokenising pairs, and the maximum numbers of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of tokens of prompt and completion together. Longer completions are cut at
    /// their end.
    pub max_length: usize,
    /// Maximum number of tokens of the prompt. Longer prompts are cut at their beginning.
    pub max_prompt_length: Option<usize>,
    /// True if the end-of-sequence token is added to plain completions. The chat template decides
    /// how completions of messages end.
    pub add_eos: bool,
    /// True if plain text gets the special tokens that the tokenizer adds around a text, such as a
    /// BOS. Text from a chat template never does.
    pub special_tokens: bool,
    /// Context length of the model in tokens, if it is known. Longer pairs are counted, not cut.
    pub context: Option<usize>,
}

impl Limits {
    /// No limits on the length. Plain text has special tokens around it as in transformers, and
    /// plain completions end with the end-of-sequence token.
    pub const NONE: Self = Self {
        max_length: usize::MAX,
        max_prompt_length: None,
        add_eos: true,
        special_tokens: true,
        context: None,
    };
}

/// The reason why a pair is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipReason {
    /// The prompt leaves no room for a completion within `max_length`.
    PromptTooLong,
    /// The prompt does not have any messages, or it does not have any tokens and the tokenizer has
    /// neither a BOS nor an EOS to use instead.
    EmptyPrompt,
    /// The chosen completion has no tokens.
    EmptyChosen,
    /// The rejected completion has no tokens.
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

/// Numbers of tokens that were cut off a pair so that it fits the limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Tokens cut from the beginning of the prompt.
    pub prompt: usize,
    /// Tokens cut from the end of the chosen completion.
    pub chosen: usize,
    /// Tokens cut from the end of the rejected completion.
    pub rejected: usize,
}

impl Cut {
    /// True if any token was cut off.
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

/// The result of tokenising a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The pair is used.
    Kept {
        /// Ids after cutting.
        pair: TokenPair,
        /// Numbers of tokens that were cut off.
        cut: Cut,
        /// The whole prompt, tokenised on its own.
        prompt: Prompt,
    },
    /// The pair is not used.
    Dropped(SkipReason),
}

/// A pair that is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DroppedPair {
    /// Index among the pairs that were read, as in [`TokenPair`].
    pub index: usize,
    /// Index of the row in the split's files, as in [`TokenPair`].
    pub row: usize,
    /// The reason why the pair is not used.
    pub why: SkipReason,
}

/// The tokenised pairs of a data set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokenised {
    /// The pairs that are used, in the data set's order.
    pub pairs: Vec<TokenPair>,
    /// Numbers of tokens that were cut off, for each element of `pairs`.
    pub cuts: Vec<Cut>,
    /// Hash of the whole prompt, for each element of `pairs`. Equal prompts have equal hashes.
    pub prompts: Vec<u64>,
    /// The pairs that are not used.
    pub dropped: Vec<DroppedPair>,
    /// Counts of pairs that the user must be warned about.
    pub findings: Findings,
}

impl Tokenised {
    /// Number of dropped pairs.
    pub fn dropped(&self) -> usize {
        self.dropped.len()
    }

    /// Number of dropped pairs for each reason.
    pub fn reasons(&self) -> BTreeMap<SkipReason, usize> {
        let mut reasons = BTreeMap::new();
        self.dropped.iter().for_each(|pair| *reasons.entry(pair.why).or_default() += 1);
        reasons
    }

    /// Number of pairs that are used and were cut.
    pub fn truncated(&self) -> usize {
        self.cuts.iter().filter(|cut| cut.any()).count()
    }
}

/// Tokenises one pair and applies the limits. `index` and `row` are as in [`TokenPair`].
///
/// # Errors
/// Fails in the same cases as [`whole_pair`], and if the pair has a token that the model's
/// embedding does not have.
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

/// Tokenises one pair without limits on the length. A completion may be empty.
///
/// Three texts are tokenised: the prompt, the prompt with the chosen completion, and the prompt
/// with the rejected completion. As in TRL, the pair's prompt is the common prefix of the three,
/// and a completion is the rest of its sequence. A token that merges across the boundary therefore
/// belongs to the completion, and so does a generation prompt that a finished turn does not have.
///
/// # Errors
/// Fails if one part of the pair consists of messages and another of plain text, or if there are
/// messages and the model does not have a chat template or its chat template refuses them.
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
                "make prompt, chosen and rejected all plain text, or all lists of messages",
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
        // The model predicts each token of a completion from the tokens before it, so there must be
        // at least one.
        let Some(first) = tokenizer.bos().or(tokenizer.eos()) else {
            return Ok(Err(SkipReason::EmptyPrompt));
        };
        prompt.push(first.id);
    }
    Ok(Ok((TokenPair { index, row, prompt, chosen, rejected }, Prompt { ids, shared })))
}

/// Length of the longest common prefix of two sequences.
fn common_prefix(a: &[i64], b: &[i64]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Cuts a pair to fit the limits, or drops it. `whole_prompt` is the pair's prompt, tokenised on
/// its own.
pub fn fit(whole: TokenPair, whole_prompt: Prompt, limits: &Limits) -> Outcome {
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
    Outcome::Kept {
        pair: TokenPair { index, row, prompt, chosen, rejected },
        cut,
        prompt: whole_prompt,
    }
}

/// The three texts of a pair that are tokenised: the prompt, and the prompt with each completion.
struct Texts {
    prompt: String,
    joint: [String; 2],
    /// True if the tokenizer adds special tokens around the texts.
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

/// Renders the messages of a pair. The prompt always ends with the generation prompt, even after an
/// assistant's turn, as in TRL.
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

/// A pair with its index and the index of its row.
type Numbered = (usize, usize, PreferencePair);

/// Tokenises pairs until `max_pairs` are kept, and collects the kept and the dropped ones. `rows`
/// yields each pair with the index of its row, and no more pairs are read than necessary.
///
/// # Errors
/// Fails if `rows` yields an error, or in the same cases as [`tokenise_pair`].
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

/// A hash of ids that is the same in every process.
fn hash(ids: &[i64]) -> u64 {
    let mut hasher = DefaultHasher::new();
    ids.hash(&mut hasher);
    hasher.finish()
}

/// Tokenises pairs in parallel until `max_pairs` are kept, and passes the result of each pair to
/// `take`, in order. `rows` yields each pair with the index of its row, and no more pairs are read
/// than necessary.
///
/// # Errors
/// Fails if `rows` yields an error, if `take` fails, or in the same cases as [`tokenise_pair`].
pub fn each(
    tokenizer: &Tokenizer,
    rows: impl IntoIterator<Item = Result<(usize, PreferencePair)>>,
    limits: &Limits,
    max_pairs: Option<usize>,
    mut take: impl FnMut(Numbered, Outcome) -> Result<()>,
) -> Result<()> {
    /// Number of pairs that are tokenised in parallel: enough work for all cores, without using
    /// much memory.
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
        // Outcomes are handled in order, so that the first of several errors is returned.
        for (numbered, outcome) in chunk.into_iter().zip(outcomes) {
            let outcome = outcome?;
            kept += usize::from(matches!(outcome, Outcome::Kept { .. }));
            take(numbered, outcome)?;
        }
    }
}

/// Formats one pair as text for the log. The text that is trained on is between ⟨ and ⟩.
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
