//! Where the command hands over to the engine: what it asks for, fully resolved, and what it gets
//! back.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use reprpo_core::Result;
use reprpo_core::config::{Experiment, Origin, Resolved};
use reprpo_core::eval::{self, Evaluation, Judged, SplitScores};
use reprpo_core::model::Adapted;
use reprpo_core::report::Progress;
use reprpo_core::run::{AdapterChoice, attach_saved};
use reprpo_core::session::Session;
use reprpo_core::text::Findings;

use crate::App;
use crate::trained::warn_of_other_base;

/// How many tokens a pair may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Longest {
    /// At most `train.max_length`, which a user or a run has set.
    Configured(Origin),
    /// No limit. A pair that is longer than the model's context is scored whole, with a warning.
    Whole,
}

impl Longest {
    /// The limit that a user or a run has set, or `Whole` if neither has.
    pub fn of(resolved: &Resolved) -> Self {
        match resolved.origins.get("train.max_length") {
            None | Some(Origin::Default) => Longest::Whole,
            Some(origin) => Longest::Configured(origin.clone()),
        }
    }

    /// Returns the experiment with this limit, and a line that states the limit.
    pub fn apply(&self, experiment: &Experiment) -> (Experiment, String) {
        let mut experiment = experiment.clone();
        let said = match self {
            Longest::Configured(origin) => {
                format!(
                    "a pair may have {} tokens (`train.max_length`, {origin})",
                    experiment.train.max_length
                )
            }
            Longest::Whole => {
                experiment.train.max_length = usize::MAX;
                "pairs are scored whole, however long they are".to_owned()
            }
        };
        (experiment, said)
    }
}

/// Judges the experiment's model on its data set. With `adapter`, compares the model with and
/// without it.
///
/// # Errors
/// What cannot be loaded or scored; `Error::interrupted` when `stop` turned true.
pub fn evaluate(
    experiment: &Experiment,
    longest: &Longest,
    adapter: Option<&Path>,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
    app: &App<'_>,
) -> Result<Evaluation> {
    let (session, adapted) = open(experiment, adapter, app)?;
    let (experiment, limit) = longest.apply(experiment);
    let judged = eval::read(&session, &experiment)?;
    app.printer.note(&limit);
    describe(&judged, app);
    eval::evaluate(
        &session,
        &judged,
        [None, adapted.as_ref()],
        &experiment,
        app.registry,
        stop,
        progress,
    )
}

/// True if some pairs of the split are dropped or cut.
fn is_reduced(split: &Judged) -> bool {
    split.data.dropped() + split.data.truncated() > 0
}

/// Prints which pairs are dropped or cut, and the warnings about the pairs that are scored.
pub fn describe(judged: &[Judged], app: &App<'_>) {
    let mut findings = Findings::default();
    for split in judged {
        findings.merge(&split.data.findings);
        if is_reduced(split) {
            app.printer.note(&split.describe());
        }
    }
    findings.lines().iter().for_each(|line| app.printer.note(line));
    if findings.identical > 0 {
        app.printer.note(&format!(
            "warning: pairs whose completions are the same tokens, once \
            cut, and so have equal scores: {}",
            findings.identical
        ));
    }
}

/// How plain text is scored.
#[derive(Clone, Copy, Debug)]
pub struct PlainText {
    /// True if an end-of-sequence token is scored behind a completion.
    pub eos: bool,
    /// True if the tokenizer adds its own special tokens.
    pub special_tokens: bool,
}

/// Scores every pair of the experiment's data set, or of the splits it names, with its model and
/// `init_adapter`.
///
/// # Errors
/// What cannot be loaded or scored; `Error::interrupted` when `stop` turned true.
pub fn score(
    experiment: &Experiment,
    longest: &Longest,
    text: PlainText,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
    app: &App<'_>,
) -> Result<Vec<SplitScores>> {
    let (mut session, adapted) = open(experiment, experiment.init_adapter.as_deref(), app)?;
    (session.add_eos, session.special_tokens) = (text.eos, text.special_tokens);
    let (experiment, limit) = longest.apply(experiment);
    let train = &experiment.train;
    let splits = eval::splits(session.dataset.as_ref(), &experiment.eval)?;
    let judged = splits
        .into_iter()
        .map(|info| Ok(Judged { data: session.tokenise_all(&info.name, train, None)?, info }))
        .collect::<Result<Vec<_>>>()?;
    if judged.iter().any(is_reduced) {
        app.printer.note(&limit);
    }
    describe(&judged, app);
    let mut scores = Vec::new();
    for Judged { info, data } in &judged {
        progress.stage(&format!("score {}", info.name), Some(data.pairs.len() as u64));
        let scored = eval::score_pairs(
            &session.model,
            adapted.as_ref(),
            &data.pairs,
            experiment.eval.tokens,
            stop,
            progress,
        )?;
        scores.push(SplitScores::new(&info.name, train.max_length, data, scored, None));
        progress.finish();
    }
    Ok(scores)
}

/// The experiment's model and data, with the adapter of that folder attached.
fn open(
    experiment: &Experiment,
    adapter: Option<&Path>,
    app: &App<'_>,
) -> Result<(Session, Option<Adapted>)> {
    let saved =
        adapter.map(|dir| AdapterChoice::saved(dir, experiment, app.registry)).transpose()?;
    let session = Session::open(experiment, app.registry)?;
    let (Some(saved), Some(dir)) = (saved, adapter) else { return Ok((session, None)) };
    warn_of_other_base(dir, experiment, &session.source, &session.fingerprint, app)?;
    let adapted = attach_saved(&saved, &session.model)?;
    Ok((session, Some(adapted)))
}
