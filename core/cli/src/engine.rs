//! Evaluation and scoring for the commands that read pairs. The functions take a resolved
//! experiment and return the results.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use reprpo_core::Result;
use reprpo_core::config::{Experiment, Origin, Resolved};
use reprpo_core::data;
use reprpo_core::eval::{self, EvalSplit, Evaluation, Models, SplitScores, TrainingPairs};
use reprpo_core::model::Adapted;
use reprpo_core::report::Progress;
use reprpo_core::run::{self, AdapterChoice, attach_saved};
use reprpo_core::session::Session;
use reprpo_core::shifts;
use reprpo_core::text::Findings;

use crate::App;
use crate::trained::warn_of_other_base;

/// The maximum number of tokens in a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LengthLimit {
    /// At most `train.max_length` tokens, as set by the user or by the run's configuration.
    Configured(Origin),
    /// No limit. A pair that exceeds the model's context is scored in full, with a warning.
    Unlimited,
}

impl LengthLimit {
    /// Returns the configured limit, or `Unlimited` if `train.max_length` was not set.
    pub fn of(resolved: &Resolved) -> Self {
        match resolved.origins.get("train.max_length") {
            None | Some(Origin::Default) => LengthLimit::Unlimited,
            Some(origin) => LengthLimit::Configured(origin.clone()),
        }
    }

    /// Returns the experiment with this limit, and a line that states the limit.
    pub fn apply(&self, experiment: &Experiment) -> (Experiment, String) {
        let mut experiment = experiment.clone();
        let line = match self {
            LengthLimit::Configured(origin) => {
                format!(
                    "pairs are limited to {} tokens (`train.max_length`, {origin})",
                    experiment.train.max_length
                )
            }
            LengthLimit::Unlimited => {
                experiment.train.max_length = usize::MAX;
                "pairs are scored in full, without a length limit".to_owned()
            }
        };
        (experiment, line)
    }
}

/// A saved adapter to evaluate.
#[derive(Clone, Copy, Debug)]
pub struct SavedAdapter<'a> {
    /// Folder of the adapter.
    pub folder: &'a Path,
    /// The factors by which its change is multiplied; empty if the user gave none.
    pub coefficients: &'a [f64],
    /// The experiment of the run that trained the adapter, if it is known. Its training data is
    /// compared with the evaluated pairs.
    pub trained: Option<&'a Experiment>,
}

/// Evaluates the experiment's model on its data set. With `adapter`, compares the model with and
/// without it, once for each coefficient. `each` receives every evaluation as soon as it is
/// complete, with the coefficient. The coefficient is `None` for a base model, and is in the title
/// of the table if the user gave one.
///
/// # Errors
/// Fails if the model, the adapter or the data cannot be loaded, if the adapter does not accept a
/// coefficient, if libtorch fails, or if `each` fails. Returns `Error::interrupted` when `stop`
/// becomes true.
pub fn evaluate(
    experiment: &Experiment,
    length_limit: &LengthLimit,
    adapter: Option<SavedAdapter<'_>>,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
    app: &App<'_>,
    each: &mut dyn FnMut(Option<f64>, &Evaluation) -> Result<()>,
) -> Result<()> {
    let (mut session, attached) = open(experiment, adapter.map(|a| a.folder), app)?;
    let given = adapter.map_or(&[][..], |a| a.coefficients);
    let variants = match &attached {
        None => vec![(None, None)],
        Some((saved, adapted)) => (if given.is_empty() { &[1.0] } else { given })
            .iter()
            .map(|c| Ok((Some(*c), Some(adapted.with_coefficient(saved.adapter.as_ref(), *c)?))))
            .collect::<Result<Vec<_>>>()?,
    };
    let training = adapter.and_then(|a| a.trained).and_then(|trained| {
        training_pairs(&mut session, experiment, trained, app)
            .inspect_err(|e| {
                app.printer.note(&format!(
                    "warning: cannot compare the pairs with the training data: {}",
                    e.in_a_line()
                ));
            })
            .ok()
    });
    let (experiment, limit) = length_limit.apply(experiment);
    let splits = shifts::read(&session, &experiment, training.as_ref(), app.registry)?;
    app.printer.note(&limit);
    describe(&splits, app);
    // The adapter of a run is in a folder inside the run's folder.
    let of_run = adapter.and_then(|a| Some((a.trained?, a.folder.parent()?)));
    let preferences = match of_run {
        Some((trained, folder)) => run::preferences(trained, folder, &session, app.registry)?,
        None => None,
    };
    for (coefficient, adapted) in &variants {
        let models = Models {
            initial: None,
            adapted: adapted.as_ref(),
            preferences: preferences.as_ref().filter(|_| adapted.is_some()),
        };
        let mut evaluation =
            eval::evaluate(&session, &splits, models, &experiment, app.registry, stop, progress)?;
        if let Some(c) = coefficient.filter(|_| !given.is_empty()) {
            evaluation.table.title += &format!(", coefficient {c}");
        }
        each(*coefficient, &evaluation)?;
    }
    Ok(())
}

/// Reads the pairs that the run `trained` was trained on. If they are not in the data set that is
/// evaluated, opens the run's own data set.
fn training_pairs(
    session: &mut Session,
    experiment: &Experiment,
    trained: &Experiment,
    app: &App<'_>,
) -> Result<TrainingPairs> {
    if trained.dataset == experiment.dataset {
        return run::training_pairs(session, trained, app.registry);
    }
    let own = data::open(trained, app.registry)?;
    let evaluated = std::mem::replace(&mut session.dataset, own);
    let pairs = run::training_pairs(session, trained, app.registry);
    session.dataset = evaluated;
    Ok(pairs?.of_other_data_set())
}

/// Prints how many pairs are dropped or truncated, and warnings about the pairs that are scored.
pub fn describe(splits: &[EvalSplit], app: &App<'_>) {
    let mut findings = Findings::default();
    for split in splits {
        findings.merge(&split.data.findings);
        if split.is_reduced() {
            app.printer.note(&split.describe());
        }
    }
    findings.lines().iter().for_each(|line| app.printer.note(line));
    if findings.identical > 0 {
        app.printer.note(&format!(
            "warning: pairs whose completions are identical after cutting, so that their scores \
                are equal: {}",
            findings.identical
        ));
    }
}

/// How plain text is tokenised for scoring.
#[derive(Clone, Copy, Debug)]
pub struct PlainText {
    /// True if an end-of-sequence token is appended to each completion and scored with it.
    pub eos: bool,
    /// True if the tokenizer adds its own special tokens.
    pub special_tokens: bool,
}

/// Scores the pairs of the experiment's data set with the experiment's model and `init_adapter`. If
/// `eval.splits` is set, only the pairs of these splits are scored.
///
/// # Errors
/// Fails if the model, the adapter or the data cannot be loaded, or if libtorch fails. Returns
/// `Error::interrupted` when `stop` becomes true.
pub fn score(
    experiment: &Experiment,
    length_limit: &LengthLimit,
    text: PlainText,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
    app: &App<'_>,
) -> Result<Vec<SplitScores>> {
    let (mut session, adapted) = open(experiment, experiment.init_adapter.as_deref(), app)?;
    (session.add_eos, session.special_tokens) = (text.eos, text.special_tokens);
    let (experiment, limit) = length_limit.apply(experiment);
    let train = &experiment.train;
    let splits = eval::splits(session.dataset.as_ref(), &experiment.eval)?;
    let splits = splits
        .into_iter()
        .map(|info| {
            let data = session.tokenise_all(&info.name, train, None)?;
            Ok(EvalSplit::new(info, data))
        })
        .collect::<Result<Vec<_>>>()?;
    if splits.iter().any(EvalSplit::is_reduced) {
        app.printer.note(&limit);
    }
    describe(&splits, app);
    let mut scores = Vec::new();
    for split in &splits {
        let EvalSplit { info, data, .. } = split;
        progress.stage(&format!("score {}", info.name), Some(data.pairs.len() as u64));
        let scored = eval::score_pairs(
            &session.model,
            adapted.as_ref().map(|(_, adapted)| adapted),
            &data.pairs,
            experiment.eval.tokens,
            stop,
            progress,
        )?;
        scores.push(SplitScores::new(split, train.max_length, scored, None));
        progress.finish();
    }
    Ok(scores)
}

/// Opens the experiment's model and data. If the folder `adapter` is given, also attaches
/// the adapter in the folder.
fn open(
    experiment: &Experiment,
    adapter: Option<&Path>,
    app: &App<'_>,
) -> Result<(Session, Option<(AdapterChoice, Adapted)>)> {
    let saved =
        adapter.map(|dir| AdapterChoice::saved(dir, experiment, app.registry)).transpose()?;
    let session = Session::open(experiment, app.registry)?;
    let (Some(saved), Some(dir)) = (saved, adapter) else { return Ok((session, None)) };
    warn_of_other_base(dir, experiment, &session.source, &session.fingerprint, app)?;
    let adapted = attach_saved(&saved, &session.model)?;
    Ok((session, Some((saved, adapted))))
}
