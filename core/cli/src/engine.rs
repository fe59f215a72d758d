//! Where the command hands over to the engine: what it asks for, fully resolved, and what it gets back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use reprpo_core::Result;
use reprpo_core::config::Experiment;
use reprpo_core::eval::{self, Evaluation, statistics::PairScore};
use reprpo_core::model::{Adapted, other_base, peft::Saved};
use reprpo_core::report::Progress;
use reprpo_core::session::{ChosenAdapter, Session};
use reprpo_core::train;

use crate::App;

/// How a run begins.
pub enum Start {
    /// In a new folder, which does not exist yet or is empty.
    New(PathBuf),
    /// From the last checkpoint of the run in this folder; `inexact` if it need not be what the checkpoint was made with.
    Resume { folder: PathBuf, inexact: bool },
}

impl Start {
    /// The run's folder.
    pub fn folder(&self) -> &Path {
        match self {
            Start::New(folder) | Start::Resume { folder, .. } => folder,
        }
    }
}

/// Trains, and judges the result where the experiment asks for it.
///
/// # Errors
/// What cannot be loaded, built or trained; `Error::interrupted` when `stop` turned true, after a checkpoint.
pub fn run(experiment: &Experiment, start: &Start, stop: &Arc<AtomicBool>, progress: &mut dyn Progress, app: &App<'_>) -> Result<Option<Evaluation>> {
    let start = match start {
        Start::New(folder) => train::Start::New(folder),
        Start::Resume { folder, inexact } => train::Start::Resume { folder, inexact: *inexact },
    };
    train::run(experiment, start, app.registry, stop, progress)
}

/// Judges the experiment's model on its data set: alone, or with `adapter` against itself without it.
///
/// # Errors
/// What cannot be loaded or scored; `Error::interrupted` when `stop` turned true.
pub fn evaluate(experiment: &Experiment, adapter: Option<&Path>, stop: &AtomicBool, progress: &mut dyn Progress, app: &App<'_>) -> Result<Evaluation> {
    let (session, adapted) = open(experiment, adapter, app)?;
    eval::evaluate(&session, [None, adapted.as_ref()], experiment, app.registry, stop, progress)
}

/// Scores every pair of the experiment's data set, or of the splits it names, with its model and `init_adapter`.
///
/// # Errors
/// What cannot be loaded or scored; `Error::interrupted` when `stop` turned true.
pub fn score(experiment: &Experiment, eos: bool, stop: &AtomicBool, progress: &mut dyn Progress, app: &App<'_>) -> Result<Vec<PairScore>> {
    let (mut session, adapted) = open(experiment, experiment.init_adapter.as_deref(), app)?;
    session.add_eos = eos;
    let mut scores = Vec::new();
    for split in eval::splits(session.dataset.as_ref(), &experiment.eval)? {
        let pairs = session.tokenise(&split.name, &experiment.train, None)?.pairs;
        progress.stage(&format!("score {}", split.name), Some(pairs.len() as u64));
        scores.extend(eval::score_pairs(&session.model, adapted.as_ref(), &pairs, experiment.eval.tokens, stop, progress)?);
        progress.finish();
    }
    Ok(scores)
}

/// The experiment's model and data, with the adapter of that folder attached.
fn open(experiment: &Experiment, adapter: Option<&Path>, app: &App<'_>) -> Result<(Session, Option<Adapted>)> {
    let saved = adapter.map(|dir| Saved::read(dir, app.registry)).transpose()?;
    let session = Session::open(experiment, app.registry)?;
    let (Some(saved), Some(dir)) = (saved, adapter) else { return Ok((session, None)) };
    if let Some(why) = other_base::warning(dir, &experiment.model, &session.source, &session.fingerprint)? {
        app.printer.note(&format!("warning: {why}"));
    }
    let chosen = ChosenAdapter::new(experiment, Some(saved), app.registry)?;
    let adapted = Adapted::attach(chosen.adapter.as_ref(), &session.model, session.model.info().layers, experiment.train.seed)?;
    if let Some(values) = chosen.values {
        adapted.restore(&values)?;
    }
    Ok((session, Some(adapted)))
}
