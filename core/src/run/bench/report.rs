//! The result of a measurement, as a table and as JSON.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::{Value, json};

use super::rate::{Measurement, Rates};
use super::{Pass, Trial};
use crate::error::{Error, Result};
use crate::report::{Align, Grid, size};
use crate::session::device_name;
use crate::train::{Operations, Phase, Shape};
use crate::weights::type_name;

/// The measured speed of training.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The model, as given by the user.
    pub model: String,
    /// Name of the intervention.
    pub intervention: String,
    /// Name of the adapter.
    pub adapter: String,
    /// Number of trained parameters of the adapter.
    pub trained: i64,
    /// Data type of the frozen weights.
    pub dtype: String,
    /// The device, such as `cpu` or `cuda:0`.
    pub device: String,
    /// Number of threads of libtorch.
    pub threads: i32,
    /// Number of pairs in a pass.
    pub pairs: usize,
    /// Number of tokens in a pass. As in TRL, the prompt of a pair counts twice, once for each
    /// completion.
    pub tokens: usize,
    /// Number of optimiser steps in a pass.
    pub steps: usize,
    /// Number of pairs in a micro-batch.
    pub batch: usize,
    /// Maximum number of tokens in prompt and completion together.
    pub max_length: usize,
    /// Number of steps before the measurement.
    pub warmup: usize,
    /// Number of repetitions.
    pub repeat: usize,
    /// Median number of rows of a micro-batch. A shared token has one row.
    pub rows: i64,
    /// Median number of scored tokens of a micro-batch.
    pub scored: i64,
    /// Seconds from the start of the process to the first step.
    pub start_seconds: f64,
    /// Peak memory in bytes, of the process or of the GPU's allocator. `None` if the system does
    /// not report it.
    pub peak_bytes: Option<f64>,
    /// Size in bytes of the outputs of the reference that are kept in memory.
    pub reference_bytes: usize,
    /// The pass that computes the outputs of the reference.
    pub first: Measured,
    /// The pass that uses the kept outputs of the reference.
    pub cached: Measured,
    /// The rate of the machine at each shape.
    pub shapes: Vec<ShapeRate>,
}

/// The measurement of a pass. All values belong to the repetition with the median duration.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Pairs per second.
    pub pairs_per_second: f64,
    /// Tokens per second. As in TRL, the tokens of a prompt count twice.
    pub tokens_per_second: f64,
    /// Duration of the pass in seconds.
    pub seconds: f64,
    /// Duration of the pass in seconds in each repetition.
    pub all_seconds: Vec<f64>,
    /// Seconds of each phase, and of `other` work between the phases.
    pub phases: IndexMap<&'static str, f64>,
    /// Number of floating-point operations: of products with frozen weights, of attention, of the
    /// adapter, and in total.
    pub operations: IndexMap<&'static str, f64>,
    /// Rate of `at::linear` on this machine, in operations per second. The mean over the shapes,
    /// weighted by their operations.
    pub matrix_rate: f64,
    /// All operations per second, divided by `matrix_rate`.
    pub share_of_matrix_rate: f64,
    /// Like `matrix_rate`, for the engine's own product.
    pub product_rate: f64,
    /// All operations per second, divided by `product_rate`.
    pub share_of_product_rate: f64,
}

/// The rate of matrix products at one shape.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ShapeRate {
    /// The shape of the matrix.
    #[serde(flatten)]
    pub shape: Shape,
    /// Number of rows of the measured product.
    pub rows: i64,
    /// Share of this shape in the operations of the first pass. Only products with frozen weights
    /// count.
    pub share: f64,
    /// Operations per second of `at::linear`. This is the median over the repetitions.
    pub rate: f64,
    /// Like `rate`, for the engine's own product.
    pub product: f64,
}

/// The rate of each shape, as the median over the repetitions.
#[derive(Clone, Debug)]
pub struct Rate(BTreeMap<Shape, Measurement>);

impl Rate {
    fn new(all: &[Rates]) -> Self {
        let of = |shape: &Shape| {
            let found: Vec<_> = all.iter().filter_map(|rates| rates.get(shape)).collect();
            let all = |of: fn(&Measurement) -> f64| median(found.iter().map(|one| of(one)));
            let (rate, product) = (all(|one| one.rate), all(|one| one.product));
            Some((*shape, Measurement { rows: found.first()?.rows, rate, product }))
        };
        Self(all.first().map_or_else(BTreeMap::new, |rates| rates.keys().filter_map(of).collect()))
    }

    /// The mean of the rate `of` over the shapes, weighted by `operations`. It is a harmonic mean,
    /// because the times of the shapes add up.
    fn weighted(&self, operations: &Operations, of: fn(&Measurement) -> f64) -> f64 {
        let (mut all, mut seconds) = (0.0, 0.0);
        for (shape, operations) in &operations.products {
            if let Some(measured) = self.0.get(shape) {
                (all, seconds) = (all + operations, seconds + operations / of(measured));
            }
        }
        all / seconds
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Measured {
    fn new(passes: &[&Pass], rate: &Rate, pairs: usize, tokens: usize) -> Result<Self> {
        let mut sorted = passes.to_vec();
        sorted.sort_by_key(|pass| pass.time);
        let pass = sorted
            .get(sorted.len() / 2)
            .ok_or_else(|| Error::internal("no repetition was measured"))?;
        let seconds = pass.time.as_secs_f64();
        let mut phases: IndexMap<_, _> = Phase::ALL
            .into_iter()
            .map(|phase| (phase.name(), pass.phases[phase as usize].as_secs_f64()))
            .collect();
        phases.insert(OTHER, (seconds - phases.values().sum::<f64>()).max(0.0));
        let counted = &pass.operations;
        let operations = IndexMap::from([
            ("products", counted.products.values().sum()),
            ("attention", counted.attention),
            ("adapter", counted.adapter),
            ("total", counted.total()),
        ]);
        let matrix_rate = rate.weighted(counted, |one| one.rate);
        let product_rate = rate.weighted(counted, |one| one.product);
        Ok(Self {
            pairs_per_second: pairs as f64 / seconds,
            tokens_per_second: tokens as f64 / seconds,
            seconds,
            all_seconds: passes.iter().map(|pass| pass.time.as_secs_f64()).collect(),
            phases,
            operations,
            matrix_rate,
            share_of_matrix_rate: counted.total() / seconds / matrix_rate,
            product_rate,
            share_of_product_rate: counted.total() / seconds / product_rate,
        })
    }
}

/// Name of the time between the phases.
const OTHER: &str = "other";

impl Trial<'_> {
    /// Summarises the measurement.
    ///
    /// # Errors
    /// Fails if nothing was measured.
    pub(super) fn report(&self) -> Result<Report> {
        let (plan, model) = (self.plan, &self.plan.session.model);
        let pairs = &plan.pairs.pairs;
        let tokens = pairs.iter().map(crate::text::TokenPair::tokens).sum();
        let rate = Rate::new(&self.rates);
        let measured = |which: usize| {
            let passes: Vec<&Pass> = self.passes.iter().map(|passes| &passes[which]).collect();
            Measured::new(&passes, &rate, pairs.len(), tokens)
        };
        let (first, cached) = (measured(0)?, measured(1)?);
        let products = &self.passes[0][0].operations.products;
        let all: f64 = products.values().sum();
        let shapes = rate.0.iter().map(|(shape, one)| ShapeRate {
            shape: *shape,
            rows: one.rows,
            share: products.get(shape).copied().unwrap_or_default() / all,
            rate: one.rate,
            product: one.product,
        });
        let [rows, scored] = self.median_sizes();
        let (experiment, train) = (&plan.experiment, &plan.experiment.train);
        Ok(Report {
            model: experiment.model.clone(),
            intervention: experiment.intervention.name.clone(),
            adapter: experiment.adapter.name.clone(),
            trained: self.run.adapted.elements(),
            dtype: type_name(model.kind()).to_owned(),
            device: device_name(model.device()),
            threads: tch::get_num_threads(),
            pairs: pairs.len(),
            tokens,
            steps: self.per_pass,
            batch: train.batch.pairs(),
            max_length: train.max_length,
            warmup: self.options.warmup,
            repeat: self.options.repeat,
            rows,
            scored,
            start_seconds: self.start.as_secs_f64(),
            peak_bytes: self.peak.map(|gb| gb * 1e9),
            reference_bytes: self.kept,
            first,
            cached,
            shapes: shapes.collect(),
        })
    }
}

impl Report {
    /// The report as a JSON object.
    pub fn json(&self) -> Value {
        json!(self)
    }

    /// The report as text for a terminal.
    pub fn plain(&self) -> String {
        let passes = [&self.first, &self.cached];
        let mut grid = Grid::new([
            ("", Align::Left),
            ("reference computed", Align::Right),
            ("reference cached", Align::Right),
        ]);
        let mut row = |name: &str, value: &dyn Fn(&Measured) -> String| {
            grid.row([name.to_owned(), value(passes[0]), value(passes[1])]);
        };
        row("pairs/s", &|pass| format!("{:.2}", pass.pairs_per_second));
        row("tokens/s", &|pass| format!("{:.0}", pass.tokens_per_second));
        row("seconds", &|pass| format!("{:.2}", pass.seconds));
        row("10⁹ operations", &|pass| format!("{:.1}", pass.operations["total"] / 1e9));
        row("10⁹ operations/s", &|pass| {
            format!("{:.1}", pass.operations["total"] / pass.seconds / 1e9)
        });
        row("matrix rate, 10⁹/s", &|pass| format!("{:.1}", pass.matrix_rate / 1e9));
        row("share of it", &|pass| percent(pass.share_of_matrix_rate));
        row("product rate, 10⁹/s", &|pass| format!("{:.1}", pass.product_rate / 1e9));
        row("share of it", &|pass| percent(pass.share_of_product_rate));
        for name in Phase::ALL.into_iter().map(Phase::name).chain([OTHER]) {
            row(name, &|pass| {
                let seconds = pass.phases[name];
                format!("{seconds:.2} s {:>4}", percent(seconds / pass.seconds))
            });
        }
        format!("{}\n{}\n{}\n{}", self.header(), grid.plain(), self.shapes(), self.costs())
    }

    fn header(&self) -> String {
        let s = if self.threads == 1 { "" } else { "s" };
        format!(
            "{} × {} on {}, {} on {}, {} thread{s}\n{} pairs with {} tokens, {} steps, batches of \
                {} pairs with {} rows and {} scored tokens (medians)\n",
            self.intervention,
            self.adapter,
            self.model,
            self.dtype,
            self.device,
            self.threads,
            self.pairs,
            self.tokens,
            self.steps,
            self.batch,
            self.rows,
            self.scored,
        )
    }

    /// Formats the machine's rate at each shape.
    fn shapes(&self) -> String {
        let columns = ["shape", "rows", "share", "at::linear, 10⁹/s", "product, 10⁹/s"]
            .map(|name| (name, Align::Right));
        let mut grid = Grid::new(columns);
        for one in &self.shapes {
            grid.row([
                format!("{} × {}", one.shape.outputs, one.shape.inputs),
                one.rows.to_string(),
                percent(one.share),
                format!("{:.1}", one.rate / 1e9),
                format!("{:.1}", one.product / 1e9),
            ]);
        }
        grid.plain()
    }

    fn costs(&self) -> String {
        let memory = self
            .peak_bytes
            .map_or_else(String::new, |bytes| format!(", peak memory {:.2} GB", bytes / 1e9));
        let kept = match self.reference_bytes {
            0 => String::new(),
            bytes => format!(", {} of reference values", size(bytes as u64)),
        };
        format!("{:.1} s until the first step{memory}{kept}\n", self.start_seconds)
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_weighted_by_the_time_of_each_shape() {
        let shape = |outputs| Shape { inputs: 2, outputs, head: false };
        let one = |rate| Measurement { rows: 3, rate, product: 2.0 * rate };
        let rates = |a, b| Rates::from([(shape(1), one(a)), (shape(2), one(b))]);
        let rate = Rate::new(&[rates(1.0, 9.0), rates(2.0, 10.0), rates(30.0, 11.0)]);
        let operations = Operations {
            products: BTreeMap::from([(shape(1), 20.0), (shape(2), 100.0)]),
            ..Operations::default()
        };
        // 20 operations take 10 s, and 100 operations take 10 s.
        assert_eq!(rate.weighted(&operations, |one| one.rate), 6.0);
        assert_eq!(rate.weighted(&operations, |one| one.product), 12.0);
        assert_eq!(rate.0[&shape(1)].rows, 3);
    }
}
