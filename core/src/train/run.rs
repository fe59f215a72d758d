//! A run from its configuration to the table: everything that can be refused is refused before the folder is made.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use super::closing::{Course, LEFT_OUT};
use super::fingerprints::{Begins, Fingerprints};
use super::folder::{Folder, is_empty};
use super::reference::Reference;
use super::transforms::{self, SavedTransforms};
use super::{Accumulated, AdamW, Group, LeftOut, Objective, Taps, accumulate, checkpoint, learning_rate, leave_flat_start, prior};
use crate::api::{Init, States, StepInfo, TransformCx};
use crate::config::{Choice, Experiment, Record, ReferenceModel, TrainConfig, paths};
use crate::data;
use crate::error::{Context, Error, Fault, Result, quoted};
use crate::eval::{self, Evaluation, Judged, evaluate};
use crate::ffi::{self, RngState};
use crate::fingerprint;
use crate::model::peft::{self, Base, Saved};
use crate::model::{Adapted, Model};
use crate::other_base;
use crate::plugin::faults;
use crate::registry::{Kind as PluginKind, Make, Registry};
use crate::report::Progress;
use crate::session::{ChosenAdapter, Session};
use crate::text::{Findings, TokenPair, Tokenised, show_example};

/// How a run begins.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// In a new folder, which does not exist yet or is empty.
    New(&'a Path),
    /// From the checkpoint of the run in this folder.
    Resume {
        /// The run's folder.
        folder: &'a Path,
        /// True to resume even if the data, the model or the configuration are not those of the checkpoint.
        inexact: bool,
    },
}

/// Trains an adapter, writes the run's folder, and judges the result where the experiment asks for it.
///
/// # Errors
/// What cannot be loaded, built or trained; `Error::interrupted` when `stop` turned true, after a checkpoint.
pub fn run(experiment: &Experiment, start: Start<'_>, registry: &Registry, stop: &AtomicBool, progress: &mut dyn Progress) -> Result<Option<Evaluation>> {
    let begin = Instant::now();
    let _rng = ForeignRng::keep()?;
    if let Start::New(folder) = start
        && folder.exists()
        && !is_empty(folder)
    {
        return Err(Error::new(format!("`{}` exists already", folder.display())).hint("give another `--out`, or remove it"));
    }
    // Without the lock, another process could replace the checkpoint while it is read.
    let (resumed, lock) = match start {
        Start::Resume { folder, .. } => {
            let lock = prior::lock(folder)?;
            (Some(checkpoint::latest(folder)?), lock)
        }
        Start::New(_) => (None, None),
    };
    let mut experiment = experiment.clone();
    if resumed.is_some() {
        // The fingerprints in the checkpoint are compared instead. They cover more.
        experiment.sources.forget_records();
    }
    let saved = experiment.init_adapter.as_deref().map(|dir| Saved::read(dir, registry)).transpose();
    let saved = saved.map_err(|e| explain(&experiment, "init_adapter", experiment.init_adapter.as_deref(), e))?;
    let transforms = experiment.init_transform.as_deref().map(SavedTransforms::read).transpose();
    let transforms = transforms.map_err(|e| explain(&experiment, "init_transform", experiment.init_transform.as_deref(), e))?;
    let begins = begins(&experiment, saved.as_ref(), transforms.as_ref())?;
    let chosen = ChosenAdapter::new(&experiment, saved, registry)?;
    progress.message(&format!("loading {}", experiment.model));
    let session = Session::open(&experiment, registry)?;
    experiment.model = session.source.pinned(&experiment.model);
    if let Some(json) = session.dataset.pinned() {
        let wrong = || Error::internal(format!("what dataset `{}` pins itself to is no JSON object", experiment.dataset.name));
        experiment.dataset.config = serde_json::from_str(&json).map_err(|e| wrong().because(e))?;
    }
    if session.model.device().is_cuda() {
        ffi::cuda_reset_peak(session.model.device())?;
    }
    let other_base = match &experiment.init_adapter {
        Some(adapter) => other_base::warning(adapter, &experiment.model, &session.source, &session.fingerprint)?,
        None => None,
    };
    let train = &experiment.train;
    let mut objective = objective(&experiment, &session.model, registry)?;
    faults::check()?;
    if let Some(saved) = transforms {
        saved.restore(&experiment, objective.taps())?;
    }
    let data = session.tokenise(&train.split, train, train.max_pairs)?;
    // The pairs that judge the result are read now too, so that a bad row is found before hours of training.
    let judged = if experiment.eval.enabled { eval::read(&session, &experiment)? } else { Vec::new() };
    let fingerprints =
        Fingerprints::new(&experiment, session.model.kind(), session.fingerprint.clone(), fingerprint::of_tokenizer(&session.tokenizer)?, &data.pairs, &begins);
    let inexact = match (start, resumed) {
        (Start::Resume { folder, inexact }, Some(step)) => checkpoint::check(folder, step, &fingerprints, inexact)?,
        _ => Vec::new(),
    };
    let depth = objective.depth(&session.model)?;
    let warnings = chosen.warnings(&session.model)?;
    let adapted = chosen.attach(&session.model, depth, train.seed)?;
    // The adapter as training finds it, once more, where that is not the base model.
    let as_found = || chosen.values.as_ref().map(|_| chosen.attach(&session.model, depth, train.seed)).transpose();
    if chosen.values.is_some() && train.reference == ReferenceModel::Start {
        objective.compare_with(Reference::with(as_found()?));
    }
    objective.reference().name_pairs(fingerprint::pair_names(&data.pairs));
    objective.adapted(&adapted);
    let at_reference = match &chosen.values {
        Some(_) => train.reference == ReferenceModel::Start,
        None => chosen.adapter.starts_as_identity(),
    };
    let moved = if resumed.is_none() && at_reference { leave_flat_start(objective.needs(), &adapted, train)? } else { None };
    let mut optimiser = optimiser(&objective, &adapted, train);
    faults::check()?;
    let parameters: Vec<(String, Tensor)> = trained(&adapted, &objective);
    let config = |folder: &Path| {
        let record = Record::new(folder, session.fingerprint.clone(), session.dataset.as_ref());
        paths::recorded(&experiment, folder, &record, registry)
    };
    let (mut folder, first) = match (start, resumed) {
        (Start::Resume { folder: path, .. }, Some(step)) => {
            checkpoint::restore(path, step, &parameters, &mut optimiser, objective.reference(), session.model.device(), &fingerprints)
                .within(|| format!("cannot resume the run in `{}`", path.display()))?;
            let folder = Folder::resume(path, step, lock)?;
            if !inexact.is_empty() {
                folder.rewrite(&config(path))?;
            }
            (folder, step)
        }
        (Start::New(path) | Start::Resume { folder: path, .. }, _) => (Folder::create(path, config)?, 0),
    };
    let inexact = (!inexact.is_empty()).then(|| {
        format!(
            "warning: resumed after step {first} although it differs from the checkpoint: {}; the result is not that of an uninterrupted run",
            inexact.join(", ")
        )
    });
    for line in inexact.into_iter().chain(other_base.map(|why| format!("warning: {why}"))) {
        folder.log(&line)?;
        progress.message(&line);
    }
    let unreadable = peft::unreadable(chosen.entry, chosen.adapter.as_ref(), &adapted, &session.model)?;
    let warnings = warnings.into_iter().chain(unreadable).map(|why| format!("warning: {why}"));
    let lines = opening(&session, train, &data, &judged, &adapted)?.into_iter().chain(moved.map(off_flat));
    for line in lines.chain(warnings) {
        folder.log(&line)?;
        progress.message(&line);
    }
    folder.log(&show_example(&session.tokenizer, &data.pairs[0]))?;
    folder.log(&format!("ready after {:.1} s", begin.elapsed().as_secs_f64()))?;

    let mut course = None;
    if objective.needs().evaluate_only {
        let line = "nothing is trained: the method takes no steps";
        folder.log(line)?;
        progress.message(line);
    } else {
        let mut trainer = Trainer {
            train,
            session: &session,
            adapted: &adapted,
            objective: &mut objective,
            optimiser: &mut optimiser,
            parameters: &parameters,
            fingerprints: &fingerprints,
            method: format!("intervention `{}` and adapter `{}`", experiment.intervention.name, experiment.adapter.name),
        };
        course = Some(trainer.train(&data.pairs, first, &mut folder, stop, progress).map_err(|e| match e.fault() {
            Fault::Interrupted => e,
            _ => e.hint(folder.remains()),
        })?);
    }

    // Written before the adapter, because the adapter's configuration marks the training as over.
    transforms::write(objective.taps(), &experiment, folder.path())?;
    peft::write(
        &folder.path().join("adapter"),
        chosen.entry,
        chosen.adapter.as_ref(),
        &adapted,
        &session.model,
        &Base::new(&experiment.model, &session.source),
    )?;
    folder.keep();
    checkpoint::discard(folder.path());
    if session.model.device().is_cuda() {
        // What training held is of no use to the larger batches of the evaluation.
        ffi::cuda_empty_cache()?;
    }
    let evaluation = if experiment.eval.enabled {
        let began = as_found()?;
        let evaluation = evaluate(&session, &judged, [began.as_ref(), Some(&adapted)], &experiment, registry, stop, progress).map_err(|e| {
            let run = folder.path().display();
            let outer = if e.fault() == Fault::Interrupted { "was interrupted" } else { "failed" };
            e.within(format!("the evaluation {outer}; the training is over and its adapter is in `{run}/adapter`"))
                .hint(format!("`reprpo eval {}` judges it", quoted(folder.path())))
        })?;
        evaluation.write(&folder.path().join("eval"))?;
        Some(evaluation)
    } else {
        None
    };
    let mut line = format!("{:.0} s in all", begin.elapsed().as_secs_f64());
    if let Some(peak) = peak_memory() {
        line += &format!(", peak memory {peak:.2} GB");
    }
    if session.model.device().is_cuda() {
        let card = ffi::cuda_memory(session.model.device())?;
        line += &format!(", on the card {:.2} GB in tensors, {:.2} GB held", card.peak_allocated as f64 / 1e9, card.peak_reserved as f64 / 1e9);
    }
    let verdict = course.map_or_else(Vec::new, |course| course.verdict(train, evaluation.as_ref().map(|e| &e.table)));
    for line in std::iter::once(line).chain(verdict) {
        folder.log(&line)?;
        progress.message(&line);
    }
    Ok(evaluation)
}

/// Evaluates a run whose training is over, as the run would have done at its end.
///
/// # Errors
/// Fails if the model, the data or the run's adapter cannot be loaded or scored; `Error::interrupted` when `stop` turned true.
pub fn judge(experiment: &Experiment, folder: &Path, registry: &Registry, stop: &AtomicBool, progress: &mut dyn Progress) -> Result<Evaluation> {
    let _lock = prior::lock(folder)?;
    progress.message(&format!("loading {}", experiment.model));
    let session = Session::open(experiment, registry)?;
    let attach = |dir: &Path| -> Result<Adapted> {
        let saved = Saved::read(dir, registry)?;
        // A saved adapter lists the modules that it is on, while the experiment may have an expression for them.
        let adapter = Choice { name: saved.entry.about.name.to_owned(), config: saved.config.clone() };
        let of_saved = Experiment { adapter, ..experiment.clone() };
        ChosenAdapter::new(&of_saved, Some(saved), registry)?.attach_whole(&session.model, experiment.train.seed)
    };
    let began = experiment.init_adapter.as_deref().map(attach).transpose()?;
    let adapted = attach(&folder.join("adapter"))?;
    let judged = eval::read(&session, experiment)?;
    let evaluation = evaluate(&session, &judged, [began.as_ref(), Some(&adapted)], experiment, registry, stop, progress)?;
    evaluation.write(&folder.join("eval"))?;
    checkpoint::discard(folder);
    Ok(evaluation)
}

/// Adds to an error about the path in `field` where that path came from.
fn explain(experiment: &Experiment, field: &str, path: Option<&Path>, e: Error) -> Error {
    experiment.sources.explain(field, &path.unwrap_or(Path::new("")).to_string_lossy(), e)
}

/// The fingerprints of the saved values that the run begins with.
fn begins(experiment: &Experiment, saved: Option<&Saved>, transforms: Option<&SavedTransforms>) -> Result<Begins> {
    let adapter = |saved: &Saved| fingerprint::of_tensors("a saved adapter", &Value::Object(saved.config.clone()), &saved.values);
    let adapter = saved.map(adapter).transpose()?;
    let transforms = transforms.map(|t| fingerprint::of_tensors("saved transforms", &Value::Null, t.values())).transpose()?;
    let reference = adapter.clone().filter(|_| experiment.train.reference == ReferenceModel::Start);
    Ok(Begins { start: adapter.into_iter().chain(transforms).collect(), reference })
}

/// The CPU's generator as the caller had it, which gets it back: a run seeds its own at every step.
struct ForeignRng(RngState);

impl ForeignRng {
    fn keep() -> Result<Self> {
        Ok(Self(RngState::of(Device::Cpu)?))
    }
}

impl Drop for ForeignRng {
    fn drop(&mut self) {
        if let Err(e) = self.0.restore() {
            tracing::warn!("the generator of random numbers is not what it was: {e}");
        }
    }
}

/// What the run begins with, in lines for the log.
fn opening(session: &Session, train: &TrainConfig, data: &Tokenised, judged: &[Judged], adapted: &Adapted) -> Result<Vec<String>> {
    let mut lines = vec![session.describes.clone()];
    lines.push(format!("{} pairs to train on, {} dropped, {} cut", data.pairs.len(), data.dropped(), data.truncated()));
    lines.extend(data.reasons().iter().map(|(why, n)| format!("dropped {n}: {why}")));
    lines.extend(judged.iter().filter(|split| split.data.dropped() + split.data.truncated() > 0).map(Judged::describe));
    if data.findings.identical > 0 {
        lines.push(format!("warning: pairs whose completions are the same tokens, which teach nothing: {}", data.findings.identical));
    }
    lines.extend(findings(session, train, data, judged)?.lines());
    lines.push(format!("{} adapted, {} trainable parameters", adapted.describe(session.model.info()), adapted.elements()));
    Ok(lines)
}

/// Findings about the pairs to train on and those that judge the result. If a split is used for both, only its pairs to train
/// on are counted, so that none counts twice.
fn findings(session: &Session, train: &TrainConfig, data: &Tokenised, judged: &[Judged]) -> Result<Findings> {
    let trained = data::named(session.dataset.as_ref(), &train.split)?;
    let mut all = data.findings.clone();
    for split in judged {
        let both = data::named(session.dataset.as_ref(), &split.info.name)?.iter().any(|name| trained.contains(name));
        if !both || data.findings.lines().is_empty() {
            all.merge(&split.data.findings);
        }
    }
    Ok(all)
}

/// The line that says that training does not begin at the reference itself.
fn off_flat(std: f64) -> String {
    format!("the loss is flat at the reference, so training begins beside it: noise of standard deviation {std} on the adapter, from `train.seed`")
}

/// Puts the method, the taps and their transforms together.
fn objective(experiment: &Experiment, model: &Model, registry: &Registry) -> Result<Objective> {
    let train = &experiment.train;
    let kind_error = |choice: &Choice| Error::internal(format!("`{}` is registered as another kind than it is", choice.name));
    let Make::Intervention(build) = registry.get(PluginKind::Intervention, &experiment.intervention.name)?.make else {
        return Err(kind_error(&experiment.intervention));
    };
    let intervention = build(&experiment.intervention.json(), model.info())?;
    let Make::Tap(build) = registry.get(PluginKind::Tap, &experiment.tap.name)?.make else { return Err(kind_error(&experiment.tap)) };
    let tap = build(&experiment.tap.json())?;
    let mut taps = Taps { sites: Vec::new(), pooling: tap.pooling(), transforms: Vec::new(), transform_of: Vec::new() };
    if intervention.needs().states == States::None {
        return Ok(Objective::new(intervention, taps));
    }
    taps.sites = tap.sites(model.info())?;
    let Make::Transform(build) = registry.get(PluginKind::Transform, &experiment.transform.name)?.make else {
        return Err(kind_error(&experiment.transform));
    };
    let kind = if model.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    let (embedding, unembedding) = model.embeddings();
    let mut by_width = HashMap::new();
    for site in &taps.sites {
        let width = model.info().width(site)?;
        if let Some(shared) = by_width.get(&width).filter(|_| train.share_transform) {
            taps.transform_of.push(*shared);
            continue;
        }
        let number = taps.transforms.len();
        let mut init = Init::new(train.seed, &format!("transform.{number}"), kind, model.device());
        let transform = build(&experiment.transform.json(), &TransformCx { site, width, embedding, unembedding }, &mut init)?;
        by_width.insert(width, number);
        taps.transform_of.push(number);
        taps.transforms.push(transform);
    }
    Ok(Objective::new(intervention, taps))
}

fn optimiser(objective: &Objective, adapted: &Adapted, train: &TrainConfig) -> AdamW {
    let mut groups = vec![Group { parameters: adapted.parameters(), scale: 1.0 }];
    let transform = objective.taps().parameters();
    if train.transform {
        groups.push(Group { parameters: transform, scale: train.transform_lr.map_or(1.0, |lr| lr / train.lr) });
    } else {
        for (_, tensor) in transform {
            let _ = tensor.set_requires_grad(false);
        }
    }
    AdamW::new(groups, train)
}

/// Everything that is trained, by names that cannot meet.
fn trained(adapted: &Adapted, objective: &Objective) -> Vec<(String, Tensor)> {
    let scoped = |scope: &'static str| move |(name, t): (String, Tensor)| (format!("{scope}.{name}"), t);
    adapted.parameters().into_iter().map(scoped("adapter")).chain(objective.taps().parameters().into_iter().map(scoped("transform"))).collect()
}

/// The loop over optimiser steps.
struct Trainer<'a> {
    train: &'a TrainConfig,
    session: &'a Session,
    adapted: &'a Adapted,
    objective: &'a mut Objective,
    optimiser: &'a mut AdamW,
    parameters: &'a [(String, Tensor)],
    fingerprints: &'a Fingerprints,
    method: String,
}

/// What one optimiser step did.
struct Done {
    loss: f64,
    grad_norm: f64,
    metrics: Vec<(String, f64)>,
    left_out: Option<LeftOut>,
}

impl Trainer<'_> {
    fn train(&mut self, pairs: &[TokenPair], first: usize, folder: &mut Folder, stop: &AtomicBool, progress: &mut dyn Progress) -> Result<Course> {
        let train = self.train;
        let step_pairs = train.batch * train.accumulate;
        let per_epoch = pairs.len().div_ceil(step_pairs);
        let steps = ((per_epoch as f64 * train.epochs).ceil() as usize).max(1);
        if (0..steps).all(|step| learning_rate(train, step, steps) == 0.0) {
            let text = format!(
                "warning: nothing is learnt: the warm-up begins at a learning rate of 0 and takes all of the run (steps: {steps}, pairs in a step: {step_pairs}); set `train.warmup=0`"
            );
            folder.log(&text)?;
            progress.message(&text);
        }
        progress.stage("train", Some(steps as u64));
        progress.skip(first as u64);
        let (begin, mut seen) = (Instant::now(), 0);
        let step_of = |step: usize| -> Vec<&TokenPair> {
            let order = order(pairs.len(), train, step / per_epoch);
            let within = (step % per_epoch) * step_pairs;
            order[within..(within + step_pairs).min(pairs.len())].iter().map(|i| &pairs[*i]).collect()
        };
        let mut tokens: usize = (0..first).flat_map(step_of).map(TokenPair::tokens).sum();
        let mut lacking = None;
        for step in first..steps {
            if stop.load(Ordering::Relaxed) {
                checkpoint::save(folder.path(), step, self.parameters, self.optimiser, self.objective.reference(), self.fingerprints)?;
                folder.keep();
                return Err(Error::interrupted(format!("interrupted after step {step} of {steps}"))
                    .hint(format!("`reprpo run --resume {}` goes on", quoted(folder.path()))));
            }
            let now = step_of(step);
            let lr = learning_rate(train, step, steps);
            // Dropout is a function of seed and step, so that a resumed run drops what an uninterrupted one does.
            tch::manual_seed((train.seed as i64).wrapping_mul(1_000_003).wrapping_add(step as i64));
            let done = self.step(&now, lr, StepInfo { step, steps }).within(|| format!("step {} failed, with {}", step + 1, self.method))?;
            seen += now.len();
            tokens += now.iter().map(|p| p.tokens()).sum::<usize>();
            let rate = seen as f64 / begin.elapsed().as_secs_f64();
            lacking = lacking.or(done.left_out.map(|l| l.lacking));
            folder.metrics(&line(step, epoch(step, pairs.len(), train), lr, tokens, &done))?;
            let mut fields = vec![("loss", done.loss)];
            if let Some((_, margin)) = done.metrics.iter().find(|(n, _)| n == "rewards/margins") {
                fields.push(("margin", *margin));
            }
            fields.push(("pairs/s", rate));
            progress.advance(1, &fields);
            if train.checkpoint_every.is_some_and(|every| (step + 1) % every == 0 && step + 1 < steps) {
                checkpoint::save(folder.path(), step + 1, self.parameters, self.optimiser, self.objective.reference(), self.fingerprints)?;
                folder.keep();
            }
        }
        progress.finish();
        let text = format!("trained on {seen} pairs in {:.1} s, {:.2} pairs/s", begin.elapsed().as_secs_f64(), seen as f64 / begin.elapsed().as_secs_f64());
        folder.log(&text)?;
        progress.message(&text);
        // From the file, which also holds the steps before an interruption.
        let all_seen: usize = (0..steps).map(|step| step_pairs.min(pairs.len() - (step % per_epoch) * step_pairs)).sum();
        Course::read(folder.path(), all_seen, lacking)
    }

    /// One optimiser step over `pairs`.
    fn step(&mut self, pairs: &[&TokenPair], lr: f64, info: StepInfo) -> Result<Done> {
        let Accumulated { loss, metrics, left_out } = accumulate(self.objective, &self.session.model, self.adapted, pairs, self.train.batch, info)?;
        let grad_norm = self.optimiser.clip(self.train.clip)?;
        if !grad_norm.is_finite() {
            return Err(Error::new(format!("the norm of the gradient is {grad_norm} at a loss of {loss:.4}"))
                .hint("lower `train.lr`, or compute in float32 with `--dtype f32`"));
        }
        if info.step == 0 {
            let without = self.optimiser.without_gradient();
            if let Some(name) = without.first() {
                tracing::warn!("{} trainable parameters get no gradient, `{name}` among them", without.len());
            }
        }
        self.optimiser.step(lr)?;
        Ok(Done { loss, grad_norm, metrics, left_out })
    }
}

/// The order of the pairs in an epoch: the data set's own, or shuffled by seed and epoch.
fn order(pairs: usize, train: &TrainConfig, epoch: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..pairs).collect();
    if train.shuffle {
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(train.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(epoch as u64)));
    }
    order
}

/// How many times the data was seen after `step`, counted in batches as transformers' Trainer does: the last step of an
/// epoch may hold fewer batches than the others.
fn epoch(step: usize, pairs: usize, train: &TrainConfig) -> f64 {
    let batches = pairs.div_ceil(train.batch);
    let per_epoch = pairs.div_ceil(train.batch * train.accumulate);
    let seen = ((step % per_epoch + 1) * train.accumulate).min(batches);
    (step / per_epoch) as f64 + seen as f64 / batches as f64
}

/// A line of `metrics.jsonl`, in TRL's names.
fn line(step: usize, epoch: f64, lr: f64, tokens: usize, done: &Done) -> Value {
    let mut line = Map::new();
    line.insert("step".to_owned(), json!(step + 1));
    line.insert("epoch".to_owned(), json!(epoch));
    line.insert("loss".to_owned(), json!(done.loss));
    line.insert("grad_norm".to_owned(), json!(done.grad_norm));
    line.insert("learning_rate".to_owned(), json!(lr));
    line.insert("num_tokens".to_owned(), json!(tokens));
    for (name, value) in &done.metrics {
        line.insert(name.clone(), json!(value));
    }
    if let Some(left_out) = &done.left_out {
        line.insert(LEFT_OUT.to_owned(), json!(left_out.pairs));
    }
    Value::Object(line)
}

/// The most memory this process has held, in GB, where the system says so.
fn peak_memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kb: f64 = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kb / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values are those that transformers 5.23's Trainer logs for `per_device_train_batch_size`,
    /// `gradient_accumulation_steps` and `num_train_epochs` of the same size.
    #[test]
    fn the_epoch_is_the_share_of_batches_seen() {
        let logged = |pairs: usize, batch: usize, accumulate: usize, steps: usize| -> Vec<f64> {
            let train = TrainConfig { batch, accumulate, ..TrainConfig::default() };
            (0..steps).map(|step| epoch(step, pairs, &train)).collect()
        };
        assert_eq!(logged(10, 2, 2, 5), [0.4, 0.8, 1.0, 1.4, 1.8]);
        // The last batch of an epoch may be smaller than the others, and counts as a whole one.
        assert_eq!(logged(9, 2, 2, 3), [0.4, 0.8, 1.0]);
        assert_eq!(logged(8, 2, 2, 4), [0.5, 1.0, 1.5, 2.0]);
        // Fewer pairs than a step takes.
        assert_eq!(logged(3, 2, 4, 2), [1.0, 2.0]);
        assert_eq!(logged(5, 1, 1, 6), [0.2, 0.4, 0.6, 0.8, 1.0, 1.2]);
    }
}
