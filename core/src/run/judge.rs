//! The fourth phase of a run: evaluates the trained adapter.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::adapter::{AdapterChoice, attach_saved};
use super::assembled::Assembled;
use super::plan::Plan;
use super::training_pairs::training_pairs;
use super::{checkpoint, fitting, marks, motion};
use crate::config::Experiment;
use crate::error::{Context, Fault, Result, quoted};
use crate::eval::{Evaluation, Models, evaluate};
use crate::registry::Registry;
use crate::report::Progress;
use crate::session::Session;
use crate::shifts;
use crate::world;

/// Evaluates the trained adapter. Returns `None` if `eval.enabled` is false.
///
/// # Errors
/// Fails if memory runs out. Returns `Error::interrupted` if `stop` became true.
pub fn judge(
    plan: &Plan<'_>,
    run: &Assembled,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<Option<Evaluation>> {
    if !plan.experiment.eval.enabled {
        return Ok(None);
    }
    let preferences =
        fitting::preferences(&plan.experiment, &plan.folder, &plan.session, plan.registry)?;
    let models = Models {
        initial: run.initial.as_deref(),
        adapted: Some(&run.adapted),
        preferences: preferences.as_ref(),
    };
    let found = evaluate(
        &plan.session,
        &plan.eval_splits,
        models,
        &plan.experiment,
        plan.registry,
        stop,
        progress,
    );
    found.map(Some).map_err(|e| {
        let outer = if e.fault() == Fault::Interrupted { "was interrupted" } else { "failed" };
        e.within(format!(
            "the evaluation {outer}, but the trained adapter was saved in `{}/adapter`",
            plan.folder.display()
        ))
        .hint(format!("run `reprpo eval {}` to evaluate the adapter", quoted(&plan.folder)))
    })
}

/// Measures the motion of the hidden states, if it is due; see [`motion`].
///
/// # Errors
/// Fails if libtorch fails or if the file cannot be written. Returns `Error::interrupted` if `stop`
/// became true.
pub fn measure_motion(
    plan: &Plan<'_>,
    run: &Assembled,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<()> {
    let needs = run.objective.needs();
    if !plan.experiment.eval.enabled
        || needs.evaluate_only
        || !motion::is_due(&plan.experiment, needs.states)
    {
        return Ok(());
    }
    motion::record(
        &plan.session.model,
        &plan.eval_splits,
        [run.initial.as_deref(), Some(&run.adapted)],
        plan.experiment.eval.tokens,
        &plan.folder.join("eval"),
        stop,
        progress,
    )
}

/// Evaluates the run in `folder` after its training. The result is the same as if the run had
/// included the evaluation.
///
/// # Errors
/// Fails if the model, the data or the run's adapter cannot be loaded, or if scoring fails. Returns
/// `Error::interrupted` if `stop` became true.
pub fn judge_trained(
    experiment: &Experiment,
    folder: &Path,
    registry: &Registry,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<Evaluation> {
    let world = world::current();
    let _lock = if world.is_first() { marks::lock(folder)? } else { None };
    progress.message(&format!("loading {}", experiment.model));
    let session = Session::open(experiment, registry)?;
    let attach = |dir: &Path| attach_saved(&AdapterChoice::read(dir, registry)?, &session.model);
    let initial = experiment.init_adapter.as_deref().map(attach).transpose()?;
    let adapted = attach(&folder.join("adapter"))?;
    let training = training_pairs(&session, experiment, registry)?;
    let splits = shifts::read(&session, experiment, Some(&training), registry)?;
    let choice = &experiment.intervention;
    let needs =
        registry.intervention(&choice.name)?.build(&choice.json(), session.model.info())?.needs();
    // All ranks of a sharded model measure the motion, but only rank 0 writes to the folder.
    let measures = world.is_first() || session.model.is_sharded();
    if measures && !needs.evaluate_only && motion::is_due(experiment, needs.states) {
        let temporary =
            tempfile::tempdir().within(|| "cannot create a temporary folder".to_owned())?;
        let eval = match world.is_first() {
            true => folder.join("eval"),
            false => temporary.path().to_owned(),
        };
        motion::record(
            &session.model,
            &splits,
            [initial.as_ref(), Some(&adapted)],
            experiment.eval.tokens,
            &eval,
            stop,
            progress,
        )?;
    }
    let preferences = fitting::preferences(experiment, folder, &session, registry)?;
    let evaluation = evaluate(
        &session,
        &splits,
        Models {
            initial: initial.as_ref(),
            adapted: Some(&adapted),
            preferences: preferences.as_ref(),
        },
        experiment,
        registry,
        stop,
        progress,
    )?;
    if world.is_first() {
        evaluation.write(&folder.join("eval"))?;
        checkpoint::discard(folder);
    }
    Ok(evaluation)
}
