//! Validation during training: the numbers of the held-out pairs, the best step so far, and early
//! stopping.
//!
//! A validation must not change what is trained. It runs without gradients and without dropout, and
//! on a new instance of the method, so that a method that keeps statistics of the pairs it has seen
//! does not see these. Every step seeds the random numbers anew, so those that are drawn here are
//! of no effect either.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::json;

use super::assembled::Assembled;
use super::best::Best;
use super::checkpoint;
use super::plan::Plan;
use super::record::ValidationRecord;
use crate::api::StepInfo;
use crate::config::{BestMetric, TrainConfig};
use crate::error::{Error, Result};
use crate::eval::score_pairs;
use crate::eval::statistics::{PairScore, SplitSummary};
use crate::files::write_whole;
use crate::model::Adapted;
use crate::report::Silent;
use crate::text::TokenPair;
use crate::train::{Steps, validate};

/// Name of the file in a run's folder that holds the outcome of its validations.
pub(super) const FILE: &str = "validation.json";

/// The validations of a run.
pub struct Validation<'a> {
    plan: &'a Plan<'a>,
    every: usize,
    best: Best,
    /// The best step of the last checkpoint. Its values are kept until the next checkpoint, because
    /// a resumed run needs them.
    in_checkpoint: Option<usize>,
    /// Scores of the held-out pairs at the start of training, once they are known.
    base: Option<Vec<PairScore>>,
    base_accuracy: Option<f64>,
    /// The value of `train.best_metric` at the latest validation.
    latest: Option<f64>,
}

impl<'a> Validation<'a> {
    /// The validations of the planned run; `None` if it has none.
    ///
    /// # Errors
    /// Fails if the checkpoint that the run is resumed from is damaged.
    pub fn new(plan: &'a Plan<'a>) -> Result<Option<Self>> {
        let Some(every) =
            plan.experiment.train.validate_every.filter(|_| !plan.held_out.is_empty())
        else {
            return Ok(None);
        };
        let mut best = Best::default();
        if let Some(resumed) = &plan.checkpoint {
            best = checkpoint::best(&plan.folder, resumed.step)?.unwrap_or_default();
            if !resumed.differences.is_empty() {
                // Values of other pairs, or of another metric, cannot be compared with those that
                // follow.
                best = Best { validated: best.validated, ..Best::default() };
            }
        }
        Ok(Some(Self {
            plan,
            every,
            best,
            in_checkpoint: best.step(),
            base: None,
            base_accuracy: None,
            latest: None,
        }))
    }

    fn train(&self) -> &'a TrainConfig {
        &self.plan.experiment.train
    }

    fn pairs(&self) -> &'a [TokenPair] {
        &self.plan.held_out
    }

    /// True if a validation follows the first `step` steps and has not been made yet.
    pub fn is_due(&self, step: usize, steps: &Steps<'_>) -> bool {
        step > self.best.validated && (step.is_multiple_of(self.every) || step == steps.count)
    }

    /// True if training stops now, because too many validations brought no better value.
    pub fn is_exhausted(&self) -> bool {
        self.best.exhausted(self.train().patience)
    }

    /// Validates after the first `step` steps. If the result is the best so far, and the run keeps
    /// the best, the values of everything that is trained are written into its folder.
    ///
    /// # Errors
    /// Fails if the method or libtorch does, or if a file cannot be written; `Error::interrupted`
    /// if `stop` turned true. The validation is still due then.
    pub fn validate(
        &mut self,
        run: &mut Assembled,
        step: usize,
        steps: &Steps<'_>,
        stop: &AtomicBool,
    ) -> Result<ValidationRecord> {
        let plan = self.plan;
        let (session, eval) = (&plan.session, &plan.experiment.eval);
        let (train, pairs) = (self.train(), self.pairs());
        let score = |adapted: Option<&Adapted>| {
            score_pairs(&session.model, adapted, pairs, eval.tokens, stop, &mut Silent)
        };
        let policy = score(Some(&run.adapted))?;
        if self.base.is_none() {
            self.base = Some(score(run.initial.as_deref())?);
        }
        let summary = SplitSummary::compare(
            "held-out",
            "",
            self.base.as_deref().unwrap_or_default(),
            &policy,
            eval.score,
            train.seed,
        )?;
        self.base_accuracy = summary.base_accuracy.map(|accuracy| accuracy.value);
        let change = summary
            .change
            .ok_or_else(|| Error::internal("the held-out pairs were not compared"))?;

        // A method that draws random numbers draws the same ones in a resumed run.
        tch::manual_seed(steps.seed(step - 1));
        let (adapted, objective) = (&run.adapted, &mut run.objective);
        let method = plan.intervention()?;
        let all: Vec<&TokenPair> = pairs.iter().collect();
        // Always the last step: losses of a method that weighs its terms by the step could not be
        // compared otherwise.
        let info = StepInfo { step: steps.count - 1, steps: steps.count };
        let sums = objective.with_method(method, |objective| {
            validate(objective, &session.model, adapted, &all, train.batch, info)
        })?;

        let mut record = ValidationRecord {
            step,
            epoch: steps.epoch(step - 1),
            // The mean over no pairs is not a loss.
            loss: Some(sums.loss)
                .filter(|_| sums.left_out.is_none_or(|left_out| left_out.pairs < pairs.len())),
            accuracy: change.accuracy.map_or(0.0, |accuracy| accuracy.value),
            margin: change.margin_gain.map(|margin| margin.value),
            metrics: sums.metrics,
            left_out: sums.left_out,
            best: false,
            last: false,
        };
        self.latest = match train.best_metric {
            BestMetric::Loss => record.loss,
            BestMetric::Accuracy => Some(record.accuracy),
            BestMetric::Margin => record.margin,
        };
        let before = self.best.step();
        record.best = self.best.observe(train.best_metric, step, self.latest);
        record.last = step == steps.count || self.is_exhausted();
        if record.best && train.keep_best {
            checkpoint::save_best(&plan.folder, step, run)?;
            if let Some(before) = before.filter(|before| self.in_checkpoint != Some(*before)) {
                checkpoint::discard_best(&plan.folder, before);
            }
        }
        Ok(record)
    }

    /// The state for a checkpoint.
    pub fn best(&self) -> &Best {
        &self.best
    }

    /// Takes note that a checkpoint was written.
    pub fn saved(&mut self) {
        self.in_checkpoint = self.best.step();
    }

    /// Ends the training after `step` steps: goes back to the best step if the run keeps it, and
    /// writes the outcome into the run's folder. Returns it in lines for the user.
    ///
    /// # Errors
    /// Fails if a file cannot be read or written.
    pub fn finish(
        &self,
        run: &mut Assembled,
        step: usize,
        steps: &Steps<'_>,
    ) -> Result<Vec<String>> {
        let (train, folder) = (self.train(), &self.plan.folder);
        let kept = self.best.best.filter(|_| train.keep_best).map_or(step, |best| best.step);
        if kept != step {
            checkpoint::restore_best(folder, kept, run)?;
        }
        self.write(folder, step, kept, steps)?;
        Ok(self.lines(step, kept, steps))
    }

    /// Writes `validation.json`.
    fn write(&self, folder: &Path, step: usize, kept: usize, steps: &Steps<'_>) -> Result<()> {
        let outcome = json!({
            "pairs": self.pairs().len(),
            "rows": self.pairs().iter().map(|pair| pair.row).collect::<Vec<_>>(),
            "metric": self.train().best_metric,
            "best_step": self.best.step(),
            "best_value": self.best.best.map(|best| best.value),
            "last_value": self.latest,
            "base_accuracy": self.base_accuracy,
            "adapter_step": kept,
            "last_step": step,
            "steps": steps.count,
            "stopped_early": step < steps.count,
        });
        write_whole(&folder.join(FILE), format!("{outcome:#}\n").as_bytes())
    }

    fn lines(&self, step: usize, kept: usize, steps: &Steps<'_>) -> Vec<String> {
        let (train, n) = (self.train(), self.pairs().len());
        let metric = train.best_metric;
        let mut lines = Vec::new();
        if step < steps.count {
            let validations = self.best.without_improvement;
            lines.push(format!(
                "stopped early after step {step} of {}: the {} did not improve in {validations} \
                    {} (`train.patience`)",
                steps.count,
                metric.name(),
                if validations == 1 { "validation" } else { "validations in a row" }
            ));
        }
        let number = |value: f64| {
            if metric == BestMetric::Loss { format!("{value:.4}") } else { format!("{value:.3}") }
        };
        let Some(best) = self.best.best else {
            lines.push(format!(
                "warning: no validation had a finite {}; the adapter is that of \
                the last step, {step}",
                metric.name()
            ));
            return lines;
        };
        let base = self.base_accuracy.filter(|_| metric == BestMetric::Accuracy);
        let base =
            base.map_or_else(String::new, |base| format!(" ({} before training)", number(base)));
        let adapter = match (kept == step, best.step == step) {
            (_, true) => format!("the adapter is that of the last step, {step}"),
            (false, false) => format!("the adapter is that of step {kept} (`train.keep_best`)"),
            (true, false) => {
                let latest = self.latest.map_or_else(|| "none".to_owned(), number);
                format!("the adapter is that of the last step, {step}: {latest}")
            }
        };
        lines.push(format!(
            "the {} on {n} held-out pairs was best after step {}: {}{base}; {adapter}",
            metric.name(),
            best.step,
            number(best.value)
        ));
        lines
    }
}
