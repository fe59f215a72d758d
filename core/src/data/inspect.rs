//! What is in a data set: how many pairs, which of them repeat or contradict each other, how long
//! they are, and what a run would make of them.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashSet};
use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value;

use super::Lengths;
use crate::api::{Dataset, Message, PreferencePair, TemplateArgs, Text};
use crate::error::Result;
use crate::report::Progress;
use crate::text::{
    Findings, Limits, Outcome, SkipReason, TokenPair, Tokenizer, fit, repeats, whole_pair,
};

/// What an inspection is asked for.
#[derive(Debug)]
pub struct Asked<'a> {
    /// Splits, or parts of them; none = all that the data set has.
    pub splits: Option<Vec<String>>,
    /// What turns text into tokens; without one, lengths are characters and nothing is known of
    /// what a run cuts.
    pub tokenizer: Option<&'a Tokenizer>,
    /// How long things may be in a run.
    pub limits: Limits,
    /// The first so many pairs of each split; none = all.
    pub max_pairs: Option<usize>,
    /// How many pairs of each split are shown.
    pub examples: usize,
}

/// What is in a data set.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// What lengths count: `tokens` or `characters`.
    pub unit: &'static str,
    /// Most tokens of prompt and completion together in a run.
    pub max_length: usize,
    /// Most tokens of a prompt in a run.
    pub max_prompt_length: Option<usize>,
    /// A split each.
    pub splits: Vec<SplitReport>,
}

/// What is in a split.
#[derive(Debug, Serialize)]
pub struct SplitReport {
    /// Its name, or the part that was asked for.
    pub name: String,
    /// What it holds, for people.
    pub describes: String,
    /// How many pairs were read.
    pub pairs: usize,
    /// How many of them are conversations; the others are plain text.
    pub conversations: usize,
    /// Different prompts.
    pub prompts: usize,
    /// Pairs that are there already, to the letter.
    pub repeated: usize,
    /// Pairs that are there already with chosen and rejected the other way round.
    pub contradicted: usize,
    /// Pairs whose two completions are the same.
    pub identical: usize,
    /// Pairs without a prompt.
    pub without_prompt: usize,
    /// Pairs with a completion of no text.
    pub without_completion: usize,
    /// Pairs whose completions both begin with the whole prompt, which the model would then read
    /// twice.
    pub prompt_repeated: usize,
    /// Pairs whose prompt is in the first of the splits too; none in the first itself.
    pub in_first: Option<usize>,
    /// Lengths of the prompts.
    pub prompt: Lengths,
    /// Lengths of the preferred completions.
    pub chosen: Lengths,
    /// Lengths of the others.
    pub rejected: Lengths,
    /// Lengths of prompt and longer completion together, which is what a run limits.
    pub whole: Lengths,
    /// What a run would make of them; none where nothing turned them into tokens.
    pub used: Option<Used>,
    /// The first pairs.
    pub examples: Vec<Example>,
}

/// What a run makes of pairs.
#[derive(Debug, Default, Serialize)]
pub struct Used {
    /// Pairs that are trained on or scored.
    pub kept: usize,
    /// How many of those are cut to fit.
    pub truncated: usize,
    /// What those that are used are like in tokens.
    #[serde(flatten)]
    pub findings: Findings,
    /// Pairs that are not used, by reason.
    pub dropped: BTreeMap<SkipReason, usize>,
}

/// A pair as the model is given it.
#[derive(Debug, Serialize)]
pub struct Example {
    /// The place of its row in the split.
    pub index: usize,
    /// Why a run would drop it.
    pub dropped: Option<SkipReason>,
    /// What is read and not trained on, special tokens as they are written.
    pub prompt: String,
    /// The preferred sequence.
    pub chosen: Completion,
    /// The other one.
    pub rejected: Completion,
}

/// A completion, and the sequence of prompt and completion that it is trained in.
#[derive(Debug, Serialize)]
pub struct Completion {
    /// What is trained on.
    pub text: String,
    /// The sequence's token ids, prompt first.
    pub ids: Vec<i64>,
    /// 1 where a token is trained on, 0 where it is only read.
    pub mask: Vec<u8>,
}

/// Reads a data set and says what is in it.
///
/// # Errors
/// A split that is not there or cannot be read, and a pair that the tokenizer or its chat template
/// refuses.
pub fn inspect(
    dataset: &dyn Dataset,
    asked: &Asked<'_>,
    progress: &mut dyn Progress,
) -> Result<Inspection> {
    let names = asked
        .splits
        .clone()
        .unwrap_or_else(|| dataset.splits().into_iter().map(|s| s.name).collect());
    let mut first = None;
    let splits = names
        .iter()
        .map(|name| {
            let (report, prompts) = split(dataset, name, asked, first.as_ref(), progress)?;
            first.get_or_insert(prompts);
            Ok(report)
        })
        .collect::<Result<_>>()?;
    let unit = if asked.tokenizer.is_some() { "tokens" } else { "characters" };
    Ok(Inspection {
        unit,
        max_length: asked.limits.max_length,
        max_prompt_length: asked.limits.max_prompt_length,
        splits,
    })
}

/// Pairs that are looked at together: enough for every core, few enough to be held at once.
const CHUNK: usize = 1024;

/// A stage that is over sooner is not worth a bar.
const PATIENCE: Duration = Duration::from_secs(1);

fn split(
    dataset: &dyn Dataset,
    name: &str,
    asked: &Asked<'_>,
    first: Option<&HashSet<u64>>,
    progress: &mut dyn Progress,
) -> Result<(SplitReport, HashSet<u64>)> {
    let info = super::info(dataset, name)?;
    let total = info.pairs.map(|n| n.min(asked.max_pairs.unwrap_or(n)) as u64);
    let (began, mut shown) = (Instant::now(), false);
    let mut rows =
        super::rows(dataset, name)?.take(asked.max_pairs.unwrap_or(usize::MAX)).enumerate();
    let mut tally = Tally { used: asked.tokenizer.map(|_| Used::default()), ..Tally::default() };
    loop {
        let chunk = rows
            .by_ref()
            .take(CHUNK)
            .map(|(i, row)| row.map(|(row, pair)| (i, row, pair)))
            .collect::<Result<Vec<_>>>()?;
        if chunk.is_empty() {
            break;
        }
        let measured: Vec<Result<Measured>> =
            chunk.par_iter().map(|(index, row, pair)| measure(*index, *row, pair, asked)).collect();
        for ((.., pair), measured) in chunk.iter().zip(measured) {
            tally.add(pair, measured?, first, asked);
        }
        let done = chunk.len() as u64;
        if shown {
            progress.advance(done, &[]);
        } else if began.elapsed() > PATIENCE {
            progress.stage(&format!("inspect {name}"), total);
            progress.skip(tally.pairs as u64);
            shown = true;
        }
    }
    if shown {
        progress.finish();
    }
    Ok(tally.report(name, info.describes, first.is_some()))
}

/// One pair's lengths, and what a run makes of it.
struct Measured {
    lengths: [u64; 3],
    outcome: Option<Outcome>,
    example: Option<Example>,
}

fn measure(
    number: usize,
    row: usize,
    pair: &PreferencePair,
    asked: &Asked<'_>,
) -> Result<Measured> {
    let (shown, index) = (number < asked.examples, row);
    let Some(tokenizer) = asked.tokenizer else {
        let texts = [&pair.prompt, &pair.chosen, &pair.rejected];
        let plain =
            |text: &Text| Completion { text: written(text), ids: Vec::new(), mask: Vec::new() };
        let example = shown.then(|| Example {
            index,
            dropped: None,
            prompt: prompt_written(pair),
            chosen: plain(&pair.chosen),
            rejected: plain(&pair.rejected),
        });
        return Ok(Measured { lengths: texts.map(characters), outcome: None, example });
    };
    let (whole, prompt) = match whole_pair(tokenizer, number, row, pair, &asked.limits)? {
        Ok(whole) => whole,
        Err(why) => {
            return Ok(Measured {
                lengths: [0; 3],
                outcome: Some(Outcome::Dropped(why)),
                example: None,
            });
        }
    };
    let lengths = [&whole.prompt, &whole.chosen, &whole.rejected].map(|ids| ids.len() as u64);
    let example = |pair: &TokenPair, dropped: Option<SkipReason>| -> Result<Example> {
        let completion = |ids: &[i64]| -> Result<Completion> {
            let mask = [vec![0; pair.prompt.len()], vec![1; ids.len()]].concat();
            Ok(Completion { text: tokenizer.decode(ids)?, ids: [&pair.prompt, ids].concat(), mask })
        };
        Ok(Example {
            index,
            dropped,
            prompt: tokenizer.decode(&pair.prompt)?,
            chosen: completion(&pair.chosen)?,
            rejected: completion(&pair.rejected)?,
        })
    };
    let uncut = shown.then(|| whole.clone());
    let outcome = fit(whole, prompt, &asked.limits);
    let example = match (&outcome, uncut) {
        (_, None) => None,
        (Outcome::Kept { pair, .. }, Some(_)) => Some(example(pair, None)?),
        (Outcome::Dropped(why), Some(uncut)) => Some(example(&uncut, Some(*why))?),
    };
    Ok(Measured { lengths, outcome: Some(outcome), example })
}

/// A text as it can be read without a chat template.
fn written(text: &Text) -> String {
    match text {
        Text::Plain(text) => text.clone(),
        Text::Messages(messages) => {
            messages.iter().map(message_written).collect::<Vec<_>>().join("\n")
        }
    }
}

/// A message with all of its fields.
fn message_written(message: &Message) -> String {
    let extras: String = message
        .extras()
        .map(|(name, value)| format!("\n  {name}: {}", value_written(value)))
        .collect();
    format!("{}: {}{extras}", message.role(), message.text())
}

fn value_written(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A prompt below the tools and variables that its template is given.
fn prompt_written(pair: &PreferencePair) -> String {
    let args = &pair.template_args;
    let [tools_column, variables_column] = TemplateArgs::COLUMNS;
    let tools =
        args.tools().map(|tools| format!("{tools_column}: {}\n", Value::from(tools.to_vec())));
    let variables = (!args.variables().is_empty())
        .then(|| format!("{variables_column}: {}\n", Value::Object(args.variables().clone())));
    tools.into_iter().chain(variables).chain([written(&pair.prompt)]).collect()
}

fn characters(text: &Text) -> u64 {
    match text {
        Text::Plain(text) => text.chars().count() as u64,
        Text::Messages(messages) => {
            let extras = |m: &Message| {
                m.extras()
                    .map(|(_, value)| value_written(value).chars().count() as u64)
                    .sum::<u64>()
            };
            messages.iter().map(|m| m.text().chars().count() as u64 + extras(m)).sum()
        }
    }
}

/// What has been counted so far. Texts are kept as their hashes: of ten million pairs, two are
/// confused with a chance of one in 300,000.
#[derive(Default)]
struct Tally {
    pairs: usize,
    conversations: usize,
    repeated: usize,
    contradicted: usize,
    identical: usize,
    without_prompt: usize,
    without_completion: usize,
    prompt_repeated: usize,
    in_first: usize,
    prompts: HashSet<u64>,
    seen: HashSet<u64>,
    lengths: [Vec<u64>; 4],
    used: Option<Used>,
    examples: Vec<Example>,
}

impl Tally {
    fn add(
        &mut self,
        pair: &PreferencePair,
        measured: Measured,
        first: Option<&HashSet<u64>>,
        asked: &Asked<'_>,
    ) {
        let whole = pair;
        let PreferencePair { prompt, chosen, rejected, template_args: args } = pair;
        self.pairs += 1;
        self.conversations += usize::from(matches!(chosen, Text::Messages(_)));
        self.identical += usize::from(chosen == rejected);
        self.without_prompt += usize::from(characters(prompt) == 0);
        self.without_completion += usize::from(
            [chosen, rejected]
                .iter()
                .any(|text| matches!(text, Text::Plain(text) if text.is_empty())),
        );
        self.prompt_repeated += usize::from(repeats(chosen, prompt) && repeats(rejected, prompt));
        self.contradicted += usize::from(
            chosen != rejected && self.seen.contains(&hash(&(prompt, rejected, chosen, args))),
        );
        self.repeated += usize::from(!self.seen.insert(hash(&(prompt, chosen, rejected, args))));
        let prompt = hash(&(prompt, args));
        self.in_first += usize::from(first.is_some_and(|first| first.contains(&prompt)));
        self.prompts.insert(prompt);
        let [p, c, r] = measured.lengths;
        self.lengths
            .iter_mut()
            .zip([p, c, r, p + c.max(r)])
            .for_each(|(all, length)| all.push(length));
        self.examples.extend(measured.example);
        let (Some(used), Some(tokenizer), Some(outcome)) =
            (&mut self.used, asked.tokenizer, measured.outcome)
        else {
            return;
        };
        match outcome {
            Outcome::Dropped(why) => *used.dropped.entry(why).or_default() += 1,
            Outcome::Kept { pair, cut, prompt } => {
                used.kept += 1;
                used.truncated += usize::from(cut.any());
                used.findings.add(tokenizer, whole, &pair, &prompt, asked.limits.context);
            }
        }
    }

    fn report(self, name: &str, describes: String, compared: bool) -> (SplitReport, HashSet<u64>) {
        let [prompt, chosen, rejected, whole] = self.lengths.map(Lengths::of);
        let report = SplitReport {
            name: name.to_owned(),
            describes,
            pairs: self.pairs,
            conversations: self.conversations,
            prompts: self.prompts.len(),
            repeated: self.repeated,
            contradicted: self.contradicted,
            identical: self.identical,
            without_prompt: self.without_prompt,
            without_completion: self.without_completion,
            prompt_repeated: self.prompt_repeated,
            in_first: compared.then_some(self.in_first),
            prompt,
            chosen,
            rejected,
            whole,
            used: self.used,
            examples: self.examples,
        };
        (report, self.prompts)
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
