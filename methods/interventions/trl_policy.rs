//! Runs a method on the policy whose losses, gradients and metrics TRL computed.

use std::path::Path;

use reprpo_core::model::attention::Kernel as AttentionKernel;
use reprpo_core::model::peft::Saved;
use reprpo_core::model::{Adapted, Model};
use reprpo_core::registry::Registry;
use reprpo_core::text::TokenPair;
use reprpo_core::train::{Objective, Reference, Taps, TrainPass};
use reprpo_core::weights::ModelFiles;
use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::Value;
use reprpo_plugin::tch::Device;
use reprpo_plugin::testkit::STEP;

/// The policy of the reference values in `trl/`.
pub struct Policy {
    /// The files of the base model.
    pub files: ModelFiles,
    pub model: Model,
    pub adapted: Adapted,
}

/// The results of a method on one batch.
pub struct Step {
    pub loss: f64,
    /// Norm of the gradient of all parameters.
    pub grad_norm: f64,
    /// The metrics of the method and of the engine.
    pub metrics: Vec<(String, f64)>,
}

/// The differences between ours and TRL's values.
#[derive(Debug)]
pub struct Deviation {
    /// Relative difference of the loss.
    pub loss: f64,
    /// Relative difference of the norm of the gradient.
    pub grad_norm: f64,
    /// Largest difference of a metric, divided by max(1, |TRL's value|).
    pub metrics: f64,
}

impl Policy {
    /// Reads the policy from a folder of reference values.
    pub fn open(golden: &Path) -> Self {
        let files = ModelFiles::open(&golden.join("models/llama")).unwrap();
        let mut model = Model::load(&files, Kind::Float, Device::Cpu).unwrap();
        // The reference values were computed with eager attention. Other kernels round differently.
        // In `forward_kl`, Δ is a sum of hundreds of nats, and e^{−Δ} amplifies the rounding error
        // of Δ.
        model.set_attention_kernel(AttentionKernel::Eager);
        let registry = Registry::builtin().unwrap();
        let saved = Saved::read(&golden.join("trl/adapter"), &registry).unwrap();
        let adapter = saved.entry.build(&Value::Object(saved.config).to_string()).unwrap();
        let adapted = Adapted::attach(&*adapter, &model, model.info().layers, 0).unwrap();
        adapted.restore(&saved.values).unwrap();
        Self { files, model, adapted }
    }

    /// Computes the loss of all pairs in one batch, its gradient and the metrics.
    pub fn step(
        &self,
        method: Box<dyn Intervention>,
        reference: Reference,
        pairs: &[&TokenPair],
    ) -> Result<Step> {
        let mut objective = Objective::new(method, Taps::default(), reference, &self.adapted)?;
        let batch = objective.batch(pairs, &self.model)?;
        let pass = TrainPass::of_weight(1.0 / pairs.len() as f64);
        let evaluated = objective.loss(&self.model, &self.adapted, &batch, STEP, pass)?;
        evaluated.loss.value.backward();
        let mut squares = 0.0;
        for (_, mut p) in self.adapted.parameters() {
            squares += p.grad().to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[]);
            p.zero_grad();
        }
        let metrics = evaluated.loss.metrics.into_iter().chain(evaluated.metrics);
        Ok(Step {
            loss: evaluated.loss.value.double_value(&[]),
            grad_norm: squares.sqrt(),
            metrics: metrics.map(|(name, t)| (name, t.double_value(&[]))).collect(),
        })
    }
}

impl Step {
    /// Compares the results with those of a case in a file of TRL's values. `name` is the case, and
    /// `counted` returns metrics that the run computes instead of the method and the engine.
    pub fn deviation(
        &self,
        name: &str,
        case: &Value,
        counted: impl Fn(&str) -> Option<f64>,
    ) -> Deviation {
        let relative = |ours: f64, field: &str| {
            let reference = case[field].as_f64().unwrap();
            (ours - reference).abs() / reference.abs()
        };
        let mut worst: f64 = 0.0;
        for (metric, reference) in case["metrics"].as_object().unwrap() {
            let reference = reference.as_f64().unwrap();
            let found: Vec<f64> = match counted(metric) {
                Some(value) => vec![value],
                None => self.metrics.iter().filter(|(n, _)| n == metric).map(|(_, v)| *v).collect(),
            };
            assert_eq!(
                found.len(),
                1,
                "{name}: {metric} should be logged once, but was logged {} times",
                found.len()
            );
            worst = worst.max((found[0] - reference).abs() / reference.abs().max(1.0));
        }
        let deviation = Deviation {
            loss: relative(self.loss, "loss"),
            grad_norm: relative(self.grad_norm, "grad_norm"),
            metrics: worst,
        };
        eprintln!(
            "{name}: loss off by {:.1e}, gradient norm by {:.1e}, metrics by {:.1e}",
            deviation.loss, deviation.grad_norm, deviation.metrics
        );
        deviation
    }
}
