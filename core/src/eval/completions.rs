//! Whether a model still speaks: the same prompts continued by the model that training began with,
//! and by what came of it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::samples::{Sample, SampleCompletions, SampledPrompt, StartedFrom};
use crate::api::{Dataset, SplitInfo, Text};
use crate::config::Experiment;
use crate::data;
use crate::error::{Error, Result};
use crate::generate::{Sampling, Voice, endless};
use crate::model::Adapted;
use crate::report::Progress;
use crate::session::Session;
use crate::text::{Outcome, tokenise_pair};

/// A prompt as the model is given it.
struct Asked {
    index: usize,
    shown: Text,
    ids: Vec<i64>,
}

/// Continues the first different prompts of one of `splits`, greedily: by the model with the
/// adapter that training `began` with or by the base model, and with `adapted`.
///
/// # Errors
/// A split that cannot be read, or what libtorch says; `Error::interrupted` when `stop` turned
/// true.
pub fn completions(
    session: &Session,
    splits: &[SplitInfo],
    [began, adapted]: [Option<&Adapted>; 2],
    experiment: &Experiment,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<Option<SampleCompletions>> {
    let Some(split) = asked_of(session.dataset.as_ref(), splits, &experiment.train.split)? else {
        return Ok(None);
    };
    let asked = prompts(session, split, experiment)?;
    let most = experiment.eval.completion_tokens;
    let sampling = Sampling { max_new_tokens: most, ..Sampling::default() };
    let voices = if adapted.is_some() { 2 } else { 1 };
    let (all, mut made) = (asked.len() * voices, 0);
    if session.stops.is_empty() {
        progress.message(&endless(most));
    }
    progress.stage("completions", Some((all * most) as u64));
    let (start, mut tokens) = (Instant::now(), 0);
    let rate = |tokens: usize| [("tokens/s", tokens as f64 / start.elapsed().as_secs_f64())];
    let mut say = |adapted: Option<&Adapted>, prompt: &Asked| -> Result<Sample> {
        let voice = Voice {
            model: &session.model,
            tokenizer: &session.tokenizer,
            stops: &session.stops,
            adapted,
        };
        let mut told = 0;
        let answer = voice.answer(&prompt.ids, sampling, &mut |_| {
            // One more call may follow the last token, with the rest of its text. It is not another
            // token.
            if told < most {
                (tokens, told) = (tokens + 1, told + 1);
                progress.advance(1, &rate(tokens));
            }
            !stop.load(Ordering::Relaxed)
        })?;
        if stop.load(Ordering::Relaxed) {
            return Err(Error::interrupted(format!(
                "interrupted after {made} of {all} completions"
            )));
        }
        made += 1;
        progress.advance((most - told) as u64, &rate(tokens));
        Ok(Sample { text: answer.text, tokens: answer.tokens, ended: answer.ended })
    };
    let mut answered = Vec::with_capacity(asked.len());
    for prompt in asked {
        let before = say(began, &prompt)?;
        let after = adapted.map(|adapted| say(Some(adapted), &prompt)).transpose()?;
        answered.push(SampledPrompt { index: prompt.index, prompt: prompt.shown, before, after });
    }
    progress.finish();
    let started_from = if began.is_some() { StartedFrom::InitAdapter } else { StartedFrom::Base };
    Ok(Some(SampleCompletions {
        split: split.name.clone(),
        max_new_tokens: most,
        started_from,
        prompts: answered,
    }))
}

/// The split whose prompts are asked: `test` or a part of it, or else one that was not trained on,
/// or else the first.
fn asked_of<'a>(
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

/// The first different prompts among the pairs that are judged, tokenised without a completion and
/// cut as in training. The prompt of a pair may be shorter, because a completion can change the
/// last tokens of its prompt.
fn prompts(session: &Session, split: &SplitInfo, experiment: &Experiment) -> Result<Vec<Asked>> {
    let (config, limits) = (&experiment.eval, session.limits(&experiment.train));
    let (mut asked, mut seen) = (Vec::new(), HashSet::new());
    for (number, row) in data::rows(session.dataset.as_ref(), &split.name)?
        .enumerate()
        .take(config.max_pairs.unwrap_or(usize::MAX))
    {
        if asked.len() == config.completions {
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
        if seen.insert(ids.clone()) {
            asked.push(Asked { index, shown: pair.prompt, ids });
        }
    }
    Ok(asked)
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
    fn prompts_are_those_of_the_test_split_where_there_is_one() {
        let of = |names: &[&str], trained: &str| {
            let splits: Vec<SplitInfo> = names
                .iter()
                .map(|n| SplitInfo { name: (*n).to_owned(), describes: String::new(), pairs: None })
                .collect();
            asked_of(&Nothing, &splits, trained).unwrap().map(|s| s.name.clone())
        };
        assert_eq!(of(&["train", "oos", "test"], "train").as_deref(), Some("test"));
        assert_eq!(of(&["oos", "test[:5]"], "train").as_deref(), Some("test[:5]"));
        assert_eq!(of(&["train", "held"], "train[:5]").as_deref(), Some("held"));
        assert_eq!(of(&["more", "held"], "train[:5]+more[:5]").as_deref(), Some("held"));
        assert_eq!(of(&["train"], "train").as_deref(), Some("train"));
        assert_eq!(of(&[], "train"), None);
    }
}
