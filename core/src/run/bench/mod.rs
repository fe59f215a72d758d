//! Measures the speed of training on real pairs. A measurement takes the same steps as a run, but
//! writes no files.

mod rate;
mod report;
mod start_time;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use report::{Measured, Rate, Report, ShapeRate};
use tch::Device;

use super::ForeignRng;
use super::assemble::assemble;
use super::assembled::Assembled;
use super::fit::take_step;
use super::plan::Plan;
use super::start::Start;
use crate::api::StepInfo;
use crate::config::{CacheMode, Experiment};
use crate::error::{Context, Error, Result};
use crate::ffi;
use crate::memory;
use crate::reference::{BLOCK_TOKENS, blocks};
use crate::registry::Registry;
use crate::report::Progress;
use crate::session::device;
use crate::text::{TokenPair, Tokenised};
use crate::train::{
    GradientPlan, Operations, Phase, PhaseClock, PhaseTimes, Steps, Work, learning_rate,
};

/// The scope of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Number of pairs to train on, from the start of the split. Replaces `train.max_pairs`.
    pub pairs: usize,
    /// Number of repetitions. Each one has two passes over the pairs.
    pub repeat: usize,
    /// Number of optimiser steps before the measurement.
    pub warmup: usize,
    /// True to skip a pair if an earlier pair has the same prompt.
    pub distinct_prompts: bool,
}

/// The measurement of one pass over the pairs.
struct Pass {
    /// Duration of all steps.
    time: Duration,
    phases: PhaseTimes,
    operations: Operations,
}

/// Measures the training of `experiment`. Each repetition has two passes over the same batches. The
/// first pass computes the outputs of the reference before its first step, as a run does. The
/// second pass uses the kept outputs. After each repetition, the rate of the machine is measured.
///
/// # Errors
/// Fails if an input is invalid, if the method takes no steps, or if a step fails. Returns
/// `Error::interrupted` if `stop` becomes true.
pub fn bench(
    experiment: &Experiment,
    options: Options,
    registry: &Registry,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<Report> {
    // Loads CUDA, which must happen before the first operation of libtorch.
    device(&experiment.device)?;
    let _rng = ForeignRng::keep()?;
    let mut plan = Plan::new(&measured(experiment, options), &new_run(), registry, &mut *progress)?;
    if options.distinct_prompts {
        keep_distinct(&mut plan.pairs, options.pairs);
    }
    let mut run = assemble(&mut plan)?;
    if run.objective.needs().evaluate_only {
        return Err(Error::new(format!(
            "the intervention `{}` takes no steps, so its speed cannot be measured",
            experiment.intervention.name
        ))
        .hint("choose another `--intervention`; `reprpo list interventions` shows all"));
    }
    // The values of the statistics do not change the speed, so a few pairs are enough.
    let some: Vec<&TokenPair> = plan.pairs.pairs.iter().take(8).collect();
    let seed = plan.experiment.train.seed;
    run.install_from(&some, plan.fit_sites.as_ref(), &plan.session.model, seed)?;
    let mut trial = Trial::new(&plan, run, options)?;
    trial.measure(stop, progress)?;
    trial.report()
}

/// Removes evaluation and validation from the experiment, and sets the number of epochs and pairs.
fn measured(experiment: &Experiment, options: Options) -> Experiment {
    let mut experiment = experiment.clone();
    experiment.eval.enabled = false;
    // Outputs of another process would replace the work that is measured.
    experiment.cache.reference = CacheMode::Off;
    let train = &mut experiment.train;
    (train.validate_every, train.keep_best, train.patience) = (None, false, None);
    train.epochs = (2 * options.repeat) as f64;
    // Pairs with a repeated prompt are skipped after reading, so the number of pairs to read is not
    // limited.
    train.max_pairs = (!options.distinct_prompts).then_some(options.pairs);
    experiment
}

/// The start of a run that has no folder.
fn new_run() -> Start {
    Start::New(PathBuf::new())
}

/// Keeps the first pair of each prompt, and at most `most` pairs.
fn keep_distinct(all: &mut Tokenised, most: usize) {
    let mut known = HashSet::new();
    let new: Vec<bool> = all.prompts.iter().map(|prompt| known.insert(*prompt)).collect();
    fn keep<T>(values: &mut Vec<T>, new: &[bool], most: usize) {
        let mut new = new.iter();
        values.retain(|_| new.next().is_some_and(|new| *new));
        values.truncate(most);
    }
    keep(&mut all.pairs, &new, most);
    keep(&mut all.cuts, &new, most);
    keep(&mut all.prompts, &new, most);
}

/// A run that is being measured.
struct Trial<'a> {
    plan: &'a Plan<'a>,
    run: Assembled,
    options: Options,
    steps: Steps<'a>,
    /// Number of steps of a pass.
    per_pass: usize,
    gradients: GradientPlan,
    /// Number of steps so far, without the warm-up.
    step: usize,
    /// Rows and scored tokens of each micro-batch of a pass.
    sizes: Vec<[i64; 2]>,
    /// Time from the start of the process to the first step.
    start: Duration,
    /// Peak memory after the first repetition, in GB.
    peak: Option<f64>,
    /// Size of the kept outputs of the reference, in bytes.
    kept: usize,
    /// The two passes of each repetition. The first pass computes the outputs of the reference.
    passes: Vec<[Pass; 2]>,
    rates: Vec<rate::Rates>,
}

impl<'a> Trial<'a> {
    fn new(plan: &'a Plan<'a>, mut run: Assembled, options: Options) -> Result<Self> {
        let model = &plan.session.model;
        let train = &plan.experiment.train;
        run.objective.set_clock(PhaseClock::running(model.device()));
        let steps = Steps::new(&plan.pairs.pairs, train);
        Ok(Self {
            gradients: GradientPlan::new(model, &run.adapted)?,
            per_pass: steps.pairs.div_ceil(train.step_pairs()),
            plan,
            run,
            options,
            steps,
            step: 0,
            sizes: Vec::new(),
            start: start_time::age().unwrap_or_else(|| plan.begin.elapsed()),
            peak: None,
            kept: 0,
            passes: Vec::new(),
            rates: Vec::new(),
        })
    }

    /// Takes the steps of the warm-up and of all repetitions.
    fn measure(&mut self, stop: &AtomicBool, progress: &mut dyn Progress) -> Result<()> {
        let steps = self.options.warmup + 2 * self.options.repeat * self.per_pass;
        progress.stage("bench", Some(steps as u64));
        for step in 0..self.options.warmup {
            self.step(step % self.per_pass, stop)?;
            progress.advance(1, &[]);
        }
        for _ in 0..self.options.repeat {
            self.run.objective.reference().clear();
            let passes = [self.pass(true, stop, progress)?, self.pass(false, stop, progress)?];
            if self.peak.is_none() {
                self.peak = self.peak_memory()?;
                self.kept = self.run.objective.reference().bytes();
            }
            self.passes.push(passes);
            let [rows, scored] = self.median_sizes();
            let products = &self.passes[0][0].operations.products;
            self.rates.push(rate::measure(
                &self.plan.session.model,
                products.keys(),
                rows,
                scored,
            )?);
        }
        progress.finish();
        Ok(())
    }

    /// Takes one step on each batch. If `prepares` is true, first computes the outputs of the
    /// reference.
    fn pass(
        &mut self,
        prepares: bool,
        stop: &AtomicBool,
        progress: &mut dyn Progress,
    ) -> Result<Pass> {
        let (mut time, mut pairs) = (Duration::ZERO, 0);
        let (mut operations, mut sizes) = (Operations::default(), Vec::new());
        self.run.objective.clock().take();
        if prepares {
            (time, operations) = self.prepare()?;
        }
        for step in 0..self.per_pass {
            for work in self.work(step)? {
                operations += &work.operations;
                sizes.push([work.rows, work.scored]);
            }
            let (seconds, seen) = self.step(step, stop)?;
            (time, pairs) = (time + seconds, pairs + seen);
            self.step += 1;
            progress.advance(1, &[("pairs/s", pairs as f64 / time.as_secs_f64())]);
        }
        self.sizes = sizes;
        Ok(Pass { time, phases: self.run.objective.clock().take(), operations })
    }

    /// Computes the outputs of the reference for all pairs. Returns the duration, and the number of
    /// operations.
    fn prepare(&mut self) -> Result<(Duration, Operations)> {
        let (plan, objective) = (self.plan, &mut self.run.objective);
        let (mut time, mut operations) = (Duration::ZERO, Operations::default());
        if objective.reference_quantities().is_empty() {
            return Ok((time, operations));
        }
        for block in blocks(&plan.all_pairs(), BLOCK_TOKENS) {
            operations += &objective.preparation_work(&plan.session.model, block)?;
            let begin = Instant::now();
            objective.prepare(&plan.session.model, &[block])?;
            time += begin.elapsed();
        }
        Ok((time, operations))
    }

    /// The pairs of a step. Every pass has the order of the first epoch.
    fn pairs_of(&self, step: usize) -> Vec<&'a TokenPair> {
        self.steps.pairs_of(step, &self.plan.pairs.pairs)
    }

    /// Counts the operations of each micro-batch of a step.
    fn work(&self, step: usize) -> Result<Vec<Work>> {
        let (model, objective) = (&self.plan.session.model, &self.run.objective);
        self.pairs_of(step)
            .chunks(self.plan.experiment.train.batch.pairs())
            .map(|pairs| {
                let batch = objective.batch(pairs, model)?;
                objective.work(model, &self.run.adapted, &batch, &self.gradients)
            })
            .collect()
    }

    /// Takes the step on the batch `step` of a pass. Returns the duration and the number of pairs.
    fn step(&mut self, step: usize, stop: &AtomicBool) -> Result<(Duration, usize)> {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::interrupted(format!(
                "interrupted after {} measured steps",
                self.step
            )));
        }
        let seed = self.plan.experiment.train.seed;
        let info = StepInfo { step: self.step, steps: self.steps.count, seed };
        let seed = self.steps.seed(self.step);
        let lr = learning_rate(&self.plan.experiment.train, self.step, self.steps.count);
        let clock = self.run.objective.clock().clone();
        let begin = Instant::now();
        let pairs = clock.measure(Phase::Data, || self.pairs_of(step));
        take_step(self.plan, &mut self.run, &pairs, info, seed, lr)
            .within(|| format!("step {} failed ({})", step + 1, self.plan.experiment.methods()))?;
        Ok((begin.elapsed(), pairs.len()))
    }

    /// The median numbers of rows and of scored tokens of a micro-batch.
    fn median_sizes(&self) -> [i64; 2] {
        [0, 1].map(|which| {
            let mut sizes: Vec<i64> = self.sizes.iter().map(|sizes| sizes[which]).collect();
            sizes.sort_unstable();
            sizes[sizes.len() / 2]
        })
    }

    /// Peak memory of the GPU's allocator in GB. On the CPU, this is the peak memory of the
    /// process, or `None` if the system does not report it.
    fn peak_memory(&self) -> Result<Option<f64>> {
        match self.plan.session.model.device() {
            Device::Cpu => Ok(memory::process_peak().map(|bytes| bytes / 1e9)),
            card => Ok(Some(ffi::cuda_memory(card)?.peak_reserved as f64 / 1e9)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Cut;

    #[test]
    fn only_the_first_pair_of_a_prompt_is_kept() {
        let all = Tokenised {
            pairs: (0..6).map(TokenPair::short).collect(),
            cuts: vec![Cut::default(); 6],
            prompts: vec![7, 7, 8, 7, 9, 10],
            ..Tokenised::default()
        };
        for (most, expected) in [(10, vec![0, 2, 4, 5]), (2, vec![0, 2])] {
            let mut kept = all.clone();
            keep_distinct(&mut kept, most);
            let indices: Vec<usize> = kept.pairs.iter().map(|pair| pair.index).collect();
            assert_eq!(indices, expected);
            assert_eq!((kept.cuts.len(), kept.prompts.len()), (expected.len(), expected.len()));
        }
    }
}
