//! Generates sample completions of a few prompts before and after training, to check that the model
//! still writes coherent text.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::samples::{Sample, SampleCompletions, SampledPrompt, StartedFrom};
use crate::api::{Dataset, SplitInfo, Text};
use crate::config::Experiment;
use crate::data;
use crate::error::{Error, Result};
use crate::generate::{Generator, Sampling, endless};
use crate::model::Adapted;
use crate::report::Progress;
use crate::session::Session;
use crate::text::{Outcome, tokenise_pair, whole_pair, with_instruction};

/// A prompt and its tokens as the model receives them.
struct PromptTokens {
    index: usize,
    text: Text,
    ids: Vec<i64>,
    /// The tokens with `eval.instruction`, if there is one.
    instructed: Option<Vec<i64>>,
}

/// Continues the first few distinct prompts of one of `splits` with greedy decoding. Each prompt is
/// continued with `initial` and, if given, with `adapted`. `initial` is the adapter that training
/// started from, or `None` for the base model. Returns `None` if there are no splits.
///
/// # Errors
/// Fails if the split cannot be read, or if libtorch fails. Returns `Error::interrupted` when
/// `stop` becomes true.
pub fn completions(
    session: &Session,
    splits: &[SplitInfo],
    [initial, adapted]: [Option<&Adapted>; 2],
    experiment: &Experiment,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<Option<SampleCompletions>> {
    let Some(split) = prompt_split(session.dataset.as_ref(), splits, &experiment.train.split)?
    else {
        return Ok(None);
    };
    let prompts = prompts(session, split, experiment)?;
    let most = experiment.eval.completion_tokens;
    let sampling = Sampling { max_new_tokens: most, ..Sampling::default() };
    let instructed = experiment.eval.instruction.is_some();
    let models = if adapted.is_some() || instructed { 2 } else { 1 };
    let (all, mut done) = (prompts.len() * models, 0);
    if session.stops.is_empty() {
        progress.message(&endless(most));
    }
    progress.stage("completions", Some((all * most) as u64));
    let (start, mut tokens) = (Instant::now(), 0);
    let rate = |tokens: usize| [("tokens/s", tokens as f64 / start.elapsed().as_secs_f64())];
    let mut sample = |adapted: Option<&Adapted>, ids: &[i64]| -> Result<Sample> {
        let generator = Generator {
            model: &session.model,
            tokenizer: &session.tokenizer,
            stops: &session.stops,
            adapted,
        };
        let mut reported = 0;
        let answer = generator.answer(ids, sampling, &mut |_| {
            // After the last token, `answer` may call this closure once more with the remaining
            // text. Do not count that call as a token.
            if reported < most {
                (tokens, reported) = (tokens + 1, reported + 1);
                progress.advance(1, &rate(tokens));
            }
            !stop.load(Ordering::Relaxed)
        })?;
        if session.model.stops(stop)? {
            return Err(Error::interrupted(format!(
                "interrupted after {done} of {all} completions"
            )));
        }
        done += 1;
        progress.advance((most - reported) as u64, &rate(tokens));
        Ok(Sample { text: answer.text, tokens: answer.tokens, ended: answer.ended })
    };
    let mut sampled = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        let before = sample(initial, &prompt.ids)?;
        let after = match (adapted, &prompt.instructed) {
            (None, None) => None,
            (adapted, instructed) => {
                Some(sample(adapted, instructed.as_deref().unwrap_or(&prompt.ids))?)
            }
        };
        sampled.push(SampledPrompt { index: prompt.index, prompt: prompt.text, before, after });
    }
    progress.finish();
    let started_from = if initial.is_some() { StartedFrom::InitAdapter } else { StartedFrom::Base };
    Ok(Some(SampleCompletions {
        split: split.name.clone(),
        max_new_tokens: most,
        started_from,
        instructed,
        prompts: sampled,
    }))
}

/// Chooses the split to take prompts from. Prefers `test` or a part of it, then the first split
/// that was not trained on, then the first split.
fn prompt_split<'a>(
    dataset: &dyn Dataset,
    splits: &'a [SplitInfo],
    trained: &str,
) -> Result<Option<&'a SplitInfo>> {
    let trained = data::named(dataset, trained)?;
    let of = splits
        .iter()
        .map(|split| Ok((split, data::named(dataset, &split.name)?)))
        .collect::<Result<Vec<_>>>()?;
    let first = |holds: &dyn Fn(&[String]) -> bool| {
        of.iter().find(|(_, names)| holds(names)).map(|(split, _)| *split)
    };
    let test = first(&|names| names == ["test"]);
    Ok(test
        .or_else(|| first(&|names| !names.iter().any(|name| trained.contains(name))))
        .or_else(|| splits.first()))
}

/// Collects the first distinct prompts of the evaluated pairs. The prompts are truncated as in
/// training, but tokenised without a completion. Training tokenises a prompt and its completion
/// together. The last tokens of the prompt can then differ, so the prompt may have fewer tokens.
fn prompts(
    session: &Session,
    split: &SplitInfo,
    experiment: &Experiment,
) -> Result<Vec<PromptTokens>> {
    let (config, limits) = (&experiment.eval, session.limits(&experiment.train));
    let (mut prompts, mut known) = (Vec::new(), HashSet::new());
    for (number, row) in data::rows(session.dataset.as_ref(), &split.name)?
        .enumerate()
        .take(config.max_pairs.unwrap_or(usize::MAX))
    {
        if prompts.len() == config.completions {
            break;
        }
        let (index, pair) = row?;
        let Outcome::Kept { pair: kept, prompt, .. } =
            tokenise_pair(&session.tokenizer, number, index, &pair, &limits)?
        else {
            continue;
        };
        let mut ids = if prompt.ids.is_empty() { kept.prompt } else { prompt.ids };
        ids.drain(..limits.max_prompt_length.map_or(0, |most| ids.len().saturating_sub(most)));
        if known.insert(ids.clone()) {
            let with = config.instruction.as_ref().map(|text| -> Result<Vec<i64>> {
                let pair = with_instruction(&session.tokenizer, &pair, text)?;
                let whole = whole_pair(&session.tokenizer, number, index, &pair, &limits)?;
                Ok(whole.map_or_else(|_| ids.clone(), |(_, prompt)| prompt.ids))
            });
            let instructed = with.transpose()?;
            prompts.push(PromptTokens { index, text: pair.prompt, ids, instructed });
        }
    }
    Ok(prompts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::PairIter;

    struct Nothing;

    impl Dataset for Nothing {
        fn splits(&self) -> Vec<SplitInfo> {
            Vec::new()
        }

        fn pairs(&self, _: &str) -> Result<PairIter<'_>> {
            Ok(Box::new(std::iter::empty()))
        }
    }

    #[test]
    fn prompts_come_from_the_test_split_if_there_is_one() {
        let of = |names: &[&str], trained: &str| {
            let splits: Vec<SplitInfo> = names
                .iter()
                .map(|n| SplitInfo { name: (*n).to_owned(), describes: String::new(), pairs: None })
                .collect();
            prompt_split(&Nothing, &splits, trained).unwrap().map(|s| s.name.clone())
        };
        assert_eq!(of(&["train", "oos", "test"], "train").as_deref(), Some("test"));
        assert_eq!(of(&["oos", "test[:5]"], "train").as_deref(), Some("test[:5]"));
        assert_eq!(of(&["train", "held"], "train[:5]").as_deref(), Some("held"));
        assert_eq!(of(&["more", "held"], "train[:5]+more[:5]").as_deref(), Some("held"));
        assert_eq!(of(&["train"], "train").as_deref(), Some("train"));
        assert_eq!(of(&[], "train"), None);
    }
}
