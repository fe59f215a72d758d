//! Tokenises preference pairs in the same way as TRL.
//!
//! This happens once, before training. A pair is dropped if its prompt leaves no room for a
//! completion. A pair with an empty completion is also dropped, because a completion without tokens
//! makes the loss NaN. Dropped pairs are counted by reason.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use rayon::prelude::*;
use serde::Serialize;

use super::token_pair::{Prompt, TokenPair};
use super::{Findings, Tokenizer};
use crate::api::{Message, PairIdentity, PreferencePair, TemplateArgs, Text};
use crate::error::{Error, Result};

/// Settings for tokenising pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of tokens of a prompt and a completion together. Completions that are too
    /// long are truncated at the end.
    pub max_length: usize,
    /// Maximum number of tokens of the prompt. Longer prompts are truncated at the start.
    pub max_prompt_length: Option<usize>,
    /// True if an EOS is appended to plain completions. For conversations, the chat template
    /// decides this.
    pub add_eos: bool,
    /// True if the tokenizer's special tokens, such as a BOS, are added to plain text. They are
    /// never added to conversations, because the chat template already adds them.
    pub special_tokens: bool,
    /// Context length of the model in tokens, if it is known. Longer pairs are counted, not
    /// truncated.
    pub context: Option<usize>,
}

impl Limits {
    /// No length limits. As in transformers, the tokenizer's special tokens are added to plain
    /// text. An EOS is appended to plain completions.
    pub const NONE: Self = Self {
        max_length: usize::MAX,
        max_prompt_length: None,
        add_eos: true,
        special_tokens: true,
        context: None,
    };
}

/// Reason for dropping a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipReason {
    /// The prompt leaves no room for a completion within `max_length`.
    PromptTooLong,
    /// The prompt has no messages. Or the prompt has no tokens, and the tokenizer has no BOS or EOS
    /// to use instead.
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

/// Number of tokens that were removed from each part of a pair to fit the limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Tokens removed from the start of the prompt.
    pub prompt: usize,
    /// Tokens removed from the end of the chosen completion.
    pub chosen: usize,
    /// Tokens removed from the end of the rejected completion.
    pub rejected: usize,
}

impl Cut {
    /// True if any token was removed.
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
        let cut = parts.into_iter().filter(|(_, n)| *n > 0).map(|(part, n)| {
            format!("{n} token{} removed from the {part}", if n == 1 { "" } else { "s" })
        });
        f.write_str(&cut.collect::<Vec<_>>().join(", "))
    }
}

/// The result of tokenising a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The pair is kept.
    Kept {
        /// Ids after truncation.
        pair: TokenPair,
        /// Number of tokens that were removed from each part.
        cut: Cut,
        /// The whole prompt, tokenised without a completion.
        prompt: Prompt,
    },
    /// The pair is dropped.
    Dropped(SkipReason),
}

/// A pair that was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DroppedPair {
    /// Index among the pairs that were read, as in [`TokenPair`].
    pub index: usize,
    /// Index of the row in the split's files, as in [`TokenPair`].
    pub row: usize,
    /// Reason for dropping the pair.
    pub why: SkipReason,
}

/// The tokenised pairs of a data set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokenised {
    /// The kept pairs, in the order of the data set.
    pub pairs: Vec<TokenPair>,
    /// For each kept pair, the number of tokens that were removed.
    pub cuts: Vec<Cut>,
    /// Hash of the whole prompt of each kept pair. Equal prompts have equal hashes.
    pub prompts: Vec<u64>,
    /// Cluster and digests of each pair that was read, including dropped pairs. Its position is
    /// [`TokenPair::index`].
    pub identities: Vec<PairIdentity>,
    /// The dropped pairs.
    pub dropped: Vec<DroppedPair>,
    /// Counts of kept pairs with unusual properties, for warnings.
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

    /// Number of kept pairs that were truncated.
    pub fn truncated(&self) -> usize {
        self.cuts.iter().filter(|cut| cut.any()).count()
    }
}

/// Tokenises one pair and applies the limits. `index` and `row` have the same meaning as in
/// [`TokenPair`].
///
/// # Errors
/// Fails in the same cases as [`whole_pair`], and if a token has no row in the model's embedding
/// matrix.
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

/// Tokenises one pair without length limits. Completions may be empty.
///
/// As in TRL, three strings are tokenised: the prompt, the prompt with the chosen completion, and
/// the prompt with the rejected completion. The longest common prefix of the three is the prompt of
/// the pair. The rest of each string is a completion. A token that spans the end of the prompt
/// therefore belongs to the completion. The generation prompt can contain text that a finished turn
/// lacks, such as the start of a thinking block. This text is dropped.
///
/// # Errors
/// Fails if the pair mixes plain text and messages. Also fails on messages if the model does not
/// have a chat template, or if the template raises an error.
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
                "make prompt, chosen and rejected either all plain text or all lists of messages",
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
        // To predict the first token of a completion, the model needs at least one token before it.
        let Some(first) = tokenizer.bos().or(tokenizer.eos()) else {
            return Ok(Err(SkipReason::EmptyPrompt));
        };
        prompt.push(first.id);
    }
    Ok(Ok((TokenPair { index, row, prompt, chosen, rejected }, Prompt { ids, shared })))
}

fn common_prefix(a: &[i64], b: &[i64]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Truncates a pair to fit the limits, or drops it. `whole_prompt` is the prompt tokenised without
/// a completion.
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

/// The three strings that are tokenised: the prompt, and the prompt with each completion.
struct Texts {
    prompt: String,
    joint: [String; 2],
    /// True if the tokenizer adds its special tokens to these strings.
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

/// Renders the messages of a pair. As in TRL, the prompt always ends with the generation prompt,
/// even if its last message is from the assistant.
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

/// The index of a pair, the index of its row, and the pair.
type Numbered = (usize, usize, PreferencePair);

/// Tokenises pairs until `max_pairs` are kept, and collects the kept and the dropped pairs. `rows`
/// yields each pair with the index of its row. No more rows are read than necessary.
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
        all.identities.push(pair.identity());
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

/// Hashes token ids. The result is the same in every process.
fn hash(ids: &[i64]) -> u64 {
    let mut hasher = DefaultHasher::new();
    ids.hash(&mut hasher);
    hasher.finish()
}

/// Tokenises pairs in parallel until `max_pairs` are kept, and passes each result to `take`, in
/// order. `rows` yields each pair with the index of its row. No more rows are read than necessary.
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
    /// Number of pairs that are tokenised in parallel. This is enough to keep all cores busy,
    /// without using much memory.
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
        // Errors are handled in the same order, so that the first error is returned.
        for (numbered, outcome) in chunk.into_iter().zip(outcomes) {
            let outcome = outcome?;
            kept += usize::from(matches!(outcome, Outcome::Kept { .. }));
            take(numbered, outcome)?;
        }
    }
}

/// Formats one pair as text for the log. ⟨ and ⟩ enclose the completions, which are trained on.
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
