//! A training run, which has four phases.
//!
//! 1. `plan` reads and checks all inputs of the run.
//! 2. `assemble` builds the adapter, the objective and the optimiser.
//! 3. `fit` takes the training steps.
//! 4. `judge` evaluates the trained adapter.
//!
//! The run's folder is created between the second and the third phase. The recorders in [`record`]
//! write its files.

mod adapter;
mod assemble;
pub mod assembled;
mod batch_size;
pub mod bench;
mod best;
mod checkpoint;
mod closing;
mod environment;
mod fingerprints;
mod fit;
mod fitting;
mod folder;
mod held_out;
mod judge;
mod labels;
mod marks;
mod motion;
mod plan;
mod preparation;
mod prior;
mod ranks;
pub mod record;
mod saved_transforms;
mod source_adapter;
mod start;
mod states;
mod training_pairs;
mod validation;

use std::cell::RefCell;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use tch::Device;

pub use adapter::{AdapterChoice, attach_saved};
use assemble::assemble;
use assembled::Assembled;
pub use environment::Environment;
use fit::fit;
use fitting::fit_statistics;
pub use fitting::preferences;
use folder::Folder;
pub use judge::judge_trained;
use judge::{judge, measure_motion};
use plan::Plan;
use preparation::prepare;
pub use prior::{Prior, clear, in_use};
use record::{Recorder, Recorders, TensorBoard, Terminal};
pub use start::Start;
pub use states::{StatesIndex, StatesSource, StatesSpec, write_states};
pub use training_pairs::training_pairs;

use crate::config::{Experiment, Record, paths};
use crate::data;
use crate::error::{Fault, Result};
use crate::eval::{EvalSplit, Evaluation};
use crate::ffi::{self, RngState};
use crate::memory;
use crate::model::peft::{self, Base};
use crate::reference::cached_bytes;
use crate::registry::Registry;
use crate::report::{Progress, size};
use crate::session::device;
use crate::text::{Findings, show_example};
use crate::world;

/// Trains an adapter, writes the run's folder, and evaluates the result if `eval.enabled` is true.
///
/// # Errors
/// Fails if an input is invalid, if a training step or the evaluation fails, or if a file cannot be
/// written. If `stop` becomes true, writes a checkpoint and returns `Error::interrupted`.
pub fn run(
    experiment: &Experiment,
    start: &Start,
    registry: &Registry,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<Option<Evaluation>> {
    // `device` loads CUDA. This must happen before the first operation of libtorch.
    device(&experiment.device)?;
    let _rng = ForeignRng::keep()?;
    let world = world::current();
    ranks::check(experiment, &world)?;
    let (start, _temporary) = ranks::place(start, &world)?;
    let mut plan = Plan::new(experiment, &start, registry, progress)?;
    ranks::agree(&plan.fingerprints, &world)?;
    let mut run = assemble(&mut plan)?;

    let (mut folder, files) = open_folder(&mut plan)?;
    let progress = RefCell::new(progress);
    let mut recorders = Recorders::default();
    recorders.add(files.log);
    recorders.add(files.jsonl);
    if plan.experiment.train.tensorboard {
        recorders.add(TensorBoard::create(folder.path())?);
    }
    recorders.add(Terminal::new(&progress));
    opening(&plan, &run, &mut recorders)?;
    let fitted = fit_statistics(&mut plan, &mut run, &folder, stop, &mut **progress.borrow_mut());
    for line in fitted? {
        recorders.message(&line)?;
    }

    let mut history = None;
    if run.objective.needs().evaluate_only {
        let unvalidated = plan.experiment.train.validate_every.map_or("", |_| " or validated");
        recorders.message(&format!(
            "nothing is trained{unvalidated}, because the method has no training steps"
        ))?;
    } else {
        let prepared = prepare(&plan, &mut run, stop, &mut **progress.borrow_mut());
        let trained = prepared.and_then(|line| {
            line.map_or(Ok(()), |line| recorders.message(&line))?;
            fit(&plan, &mut run, &mut folder, &mut recorders, stop)
        });
        history = Some(trained.map_err(|e| {
            if e.fault() == Fault::Interrupted { e } else { e.hint(folder.remains()) }
        })?);
    }
    save(&plan, &run, &mut folder)?;

    // The summary marks the evaluation as complete, so the states are written before it.
    measure_motion(&plan, &run, stop, &mut **progress.borrow_mut())?;
    let evaluation = judge(&plan, &run, stop, &mut **progress.borrow_mut())?;
    if let Some(evaluation) = &evaluation {
        recorders.evaluation(evaluation)?;
    }
    recorders.message(&costs(&plan, &mut run)?)?;
    let table = evaluation.as_ref().map(|e| &e.table);
    for line in
        history.into_iter().flat_map(|history| history.verdict(&plan.experiment.train, table))
    {
        recorders.message(&line)?;
    }
    recorders.close()?;
    Ok(evaluation)
}

/// Creates the run's folder, or opens it if the run is resumed.
fn open_folder(plan: &mut Plan<'_>) -> Result<(Folder, folder::Files)> {
    let lock = plan.checkpoint.as_mut().and_then(|resumed| resumed.lock.take());
    let config = |folder: &Path| {
        let record =
            Record::new(folder, plan.session.fingerprint.clone(), plan.session.dataset.as_ref());
        paths::recorded(&plan.experiment, folder, &record, plan.registry)
    };
    match &plan.checkpoint {
        None => {
            let opened = Folder::create(&plan.folder, config)?;
            Environment::current(plan.session.model.device()).write(opened.0.path())?;
            Ok(opened)
        }
        Some(resumed) => {
            let opened = Folder::resume(&plan.folder, resumed.step, lock)?;
            if !resumed.differences.is_empty() {
                opened.0.rewrite(&config(&plan.folder))?;
            }
            Ok(opened)
        }
    }
}

/// Records the inputs of the run, and warnings about them.
fn opening(plan: &Plan<'_>, run: &Assembled, recorders: &mut Recorders<'_>) -> Result<()> {
    let (session, data) = (&plan.session, &plan.pairs);
    let mut lines = Vec::new();
    lines.extend(ranks::describe(&plan.experiment.train, session.model.world()));
    if let Some(resumed) =
        plan.checkpoint.as_ref().filter(|resumed| !resumed.differences.is_empty())
    {
        lines.push(format!(
            "warning: resumed after step {} with inputs that have changed since the checkpoint: \
                {}; the result may differ from that of an uninterrupted run",
            resumed.step,
            resumed.differences.join(", ")
        ));
    }
    lines.extend(plan.batch_size.clone());
    lines.extend(plan.base_warning.iter().map(|why| format!("warning: {why}")));
    lines.push(session.describes.clone());
    lines.push(format!(
        "{} pairs to train on, {} dropped, {} truncated",
        data.pairs.len(),
        data.dropped(),
        data.truncated()
    ));
    if plan.experiment.train.swap_labels > 0.0 {
        lines.push(format!(
            "chosen and rejected are swapped in {} of the {} pairs to train on \
                (`train.swap_labels`); held-out pairs and the evaluation keep the true labels",
            plan.swapped_labels,
            data.pairs.len()
        ));
    }
    if !plan.held_out.is_empty() {
        lines.push(format!(
            "{} more pairs of `{}` are held out for validation, selected with `train.seed`",
            plan.held_out.len(),
            plan.experiment.train.split
        ));
    }
    lines.extend(data.reasons().iter().map(|(why, n)| format!("dropped {n}: {why}")));
    lines.extend(
        plan.eval_splits.iter().filter(|split| split.is_reduced()).map(EvalSplit::describe),
    );
    if data.findings.identical > 0 {
        lines.push(format!(
            "warning: pairs with no effect because both completions have the same tokens: {}",
            data.findings.identical
        ));
    }
    lines.extend(findings(plan)?.lines());
    lines.push(format!(
        "{} adapted, {} trainable parameters",
        run.adapted.describe(session.model.info()),
        run.adapted.elements()
    ));
    lines.extend(run.noise.map(|std| {
        format!(
            "the loss is flat at the reference, so training starts from a perturbed adapter: \
            noise with standard deviation {std} was added to it, seeded by `train.seed`"
        )
    }));
    let unreadable = peft::unreadable(
        plan.adapter.entry,
        plan.adapter.adapter.as_ref(),
        &run.adapted,
        &session.model,
    )?;
    lines.extend(
        plan.warnings.iter().cloned().chain(unreadable).map(|why| format!("warning: {why}")),
    );
    for line in lines {
        recorders.message(&line)?;
    }
    recorders.detail(&show_example(&session.tokenizer, &data.pairs[0]))?;
    recorders.detail(&format!("ready after {:.1} s", plan.begin.elapsed().as_secs_f64()))
}

/// Merges the findings about the training pairs and the evaluation pairs. A split that is used for
/// training and evaluation is only included once.
fn findings(plan: &Plan<'_>) -> Result<Findings> {
    let (dataset, data) = (plan.session.dataset.as_ref(), &plan.pairs);
    let trained = data::named(dataset, &plan.experiment.train.split)?;
    let mut all = data.findings.clone();
    for split in &plan.eval_splits {
        let both = !split.is_shift
            && data::named(dataset, &split.info.name)?.iter().any(|name| trained.contains(name));
        if !both || data.findings.lines().is_empty() {
            all.merge(&split.data.findings);
        }
    }
    Ok(all)
}

/// Writes the trained adapter and transforms. The training is complete after this.
fn save(plan: &Plan<'_>, run: &Assembled, folder: &mut Folder) -> Result<()> {
    let (session, adapter) = (&plan.session, &plan.adapter);
    // The adapter must be written last, because its configuration marks the training as complete.
    saved_transforms::write(run.objective.taps(), &plan.experiment, folder.path())?;
    run.adapted.edits().write(&folder.path().join("adapter"))?;
    let base = Base::new(&plan.experiment.model, &session.source);
    peft::write(
        &folder.path().join("adapter"),
        adapter.entry,
        adapter.adapter.as_ref(),
        &run.adapted,
        &session.model,
        &base,
    )?;
    folder.keep();
    checkpoint::discard(folder.path());
    if session.model.device().is_cuda() {
        // Release the memory that the allocator cached during training. The evaluation cannot reuse
        // it, because its batch sizes are different.
        ffi::cuda_empty_cache()?;
    }
    Ok(())
}

/// The last line of the run's output, which shows the run's duration, its peak memory, and the size
/// of the values of the reference that are kept in memory.
fn costs(plan: &Plan<'_>, run: &mut Assembled) -> Result<String> {
    let mut line = format!("{:.0} s in total", plan.begin.elapsed().as_secs_f64());
    if let Some(peak) = memory::process_peak() {
        line += &format!(", peak memory {:.2} GB", peak / 1e9);
    }
    let device = plan.session.model.device();
    if device.is_cuda() {
        let card = ffi::cuda_memory(device)?;
        line += &format!(
            ", on the GPU {:.2} GB in tensors, {:.2} GB reserved",
            card.peak_allocated as f64 / 1e9,
            card.peak_reserved as f64 / 1e9
        );
    }
    // The cache shares its values with the run. A value that the cache has removed is still kept by
    // the run.
    let kept = run.objective.reference().bytes().max(cached_bytes());
    if kept > 0 {
        line += &format!(", {} of reference values", size(kept as u64));
    }
    Ok(line)
}

/// The state of libtorch's random number generator on the CPU before the run. The run seeds the
/// generator at every step, and restores this state when it ends.
struct ForeignRng(RngState);

impl ForeignRng {
    fn keep() -> Result<Self> {
        Ok(Self(RngState::of(Device::Cpu)?))
    }
}

impl Drop for ForeignRng {
    fn drop(&mut self) {
        if let Err(e) = self.0.restore() {
            tracing::warn!("cannot restore the state of the random number generator: {e}");
        }
    }
}
