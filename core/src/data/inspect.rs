//! Inspects a data set: counts pairs, duplicates and contradictions, measures lengths, and reports
//! which pairs a run would use, truncate or drop.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap, HashSet};
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

/// The settings of an inspection.
#[derive(Debug)]
pub struct InspectSpec<'a> {
    /// Splits to inspect, e.g. `test` or `train[:100]`. `None` inspects all splits of the data set.
    pub splits: Option<Vec<String>>,
    /// The model's tokenizer. Without a tokenizer, lengths are in characters, and the report does
    /// not say which pairs a run would truncate or drop.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Length limits and other settings for tokenising pairs.
    pub limits: Limits,
    /// Maximum number of pairs to read from each split; `None` for all.
    pub max_pairs: Option<usize>,
    /// Number of example pairs to include from each split.
    pub examples: usize,
}

/// The report on a data set.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// The unit of lengths: `tokens` or `characters`.
    pub unit: &'static str,
    /// Maximum total number of tokens in a prompt and its completion, as configured for the run.
    pub max_length: usize,
    /// Maximum number of tokens in a prompt, as configured for the run.
    pub max_prompt_length: Option<usize>,
    /// The report on each split.
    pub splits: Vec<SplitReport>,
}

/// The report on a split.
#[derive(Debug, Serialize)]
pub struct SplitReport {
    /// Name of the split, or an expression such as `train[:100]`.
    pub name: String,
    /// Description of the data.
    pub describes: String,
    /// Number of pairs that were read.
    pub pairs: usize,
    /// Number of pairs that consist of lists of messages. The remaining pairs are plain text.
    pub conversations: usize,
    /// Number of distinct prompts.
    pub prompts: usize,
    /// Number of clusters. Confidence intervals treat pairs of the same cluster as dependent.
    pub clusters: usize,
    /// Number of pairs in the largest cluster.
    pub largest_cluster: usize,
    /// Number of pairs that are identical to an earlier pair.
    pub repeated: usize,
    /// Number of pairs that equal an earlier pair after swapping chosen and rejected.
    pub contradicted: usize,
    /// Number of pairs whose chosen and rejected completions are identical.
    pub identical: usize,
    /// Number of pairs with an empty prompt.
    pub without_prompt: usize,
    /// Number of pairs with an empty completion.
    pub without_completion: usize,
    /// Number of pairs whose completions both start with the whole prompt. The model would read the
    /// prompt twice.
    pub prompt_repeated: usize,
    /// Number of pairs whose prompt also occurs in the first inspected split. `None` for the first
    /// split.
    pub in_first: Option<usize>,
    /// Lengths of the prompts.
    pub prompt: Lengths,
    /// Lengths of the chosen completions.
    pub chosen: Lengths,
    /// Lengths of the rejected completions.
    pub rejected: Lengths,
    /// Lengths of the prompt plus the longer completion. `max_length` limits this sum.
    pub whole: Lengths,
    /// Numbers of pairs that a run would use, truncate or drop. `None` without a tokenizer.
    pub used: Option<TokenReport>,
    /// The first pairs.
    pub examples: Vec<Example>,
}

/// Numbers of pairs that a run would use, truncate or drop.
#[derive(Debug, Default, Serialize)]
pub struct TokenReport {
    /// Number of pairs that a run would use.
    pub kept: usize,
    /// Number of kept pairs that would be truncated to the maximum length.
    pub truncated: usize,
    /// Warnings about the tokens of the kept pairs.
    #[serde(flatten)]
    pub findings: Findings,
    /// Number of dropped pairs, by reason.
    pub dropped: BTreeMap<SkipReason, usize>,
}

/// A pair as the model receives it.
#[derive(Debug, Serialize)]
pub struct Example {
    /// Row number of the pair in the split.
    pub index: usize,
    /// The reason why a run would drop the pair, or `None` if the pair would be used.
    pub dropped: Option<SkipReason>,
    /// The prompt as text, including special tokens.
    pub prompt: String,
    /// The chosen completion.
    pub chosen: Completion,
    /// The rejected completion.
    pub rejected: Completion,
}

/// A completion of an example pair, as text and as the token sequence that the model receives.
#[derive(Debug, Serialize)]
pub struct Completion {
    /// Text of the completion.
    pub text: String,
    /// Token ids of the prompt followed by the completion.
    pub ids: Vec<i64>,
    /// Loss mask: 0 for each token of the prompt and 1 for each token of the completion.
    pub mask: Vec<u8>,
}

/// Reads a data set and reports on its contents.
///
/// # Errors
/// Fails if a split does not exist or cannot be read, or if the tokenizer or its chat template
/// cannot process a pair.
pub fn inspect(
    dataset: &dyn Dataset,
    spec: &InspectSpec<'_>,
    progress: &mut dyn Progress,
) -> Result<Inspection> {
    let names = spec
        .splits
        .clone()
        .unwrap_or_else(|| dataset.splits().into_iter().map(|s| s.name).collect());
    let mut first = None;
    let splits = names
        .iter()
        .map(|name| {
            let (report, prompts) = split(dataset, name, spec, first.as_ref(), progress)?;
            first.get_or_insert(prompts);
            Ok(report)
        })
        .collect::<Result<_>>()?;
    let unit = if spec.tokenizer.is_some() { "tokens" } else { "characters" };
    Ok(Inspection {
        unit,
        max_length: spec.limits.max_length,
        max_prompt_length: spec.limits.max_prompt_length,
        splits,
    })
}

/// Number of pairs to process in parallel: enough to keep every core busy, but few enough to fit
/// into memory.
const CHUNK: usize = 1024;

/// Delay before a progress bar is shown.
const PROGRESS_DELAY: Duration = Duration::from_secs(1);

fn split(
    dataset: &dyn Dataset,
    name: &str,
    spec: &InspectSpec<'_>,
    first: Option<&HashSet<u64>>,
    progress: &mut dyn Progress,
) -> Result<(SplitReport, HashSet<u64>)> {
    let info = super::info(dataset, name)?;
    let total = info.pairs.map(|n| n.min(spec.max_pairs.unwrap_or(n)) as u64);
    let (began, mut shown) = (Instant::now(), false);
    let mut rows =
        super::rows(dataset, name)?.take(spec.max_pairs.unwrap_or(usize::MAX)).enumerate();
    let mut tally =
        Tally { used: spec.tokenizer.map(|_| TokenReport::default()), ..Tally::default() };
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
            chunk.par_iter().map(|(index, row, pair)| measure(*index, *row, pair, spec)).collect();
        for ((.., pair), measured) in chunk.iter().zip(measured) {
            tally.add(pair, measured?, first, spec);
        }
        let done = chunk.len() as u64;
        if shown {
            progress.advance(done, &[]);
        } else if began.elapsed() > PROGRESS_DELAY {
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

/// The lengths of a pair and the outcome of tokenising it.
struct Measured {
    cluster: String,
    lengths: [u64; 3],
    outcome: Option<Outcome>,
    example: Option<Example>,
}

fn measure(
    number: usize,
    row: usize,
    pair: &PreferencePair,
    spec: &InspectSpec<'_>,
) -> Result<Measured> {
    let (shown, index) = (number < spec.examples, row);
    let cluster = pair.identity().cluster;
    let Some(tokenizer) = spec.tokenizer else {
        let texts = [&pair.prompt, &pair.chosen, &pair.rejected];
        let plain =
            |text: &Text| Completion { text: readable(text), ids: Vec::new(), mask: Vec::new() };
        let example = shown.then(|| Example {
            index,
            dropped: None,
            prompt: readable_prompt(pair),
            chosen: plain(&pair.chosen),
            rejected: plain(&pair.rejected),
        });
        return Ok(Measured { cluster, lengths: texts.map(characters), outcome: None, example });
    };
    let (whole, prompt) = match whole_pair(tokenizer, number, row, pair, &spec.limits)? {
        Ok(whole) => whole,
        Err(why) => {
            return Ok(Measured {
                cluster,
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
    let outcome = fit(whole, prompt, &spec.limits);
    let example = match (&outcome, uncut) {
        (_, None) => None,
        (Outcome::Kept { pair, .. }, Some(_)) => Some(example(pair, None)?),
        (Outcome::Dropped(why), Some(uncut)) => Some(example(&uncut, Some(*why))?),
    };
    Ok(Measured { cluster, lengths, outcome: Some(outcome), example })
}

/// Formats a prompt or completion for display, without a chat template.
fn readable(text: &Text) -> String {
    match text {
        Text::Plain(text) => text.clone(),
        Text::Messages(messages) => {
            messages.iter().map(readable_message).collect::<Vec<_>>().join("\n")
        }
    }
}

/// Formats a message with all its fields, e.g. `user: Hello`.
fn readable_message(message: &Message) -> String {
    let extras: String = message
        .extras()
        .map(|(name, value)| format!("\n  {name}: {}", readable_value(value)))
        .collect();
    format!("{}: {}{extras}", message.role(), message.text())
}

fn readable_value(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Formats a prompt for display. The tools and variables for the chat template come first.
fn readable_prompt(pair: &PreferencePair) -> String {
    let args = &pair.template_args;
    let [tools_column, variables_column] = TemplateArgs::COLUMNS;
    let tools =
        args.tools().map(|tools| format!("{tools_column}: {}\n", Value::from(tools.to_vec())));
    let variables = (!args.variables().is_empty())
        .then(|| format!("{variables_column}: {}\n", Value::Object(args.variables().clone())));
    tools.into_iter().chain(variables).chain([readable(&pair.prompt)]).collect()
}

fn characters(text: &Text) -> u64 {
    match text {
        Text::Plain(text) => text.chars().count() as u64,
        Text::Messages(messages) => {
            let extras = |m: &Message| {
                m.extras()
                    .map(|(_, value)| readable_value(value).chars().count() as u64)
                    .sum::<u64>()
            };
            messages.iter().map(|m| m.text().chars().count() as u64 + extras(m)).sum()
        }
    }
}

/// The counts so far. Prompts and pairs are stored as 64-bit hashes. With ten million hashes, the
/// probability of a collision is about one in 300,000.
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
    /// Number of pairs in each cluster.
    clusters: HashMap<String, usize>,
    pair_hashes: HashSet<u64>,
    lengths: [Vec<u64>; 4],
    used: Option<TokenReport>,
    examples: Vec<Example>,
}

impl Tally {
    fn add(
        &mut self,
        pair: &PreferencePair,
        measured: Measured,
        first: Option<&HashSet<u64>>,
        spec: &InspectSpec<'_>,
    ) {
        let whole = pair;
        let PreferencePair { prompt, chosen, rejected, template_args: args, .. } = pair;
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
            chosen != rejected
                && self.pair_hashes.contains(&hash(&(prompt, rejected, chosen, args))),
        );
        self.repeated +=
            usize::from(!self.pair_hashes.insert(hash(&(prompt, chosen, rejected, args))));
        let prompt = hash(&(prompt, args));
        self.in_first += usize::from(first.is_some_and(|first| first.contains(&prompt)));
        self.prompts.insert(prompt);
        *self.clusters.entry(measured.cluster).or_default() += 1;
        let [p, c, r] = measured.lengths;
        self.lengths
            .iter_mut()
            .zip([p, c, r, p + c.max(r)])
            .for_each(|(all, length)| all.push(length));
        self.examples.extend(measured.example);
        let (Some(used), Some(tokenizer), Some(outcome)) =
            (&mut self.used, spec.tokenizer, measured.outcome)
        else {
            return;
        };
        match outcome {
            Outcome::Dropped(why) => *used.dropped.entry(why).or_default() += 1,
            Outcome::Kept { pair, cut, prompt } => {
                used.kept += 1;
                used.truncated += usize::from(cut.any());
                used.findings.add(tokenizer, whole, &pair, &prompt, spec.limits.context);
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
            clusters: self.clusters.len(),
            largest_cluster: self.clusters.values().copied().max().unwrap_or_default(),
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
