//! Validation during training: metrics on the held-out pairs, the best step so far, and early
//! stopping.
//!
//! A validation must not change what is trained. It runs without gradients and dropout. It uses a
//! new instance of the method, because a method can keep statistics of all pairs that it receives.
//! Random numbers are allowed, because every training step sets a new seed.

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
use crate::eval::statistics::{Clusters, PairScore, SplitSummary, mean_log_sigmoid};
use crate::eval::{score_pairs, score_reference};
use crate::files::write_whole;
use crate::report::Silent;
use crate::text::TokenPair;
use crate::train::{Steps, validate};

/// Name of the file in a run's folder that contains the results of the validations.
pub(super) const FILE: &str = "validation.json";

/// The validations of a run.
pub struct Validation<'a> {
    plan: &'a Plan<'a>,
    every: usize,
    best: Best,
    /// The best step at the time of the last checkpoint. The parameters of this step are kept until
    /// the next checkpoint, because a resumed run needs them.
    in_checkpoint: Option<usize>,
    /// Scores of the held-out pairs at the start of training; `None` before the first validation.
    base: Option<Vec<PairScore>>,
    base_accuracy: Option<f64>,
    /// The value of `train.best_metric` at the latest validation.
    latest: Option<f64>,
}

impl<'a> Validation<'a> {
    /// Prepares the validations of the run. Returns `None` if the run has no validations.
    ///
    /// # Errors
    /// Fails if the run is resumed and its checkpoint is damaged.
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
                // Discard the earlier results. The pairs or the metric may have changed, so later
                // results are not comparable with them.
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

    /// True if a validation is due after `step` steps and has not been done yet.
    pub fn is_due(&self, step: usize, steps: &Steps<'_>) -> bool {
        step > self.best.validated && (step.is_multiple_of(self.every) || step == steps.count)
    }

    /// True if training must stop because none of the last `train.patience` validations reached a
    /// new best value.
    pub fn is_exhausted(&self) -> bool {
        self.best.exhausted(self.train().patience)
    }

    /// Validates after `step` steps. If the result is the best so far and `train.keep_best` is
    /// true, saves all trained parameters in the run's folder.
    ///
    /// # Errors
    /// Fails if the method or libtorch returns an error, or if a file cannot be written. Returns
    /// `Error::interrupted` if `stop` became true. In these cases, the validation is still due.
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
        let adapted = Some(&run.adapted);
        let policy = score_pairs(&session.model, adapted, pairs, eval.tokens, stop, &mut Silent)?;
        if self.base.is_none() {
            let initial = run.initial.as_deref();
            let mut cache = plan.cache(plan.starts_from.as_ref());
            self.base = Some(score_reference(
                &mut cache,
                &session.model,
                initial,
                pairs,
                eval.tokens,
                stop,
                &mut Silent,
            )?);
        }
        let summary = SplitSummary::compare(
            "held-out",
            "",
            self.base.as_deref().unwrap_or_default(),
            &policy,
            // Only the values are used, and they do not depend on the clusters.
            &Clusters::of_single_pairs(pairs.len()),
            eval.score,
        )?;
        self.base_accuracy = summary.base_accuracy.map(|accuracy| accuracy.value);
        let change = summary
            .change
            .ok_or_else(|| Error::internal("the comparison on the held-out pairs is missing"))?;

        // Set the seed for the method's random numbers, so that a resumed run draws the same
        // numbers.
        tch::manual_seed(steps.seed(step - 1));
        let (adapted, objective) = (&run.adapted, &mut run.objective);
        let mut method = plan.intervention()?;
        if let Some(statistics) = &run.statistics {
            method.set_statistics(statistics)?;
        }
        let all: Vec<&TokenPair> = pairs.iter().collect();
        // Some losses depend on the step. Always validate with the loss of the last step, so that
        // validations at different steps are comparable.
        let info = StepInfo { step: steps.count - 1, steps: steps.count, seed: train.seed };
        objective.set_metrics(true);
        let sums = objective.with_method(method, |objective| {
            validate(objective, &session.model, adapted, &all, train.batch.pairs(), info, stop)
        })?;

        let mut record = ValidationRecord {
            step,
            epoch: steps.epoch(step - 1),
            // The mean loss is undefined if all pairs were left out.
            loss: Some(sums.loss)
                .filter(|_| sums.left_out.is_none_or(|left_out| left_out.pairs < pairs.len())),
            accuracy: change.accuracy.map_or(0.0, |accuracy| accuracy.value),
            margin: change.margin_gain.map(|margin| margin.value),
            log_sigmoid: mean_log_sigmoid(&policy, eval.score),
            metrics: sums.metrics,
            left_out: sums.left_out,
            best: false,
            last: false,
        };
        self.latest = match train.best_metric {
            BestMetric::Loss => record.loss,
            BestMetric::Accuracy => Some(record.accuracy),
            BestMetric::Margin => record.margin,
            BestMetric::LogSigmoid => record.log_sigmoid,
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

    /// The best validation so far, for a checkpoint.
    pub fn best(&self) -> &Best {
        &self.best
    }

    /// Records that a checkpoint was written.
    pub fn saved(&mut self) {
        self.in_checkpoint = self.best.step();
    }

    /// Called when training ends after `step` steps. Restores the parameters of the best step if
    /// `train.keep_best` is true. Writes the results to the run's folder, and returns them as lines
    /// for the user.
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
            if matches!(metric, BestMetric::Loss | BestMetric::LogSigmoid) {
                format!("{value:.4}")
            } else {
                format!("{value:.3}")
            }
        };
        let Some(best) = self.best.best else {
            lines.push(format!(
                "warning: no validation had a finite {}; the adapter is from \
                the last step, {step}",
                metric.name()
            ));
            return lines;
        };
        let base = self.base_accuracy.filter(|_| metric == BestMetric::Accuracy);
        let base =
            base.map_or_else(String::new, |base| format!(" ({} before training)", number(base)));
        let adapter = match (kept == step, best.step == step) {
            (_, true) => format!("the adapter is from the last step, {step}"),
            (false, false) => format!("the adapter is from step {kept} (`train.keep_best`)"),
            (true, false) => {
                let latest = self.latest.map_or_else(|| "none".to_owned(), number);
                format!("the adapter is from the last step, {step}: {latest}")
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
