//! The third phase of a run: training.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::assembled::Assembled;
use super::checkpoint;
use super::closing::History;
use super::folder::Folder;
use super::plan::Plan;
use super::record::{Recorder, Recorders, StepRecord};
use super::validation::Validation;
use crate::api::StepInfo;
use crate::error::{Context, Error, Fault, Result, quoted};
use crate::text::TokenPair;
use crate::train::{Accumulated, Phase, Steps, accumulate, learning_rate};

/// Trains `run` from the first step, or from the step of its checkpoint. Validates and writes
/// checkpoints into `folder` at the configured intervals. If `stop` becomes true, writes a
/// checkpoint and stops.
///
/// # Errors
/// Fails if a step or a validation fails, or if a file cannot be written. Returns
/// `Error::interrupted`, after writing a checkpoint, if `stop` became true.
pub fn fit(
    plan: &Plan<'_>,
    run: &mut Assembled,
    folder: &mut Folder,
    recorders: &mut Recorders<'_>,
    stop: &AtomicBool,
) -> Result<History> {
    let (train, pairs) = (&plan.experiment.train, &plan.pairs.pairs);
    let steps = Steps::new(pairs, train);
    let world = plan.session.model.world();
    let first = plan.first_step();
    world.at_step(first);
    if let Some(warning) = steps.warning() {
        recorders.message(&warning)?;
    }
    recorders.begin(first, steps.count)?;
    let (begin, mut seen, mut lacking) = (Instant::now(), 0, None);
    // The training speed excludes the time spent on validations.
    let (mut validations, mut validating) = (0, Duration::ZERO);
    let mut tokens: usize =
        (0..first).flat_map(|step| steps.pairs_of(step, pairs)).map(TokenPair::tokens).sum();
    let mut validation = Validation::new(plan)?;
    let mut step = first;
    // The learning rate is 0 in the first step of a warm-up, which then changes nothing.
    let mut is_at_reference = run.starts_at_reference
        && (0..first).all(|step| learning_rate(train, step, steps.count) == 0.0);
    run.objective.reference().set_equals_policy(is_at_reference);
    loop {
        if let Some(validation) =
            validation.as_mut().filter(|validation| validation.is_due(step, &steps))
        {
            let begin = Instant::now();
            match validation.validate(run, step, &steps, stop) {
                Ok(record) => recorders.validation(&record)?,
                Err(e) if e.fault() == Fault::Interrupted => {
                    // A resumed run repeats this validation first.
                    save(plan, run, folder, step, Some(validation))?;
                    return Err(interrupted(folder.path(), step, steps.count));
                }
                Err(e) => {
                    return Err(e.within(format!(
                        "the validation after step {step} failed ({})",
                        plan.experiment.methods()
                    )));
                }
            }
            (validations, validating) = (validations + 1, validating + begin.elapsed());
            if validation.is_exhausted() {
                break;
            }
        }
        if step == steps.count {
            break;
        }
        // All ranks stop before the same step.
        if world.any(stop.load(Ordering::Relaxed))? {
            save(plan, run, folder, step, validation.as_mut())?;
            return Err(interrupted(folder.path(), step, steps.count));
        }
        if step > first && train.checkpoint_every.is_some_and(|every| step.is_multiple_of(every)) {
            save(plan, run, folder, step, validation.as_mut())?;
        }
        let now = steps.pairs_of(step, pairs);
        let info = StepInfo { step, steps: steps.count, seed: train.seed };
        let lr = learning_rate(train, step, steps.count);
        let (sums, grad_norm) = take_step(plan, run, &now, info, steps.seed(step), lr)
            .within(|| format!("step {} failed ({})", step + 1, plan.experiment.methods()))?;
        if is_at_reference && lr > 0.0 {
            is_at_reference = false;
            run.objective.reference().set_equals_policy(false);
        }
        seen += now.len();
        tokens += now.iter().map(|pair| pair.tokens()).sum::<usize>();
        lacking = lacking.or(sums.left_out.map(|left_out| left_out.lacking));
        let record = StepRecord {
            step: step + 1,
            steps: steps.count,
            epoch: steps.epoch(step),
            loss: sums.loss,
            grad_norm,
            learning_rate: lr,
            num_tokens: tokens,
            metrics: sums.metrics,
            left_out: sums.left_out,
            pairs_per_second: seen as f64 / (begin.elapsed() - validating).as_secs_f64(),
        };
        recorders.step(&record)?;
        step += 1;
        world.at_step(step);
    }
    let seconds = (begin.elapsed() - validating).as_secs_f64();
    let mut speed =
        format!("trained on {seen} pairs in {seconds:.1} s, {:.2} pairs/s", seen as f64 / seconds);
    if validations > 0 {
        let s = if validations == 1 { "" } else { "s" };
        speed += &format!("; {validations} validation{s} took {:.1} s", validating.as_secs_f64());
    }
    recorders.message(&speed)?;
    let outcome = validation
        .map(|validation| validation.finish(run, step, &steps))
        .transpose()?
        .unwrap_or_default();
    for line in &outcome {
        recorders.message(line)?;
    }
    // The file also contains the steps before the run was resumed.
    History::read(folder.path(), steps.pairs_in(step), lacking, outcome)
}

/// Takes one optimiser step on `pairs`. Random numbers are a function of `seed`. Returns the loss,
/// the metrics and the gradient norm.
///
/// # Errors
/// Fails if the method or libtorch returns an error, or if the loss or the gradient is not finite.
pub(super) fn take_step(
    plan: &Plan<'_>,
    run: &mut Assembled,
    pairs: &[&TokenPair],
    info: StepInfo,
    seed: i64,
    lr: f64,
) -> Result<(Accumulated, f64)> {
    let train = &plan.experiment.train;
    run.objective.set_metrics(train.logs_metrics(info.step, info.steps));
    let sums = accumulate(
        &mut run.objective,
        &plan.session.model,
        &run.adapted,
        pairs,
        train.batch.pairs(),
        info,
        seed,
    )?;
    let clock = run.objective.clock().clone();
    let norm = clock.measure(Phase::Optimiser, || run.optimiser.clip(train.clip))?;
    if !norm.is_finite() {
        return Err(Error::new(format!(
            "the gradient norm is {norm} at a loss of {:.4}",
            sums.loss
        ))
        .hint("lower `train.lr`, or compute in float32 with `--dtype f32`"));
    }
    if info.step == 0 {
        let without = run.optimiser.without_gradient();
        if let Some(name) = without.first() {
            tracing::warn!(
                "{} trainable parameters received no gradient, e.g. `{name}`",
                without.len()
            );
        }
    }
    clock.measure(Phase::Optimiser, || run.optimiser.step(lr))?;
    Ok((sums, norm))
}

/// Writes a checkpoint after `step` finished steps. From then on, a failed run keeps its folder.
fn save(
    plan: &Plan<'_>,
    run: &mut Assembled,
    folder: &mut Folder,
    step: usize,
    validation: Option<&mut Validation<'_>>,
) -> Result<()> {
    if !plan.session.model.world().is_first() {
        return Ok(());
    }
    checkpoint::save(
        folder.path(),
        step,
        run,
        &plan.fingerprints,
        validation.as_ref().map(|validation| validation.best()),
    )?;
    if let Some(validation) = validation {
        validation.saved();
    }
    folder.keep();
    Ok(())
}

fn interrupted(folder: &Path, step: usize, steps: usize) -> Error {
    Error::interrupted(format!("interrupted after step {step} of {steps}"))
        .hint(format!("continue the run with `reprpo run --resume {}`", quoted(folder)))
}
