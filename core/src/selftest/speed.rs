//! Measures the speed and the memory use of training with the program's default methods. The models
//! have random weights and the shapes of real models.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tch::{Cuda, Device, Kind};

use super::report::{Outcome, Row};
use super::shapes::{LARGE, SMALL, Shape};
use super::trial::{Way, Workshop};
use super::{Section, Selftest, kind_name};
use crate::api::StepInfo;
use crate::config::Experiment;
use crate::doctor;
use crate::error::{Error, Result};
use crate::ffi;
use crate::memory::{self, Memory};
use crate::model::{Model, peft};
use crate::reference::ReferenceCache;
use crate::run::AdapterChoice;
use crate::run::assembled::{Assembled, Parts};
use crate::session;
use crate::text::TokenPair;
use crate::train::{Taps, accumulate};

/// Number of tokens in each prompt and in each completion.
pub const TOKENS: usize = 128;
/// Maximum estimated time in seconds for the steps of a model on the CPU. Models that would take
/// longer are skipped.
const PATIENCE: f64 = 150.0;

/// Number and size of the measured steps.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Number of pairs in a step.
    pub batch: usize,
    /// Number of measured steps, not including one warm-up step.
    pub steps: usize,
}

impl Plan {
    /// Chooses the number and size of the steps. A GPU is faster, so it takes more steps and larger
    /// ones.
    pub fn of(device: Device, full: bool) -> Self {
        match (device.is_cuda(), full) {
            (true, false) => Self { batch: 8, steps: 10 },
            (true, true) => Self { batch: 8, steps: 30 },
            (false, false) => Self { batch: 1, steps: 2 },
            (false, true) => Self { batch: 2, steps: 5 },
        }
    }
}

/// Returns the faster `dtype`, bf16 or f32. A GPU that only emulates bf16 uses f32. A CPU uses f32
/// if it multiplies f32 matrices faster.
fn fastest(device: Device) -> &'static str {
    let bf16 = match device {
        Device::Cpu => doctor::rate(Kind::BFloat16) >= doctor::rate(Kind::Float),
        card => ffi::bf16_supported(card),
    };
    if bf16 { "bf16" } else { "f32" }
}

/// Measures each shape. A shape that does not fit in memory is skipped.
///
/// # Errors
/// Returns `Error::interrupted` if the user stopped the test.
pub fn check(test: &mut Selftest<'_>) -> Result<()> {
    let large = test.options.full || test.device.is_cuda();
    test.begin(Section::Speed, if large { 2 } else { 1 });
    let mut rate = None;
    for shape in if large { &[SMALL, LARGE][..] } else { &[SMALL] } {
        test.check(Section::Speed, shape.name, |test| {
            let plan = Plan::of(test.device, test.options.full);
            let plan = Plan {
                steps: if test.device.is_cuda() || shape.name == SMALL.name {
                    plan.steps
                } else {
                    1
                },
                ..plan
            };
            if let Some(why) = too_much(shape, test.device, &plan, rate) {
                return Ok(vec![Row::new(Section::Speed, shape.name, Outcome::Skipped, why)]);
            }
            let (row, pairs_per_second) = measured(test, shape, plan)?;
            rate = Some(pairs_per_second);
            Ok(vec![row])
        })?;
    }
    Ok(())
}

/// Returns the reason to skip a model that needs too much memory or time on this CPU. Returns
/// `None` if the model can be measured. The time is estimated from `rate`, the small model's pairs
/// per second.
fn too_much(shape: &Shape, device: Device, plan: &Plan, rate: Option<f64>) -> Option<String> {
    if device.is_cuda() {
        return None;
    }
    // Float32 weights take 4 bytes per parameter, and training takes about 2 more bytes per
    // parameter.
    let needed = shape.parameters() as f64 * 6.0 / 1e9;
    if let Some(free) = memory::free().filter(|free| *free < needed) {
        return Some(format!(
            "needs about {needed:.1} GB of memory, but only {free:.1} GB is free"
        ));
    }
    let seconds = rate.map(|rate| {
        ((1 + plan.steps) * plan.batch) as f64 / rate * shape.parameters() as f64
            / SMALL.parameters() as f64
    })?;
    (seconds > PATIENCE).then(|| format!("would take about {seconds:.0} s on this CPU"))
}

/// Measures a model. Returns its row in the report, and the number of pairs per second.
fn measured(test: &mut Selftest<'_>, shape: &Shape, plan: Plan) -> Result<(Row, f64)> {
    let memory = Memory::begin(test.device)?;
    let mut trainer = Trainer::new(&test.workshop, shape, test.device)?;
    trainer.steps(1, plan.batch, test.stop)?;
    let seconds = trainer.steps(plan.steps, plan.batch, test.stop)?;
    let rate = (plan.steps * plan.batch) as f64 / seconds;
    let (bytes, of) = memory.peak()?;
    let methods = trainer.methods.clone();
    let kind = kind_name(trainer.model.kind());
    let compared = format!(
        "{rate:.2} pairs/s, peak {:.2} GB ({of}); {methods}, {kind}, batches of {} × ({TOKENS} + \
            {TOKENS}) tokens",
        bytes / 1e9,
        plan.batch
    );
    let mut row = Row::new(Section::Speed, shape.name, Outcome::Measured, compared);
    row.values = json!({
        "pairs_per_second": rate, "peak_gb": bytes / 1e9, "memory_of": of, "methods": methods,
        "dtype": kind, "batch": plan.batch,
        "prompt_tokens": TOKENS, "completion_tokens": TOKENS, "steps": plan.steps,
        "parameters": shape.parameters(),
    });
    Ok((row, rate))
}

/// A model that is being trained.
pub struct Trainer {
    /// The model.
    pub model: Model,
    /// The names of the intervention and the adapter.
    pub methods: String,
    experiment: Experiment,
    adapter: AdapterChoice,
    run: Assembled,
    rng: ChaCha8Rng,
    vocab: i64,
    next: usize,
}

impl Trainer {
    /// Creates a model with this shape and the program's default methods, in the fastest precision
    /// for the device.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn new(workshop: &Workshop, shape: &Shape, device: Device) -> Result<Self> {
        let experiment = workshop
            .experiment(&workshop.trial(Vec::new()), Way::usual(device, fastest(device)))?;
        let registry = workshop.registry();
        let (kind, _) = session::precision(experiment.dtype, device);
        let model =
            Model::from_tensors(&shape.config(), shape.weights(kind, device)?, kind, device)?;
        let intervention = registry
            .intervention(&experiment.intervention.name)?
            .build(&experiment.intervention.json(), model.info())?;
        let tap = match intervention.tap() {
            Some(own) => own,
            None => registry.tap(&experiment.tap.name)?.build(&experiment.tap.json())?,
        };
        let (transform, json) =
            (registry.transform(&experiment.transform.name)?, experiment.transform.json());
        let taps = Taps::build(
            tap.as_ref(),
            &intervention.needs(),
            &model,
            &experiment.train,
            |cx, init| transform.build(&json, cx, init),
        )?;
        let adapter = AdapterChoice::new(&experiment, None, registry)?;
        let parts = Parts {
            intervention,
            taps,
            adapter: &adapter,
            cache: ReferenceCache::default(),
            leaves_flat_start: true,
        };
        let run = Assembled::new(&model, parts, &experiment.train)?;
        let methods = format!("{} × {}", experiment.intervention.name, experiment.adapter.name);
        Ok(Self {
            model,
            methods,
            experiment,
            adapter,
            run,
            rng: ChaCha8Rng::seed_from_u64(0),
            vocab: shape.vocab,
            next: 0,
        })
    }

    /// Takes `steps` steps on new pairs, and returns their total duration in seconds.
    ///
    /// # Errors
    /// Fails if a step fails. Returns `Error::interrupted` if the user stopped the test.
    pub fn steps(&mut self, steps: usize, batch: usize, stop: &AtomicBool) -> Result<f64> {
        let begin = Instant::now();
        for _ in 0..steps {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::interrupted("interrupted"));
            }
            let pairs: Vec<TokenPair> = (0..batch).map(|_| self.pair()).collect();
            let info = StepInfo { step: self.next / batch, steps: 1000, seed: 0 };
            let train = &self.experiment.train;
            accumulate(
                &mut self.run.objective,
                &self.model,
                &self.run.adapted,
                &pairs.iter().collect::<Vec<_>>(),
                batch,
                info,
                self.next as i64,
            )?;
            self.run.optimiser.clip(train.clip)?;
            self.run.optimiser.step(train.lr)?;
        }
        if let Device::Cuda(index) = self.model.device() {
            Cuda::synchronize(index as i64);
        }
        Ok(begin.elapsed().as_secs_f64())
    }

    fn pair(&mut self) -> TokenPair {
        let mut tokens = || (0..TOKENS).map(|_| self.rng.random_range(0..self.vocab)).collect();
        let (prompt, chosen, rejected) = (tokens(), tokens(), tokens());
        self.next += 1;
        TokenPair { index: self.next, row: self.next, prompt, chosen, rejected }
    }

    /// The number of trained parameters.
    pub fn trained(&self) -> usize {
        self.run.adapted.parameters().iter().map(|(_, tensor)| tensor.numel()).sum()
    }

    /// Writes the adapter into the folder `dir`, in PEFT's format.
    ///
    /// # Errors
    /// Fails if a file cannot be written.
    pub fn write_adapter(&self, dir: &Path) -> Result<()> {
        peft::write(
            dir,
            self.adapter.entry,
            self.adapter.adapter.as_ref(),
            &self.run.adapted,
            &self.model,
            &"selftest".into(),
        )
    }
}
