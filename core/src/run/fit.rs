//! The third phase of a run: the steps of training.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::assemble::Assembled;
use super::checkpoint;
use super::closing::Course;
use super::folder::Folder;
use super::plan::Plan;
use super::record::{Recorder, Recorders, StepRecord};
use crate::api::StepInfo;
use crate::config::TrainConfig;
use crate::error::{Context, Error, Result, quoted};
use crate::text::TokenPair;
use crate::train::{Accumulated, accumulate, learning_rate};

/// Trains `run` from its step `first` on. Writes a checkpoint into `folder` when one is due, and when `stop` is true.
///
/// # Errors
/// Fails if a step fails, or if a file cannot be written; `Error::interrupted` after a checkpoint if `stop` turned true.
pub fn fit(plan: &Plan<'_>, run: &mut Assembled, folder: &mut Folder, recorders: &mut Recorders<'_>, stop: &AtomicBool) -> Result<Course> {
    let (train, pairs) = (&plan.experiment.train, &plan.pairs.pairs);
    let schedule = Schedule::new(pairs.len(), train);
    let first = plan.first_step();
    if let Some(warning) = schedule.warning() {
        recorders.message(&warning)?;
    }
    recorders.begin(first, schedule.steps)?;
    let (begin, mut seen, mut lacking) = (Instant::now(), 0, None);
    let mut tokens: usize = (0..first).flat_map(|step| schedule.pairs_of(step, pairs)).map(TokenPair::tokens).sum();
    for step in first..schedule.steps {
        if stop.load(Ordering::Relaxed) {
            save(plan, run, folder, step)?;
            return Err(interrupted(folder.path(), step, schedule.steps));
        }
        let now = schedule.pairs_of(step, pairs);
        // Dropout is a function of seed and step, so that a resumed run drops what an uninterrupted one does.
        tch::manual_seed((train.seed as i64).wrapping_mul(1_000_003).wrapping_add(step as i64));
        let info = StepInfo { step, steps: schedule.steps };
        let lr = learning_rate(train, step, schedule.steps);
        let (sums, grad_norm) = take_step(plan, run, &now, info, lr).within(|| format!("step {} failed, with {}", step + 1, plan.experiment.methods()))?;
        seen += now.len();
        tokens += now.iter().map(|pair| pair.tokens()).sum::<usize>();
        lacking = lacking.or(sums.left_out.map(|left_out| left_out.lacking));
        let record = StepRecord {
            step: step + 1,
            steps: schedule.steps,
            epoch: schedule.epoch(step),
            loss: sums.loss,
            grad_norm,
            learning_rate: lr,
            num_tokens: tokens,
            metrics: sums.metrics,
            left_out: sums.left_out,
            pairs_per_second: seen as f64 / begin.elapsed().as_secs_f64(),
        };
        recorders.step(&record)?;
        if train.checkpoint_every.is_some_and(|every| (step + 1) % every == 0 && step + 1 < schedule.steps) {
            save(plan, run, folder, step + 1)?;
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    recorders.message(&format!("trained on {seen} pairs in {seconds:.1} s, {:.2} pairs/s", seen as f64 / seconds))?;
    // The file also holds the steps before an interruption.
    Course::read(folder.path(), schedule.pairs_in_all(), lacking)
}

/// Takes one optimiser step over `pairs`. Returns the sums over its pairs and the norm of the gradient.
fn take_step(plan: &Plan<'_>, run: &mut Assembled, pairs: &[&TokenPair], info: StepInfo, lr: f64) -> Result<(Accumulated, f64)> {
    let train = &plan.experiment.train;
    let sums = accumulate(&mut run.objective, &plan.session.model, &run.adapted, pairs, train.batch, info)?;
    let norm = run.optimiser.clip(train.clip)?;
    if !norm.is_finite() {
        return Err(Error::new(format!("the norm of the gradient is {norm} at a loss of {:.4}", sums.loss))
            .hint("lower `train.lr`, or compute in float32 with `--dtype f32`"));
    }
    if info.step == 0 {
        let without = run.optimiser.without_gradient();
        if let Some(name) = without.first() {
            tracing::warn!("{} trainable parameters get no gradient, `{name}` among them", without.len());
        }
    }
    run.optimiser.step(lr)?;
    Ok((sums, norm))
}

/// Writes a checkpoint after `step` finished steps, from which the run can be resumed whatever happens later.
fn save(plan: &Plan<'_>, run: &mut Assembled, folder: &mut Folder, step: usize) -> Result<()> {
    checkpoint::save(folder.path(), step, run, &plan.fingerprints)?;
    folder.keep();
    Ok(())
}

fn interrupted(folder: &Path, step: usize, steps: usize) -> Error {
    Error::interrupted(format!("interrupted after step {step} of {steps}")).hint(format!("`reprpo run --resume {}` goes on", quoted(folder)))
}

/// Which pairs each step is made of.
pub struct Schedule<'a> {
    train: &'a TrainConfig,
    /// Pairs in the data.
    pub pairs: usize,
    /// Pairs in a step.
    step_pairs: usize,
    /// Steps in an epoch.
    per_epoch: usize,
    /// Steps of the run.
    pub steps: usize,
}

impl<'a> Schedule<'a> {
    /// The schedule of a run on so many pairs.
    pub fn new(pairs: usize, train: &'a TrainConfig) -> Self {
        let step_pairs = train.batch * train.accumulate;
        let per_epoch = pairs.div_ceil(step_pairs);
        let steps = ((per_epoch as f64 * train.epochs).ceil() as usize).max(1);
        Self { train, pairs, step_pairs, per_epoch, steps }
    }

    /// The pairs of a step.
    fn pairs_of<'p>(&self, step: usize, pairs: &'p [TokenPair]) -> Vec<&'p TokenPair> {
        let order = order(self.pairs, self.train, step / self.per_epoch);
        let within = (step % self.per_epoch) * self.step_pairs;
        order[within..(within + self.step_pairs).min(self.pairs)].iter().map(|i| &pairs[*i]).collect()
    }

    /// The number of pairs in all steps together.
    fn pairs_in_all(&self) -> usize {
        (0..self.steps).map(|step| self.step_pairs.min(self.pairs - (step % self.per_epoch) * self.step_pairs)).sum()
    }

    /// How many times the data was seen after `step`, counted in batches as transformers' Trainer does: the last step of an
    /// epoch may hold fewer batches than the others.
    fn epoch(&self, step: usize) -> f64 {
        let batches = self.pairs.div_ceil(self.train.batch);
        let seen = ((step % self.per_epoch + 1) * self.train.accumulate).min(batches);
        (step / self.per_epoch) as f64 + seen as f64 / batches as f64
    }

    /// The warning for a learning rate that is 0 at every step.
    fn warning(&self) -> Option<String> {
        let nothing = (0..self.steps).all(|step| learning_rate(self.train, step, self.steps) == 0.0);
        nothing.then(|| {
            format!(
                "warning: nothing is learnt: the warm-up begins at a learning rate of 0 and takes all of the run (steps: {}, pairs in a step: {}); set `train.warmup=0`",
                self.steps, self.step_pairs
            )
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The values are those that transformers 5.23's Trainer logs for `per_device_train_batch_size`,
    /// `gradient_accumulation_steps` and `num_train_epochs` of the same size.
    #[test]
    fn the_epoch_is_the_share_of_batches_seen() {
        let logged = |pairs: usize, batch: usize, accumulate: usize, steps: usize| -> Vec<f64> {
            let train = TrainConfig { batch, accumulate, ..TrainConfig::default() };
            (0..steps).map(|step| Schedule::new(pairs, &train).epoch(step)).collect()
        };
        assert_eq!(logged(10, 2, 2, 5), [0.4, 0.8, 1.0, 1.4, 1.8]);
        // The last batch of an epoch may be smaller than the others, and counts as a whole one.
        assert_eq!(logged(9, 2, 2, 3), [0.4, 0.8, 1.0]);
        assert_eq!(logged(8, 2, 2, 4), [0.5, 1.0, 1.5, 2.0]);
        // Fewer pairs than a step takes.
        assert_eq!(logged(3, 2, 4, 2), [1.0, 2.0]);
        assert_eq!(logged(5, 1, 1, 6), [0.2, 0.4, 0.6, 0.8, 1.0, 1.2]);
    }

    #[test]
    fn every_epoch_has_every_pair_once() {
        let train = TrainConfig { batch: 2, accumulate: 2, epochs: 2.5, ..TrainConfig::default() };
        let pair = |index| TokenPair { index, row: index, prompt: vec![1], chosen: vec![2], rejected: vec![3] };
        let pairs: Vec<TokenPair> = (0..10).map(pair).collect();
        let schedule = Schedule::new(pairs.len(), &train);
        assert_eq!((schedule.steps, schedule.pairs_in_all()), (8, 28));
        for epoch in 0..2 {
            let steps = (0..3).flat_map(|step| schedule.pairs_of(epoch * 3 + step, &pairs));
            let mut seen: Vec<usize> = steps.map(|pair| pair.index).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..10).collect::<Vec<_>>());
        }
    }
}
