//! Computes the gradient of one optimiser step.

use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::{Objective, Phase, TrainPass};
use crate::api::{Partial, StepInfo};
use crate::batch::PairBatch;
use crate::error::{Error, Result, catch_out_of_memory};
use crate::guard::faults;
use crate::model::{Adapted, Model, PassSeed};
use crate::text::TokenPair;

/// The loss and metrics of a step, summed over its micro-batches. The gradients are accumulated in
/// the trained tensors.
#[derive(Debug)]
pub struct Accumulated {
    /// Mean loss over the pairs that count; 0 if no pairs count.
    pub loss: f64,
    /// Name and mean of each metric.
    pub metrics: Vec<(String, f64)>,
    /// Pairs that do not count towards the loss; `None` if the method always counts all pairs.
    pub left_out: Option<LeftOut>,
}

/// Pairs that do not count towards the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Number of these pairs.
    pub pairs: usize,
    /// Description of what these pairs lack. See [`Partial::lacking`].
    pub lacking: &'static str,
}

/// The modes of [`sum`].
#[derive(Clone, Copy)]
enum Mode<'a> {
    /// Computes gradients. The random numbers are a function of this seed.
    Train(i64),
    /// Computes no gradients. Stops when the flag becomes true.
    Validate(&'a AtomicBool),
}

/// The name and the sum of each metric over the micro-batches, in the order in which the metrics
/// were first added.
#[derive(Default)]
struct Sums(Vec<(String, Tensor)>);

impl Sums {
    fn add(&mut self, name: String, value: Tensor) -> Result<()> {
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some((_, sum)) => *sum = sum.f_add(&value)?,
            None => self.0.push((name, value)),
        }
        Ok(())
    }
}

/// Computes the gradient of the loss over `pairs`, and adds it to the gradients of the trained
/// tensors. Then lets the method modify the gradients.
///
/// A micro-batch has `batch` pairs. Its weight is its share of the pairs that count, so the result
/// does not depend on `batch`.
///
/// Random numbers, such as dropout masks, are a function of `seed`, the index of the micro-batch
/// and the module that draws them.
///
/// # Errors
/// Fails if the method or libtorch returns an error, or if the loss is not finite.
pub fn accumulate(
    objective: &mut Objective,
    model: &Model,
    adapted: &Adapted,
    pairs: &[&TokenPair],
    batch: usize,
    info: StepInfo,
    seed: i64,
) -> Result<Accumulated> {
    let (sums, factor) = sum(objective, model, adapted, pairs, batch, info, Mode::Train(seed))?;
    if !sums.loss.is_finite() {
        let e = Error::new(format!("the loss is {}", sums.loss));
        return Err(e.hint(
            "lower `train.lr`, raise `train.warmup`, or compute in float32 with `--dtype f32`",
        ));
    }
    objective.reduce_gradients(adapted, model)?;
    if let Some(factor) = factor {
        objective.scale_gradients(adapted, factor)?;
    }
    let clock = objective.clock().clone();
    clock.measure(Phase::Hooks, || objective.map_gradients(adapted, info))?;
    Ok(sums)
}

/// Computes the loss and metrics of `pairs` like [`accumulate`], but without gradients or dropout.
/// The loss may be infinite or NaN.
///
/// # Errors
/// Fails if the method or libtorch returns an error. Returns `Error::interrupted` if `stop` becomes
/// true.
pub fn validate(
    objective: &mut Objective,
    model: &Model,
    adapted: &Adapted,
    pairs: &[&TokenPair],
    batch: usize,
    info: StepInfo,
    stop: &AtomicBool,
) -> Result<Accumulated> {
    let _guard = tch::no_grad_guard();
    Ok(sum(objective, model, adapted, pairs, batch, info, Mode::Validate(stop))?.0)
}

/// Computes the loss and metrics of `pairs` in micro-batches of `size` pairs. When training, also
/// computes gradients.
///
/// The gradients are computed as if all pairs counted, because the number of pairs that count is
/// only known at the end. If some pairs do not count, also returns a factor. The caller must
/// multiply the gradients by this factor.
fn sum(
    objective: &mut Objective,
    model: &Model,
    adapted: &Adapted,
    pairs: &[&TokenPair],
    size: usize,
    info: StepInfo,
    mode: Mode<'_>,
) -> Result<(Accumulated, Option<f64>)> {
    let clock = objective.clock().clone();
    let weight = 1.0 / pairs.len() as f64;
    let (mut losses, mut of_method, mut of_engine) = (Vec::new(), Sums::default(), Sums::default());
    let (mut counted, mut lacking) = (Vec::new(), None);
    let world = model.world();
    let share = world.share(pairs.len().div_ceil(size));
    for (index, micro) in pairs.chunks(size).enumerate().take(share.end).skip(share.start) {
        if let Mode::Validate(stop) = mode
            && model.stops(stop)?
        {
            // The other ranks need to know, so this is an error after the sums are exchanged.
            break;
        }
        let fraction = micro.len() as f64 * weight;
        let batch = clock.measure(Phase::Data, || objective.batch(micro, model))?;
        let place = MicroBatch { index, of: pairs.len().div_ceil(size), pairs: micro.len() };
        let checkpoints = objective.checkpointing();
        let explained = |e: Error| place.explain(e, &batch, model, checkpoints);
        let mut evaluated = match mode {
            Mode::Train(seed) => {
                let pass = TrainPass { weight, seed: PassSeed::new(seed, index) };
                catch_out_of_memory(|| objective.loss(model, adapted, &batch, info, pass))
                    .map_err(explained)?
            }
            Mode::Validate(_) => catch_out_of_memory(|| {
                objective.loss_without_gradient(model, adapted, &batch, info)
            })
            .map_err(explained)?,
        };
        // Keep the fraction on the device, to avoid a synchronisation.
        let counted_fraction = match evaluated.loss.partial.take() {
            None => None,
            Some(Partial { counts, lacking: what }) => {
                lacking = Some(what);
                let pairs = counts.f_sum(Kind::Double)?;
                counted.push(pairs.f_reshape([1])?);
                Some(pairs * weight)
            }
        };
        let weighed = |t: &Tensor| -> Result<Tensor> {
            Ok(match &counted_fraction {
                None => t * fraction,
                Some(fraction) => t.f_mul(&fraction.f_to_kind(t.kind())?)?,
            })
        };
        let logged = |t: &Tensor| -> Result<Tensor> {
            Ok(t.f_detach()?.f_to_kind(Kind::Double)?.f_reshape([1])?)
        };
        let value = evaluated.loss.value.f_detach()?;
        let own_metrics = std::mem::take(&mut evaluated.loss.metrics);
        let metrics = std::mem::take(&mut evaluated.metrics);
        if matches!(mode, Mode::Train(_)) {
            let backward = || {
                let loss = weighed(&evaluated.loss.value)?;
                objective.backward(model, adapted, &batch, evaluated, &loss)
            };
            catch_out_of_memory(|| clock.measure(Phase::Backward, backward)).map_err(explained)?;
        }
        faults::check()?;
        clock.measure(Phase::Logging, || -> Result<()> {
            losses.push(weighed(&logged(&value)?)?);
            for (name, value) in own_metrics {
                of_method.add(name, weighed(&logged(&value)?)?)?;
            }
            for (name, value) in metrics {
                of_engine.add(name, logged(&value)? * fraction)?;
            }
            Ok(())
        })?;
    }
    let done = losses.len();
    if model.is_sharded() && done == share.len() {
        assist(objective, model, adapted, pairs, size, info, mode)?;
    }
    let sums = MicroBatches { losses, of_method, of_engine, counted };
    let mut sums = clock.measure(Phase::Logging, || sums.collect(done < share.len()))?;
    if world.size() > 1 {
        sums.checksum = objective.checksum(adapted)?;
    }
    let of_ranks = world.gather(sums)?;
    if let Some(rank) = of_ranks.iter().position(|sums| sums.checksum != of_ranks[0].checksum) {
        return Err(Error::new(format!(
            "rank {rank} has diverged: its trained parameters differ from those of rank 0 after {} \
                steps",
            info.step
        ))
        .hint(
            "resume from a checkpoint; if this happens again, check the memory of the machines",
        ));
    }
    let sums = StepSums::over_ranks(of_ranks);
    if sums.stopped {
        return Err(Error::interrupted(format!(
            "interrupted after {done} of {} batches",
            share.len()
        )));
    }
    Ok(sums.means(pairs.len(), lacking))
}

/// Runs passes for the ranks that have more micro-batches than this one, and so still need it to
/// gather the weights.
fn assist(
    objective: &mut Objective,
    model: &Model,
    adapted: &Adapted,
    pairs: &[&TokenPair],
    size: usize,
    info: StepInfo,
    mode: Mode<'_>,
) -> Result<()> {
    let world = model.world();
    let batches = pairs.len().div_ceil(size);
    let own = world.share(batches).len();
    // Rank 0 has the most micro-batches.
    for _ in own..batches.div_ceil(world.size()) {
        let seed = match mode {
            Mode::Train(seed) => Some(PassSeed::new(seed, 0)),
            Mode::Validate(stop) if model.stops(stop)? => return Ok(()),
            Mode::Validate(_) => None,
        };
        let batch = objective.batch(&pairs[..size.min(pairs.len())], model)?;
        objective.assist(model, adapted, &batch, info, seed)?;
    }
    Ok(())
}

/// The place of a micro-batch in its step, for errors.
#[derive(Clone, Copy)]
struct MicroBatch {
    /// Index of the micro-batch, counted from 0.
    index: usize,
    /// Number of micro-batches in the step.
    of: usize,
    /// Number of pairs in the micro-batch.
    pairs: usize,
}

impl MicroBatch {
    /// If `e` says that memory ran out, wraps it in an error that names the micro-batch, its size
    /// and the settings that need less memory. Returns other errors unchanged.
    fn explain(self, e: Error, batch: &PairBatch, model: &Model, checkpoints: bool) -> Error {
        let Some(memory) = e.out_of_memory() else { return e };
        let layout = &batch.stream.layout;
        let mut explained = Error::new(format!(
            "memory ran out in micro-batch {} of {}: {memory} for {} pair{}, which have {} tokens \
                in all and up to {} in a sequence",
            self.index + 1,
            self.of,
            self.pairs,
            if self.pairs == 1 { "" } else { "s" },
            layout.tokens(),
            layout.longest(),
        ))
        .because(e);
        if self.pairs > 1 {
            explained = explained.hint(
                "lower `train.batch`, and raise `train.accumulate` to keep the number of pairs per \
                    step",
            );
        }
        if !checkpoints {
            explained = explained.hint(
                "set `train.checkpointing=true`, which keeps fewer activations and takes longer",
            );
        }
        explained = explained.hint(format!(
            "lower `train.max_length`; the longest sequence has {} tokens",
            layout.longest()
        ));
        if model.kind() == Kind::Float {
            explained = explained.hint("compute in bfloat16 with `--dtype bf16`");
        }
        explained
    }
}

/// The values of all micro-batches of a step. The tensors are still on the device.
struct MicroBatches {
    /// The weighted loss of each micro-batch.
    losses: Vec<Tensor>,
    /// The metrics of the method.
    of_method: Sums,
    /// The metrics of the engine.
    of_engine: Sums,
    /// The number of pairs that count in each micro-batch; empty if the method counts all pairs.
    counted: Vec<Tensor>,
}

impl MicroBatches {
    /// Copies the sums from the device. `stopped` is true if this rank did not compute all of its
    /// micro-batches.
    fn collect(self, stopped: bool) -> Result<StepSums> {
        let Self { losses, of_method, of_engine, counted } = self;
        let total = |values: &[Tensor]| -> Result<f64> {
            Ok(match values {
                [] => 0.0,
                values => Tensor::f_cat(values, 0)?.f_sum(Kind::Double)?.f_double_value(&[])?,
            })
        };
        let own = of_method.0.len();
        // Copy all metrics from the device at once.
        let (names, values): (Vec<_>, Vec<_>) = of_method.0.into_iter().chain(of_engine.0).unzip();
        let values = if values.is_empty() {
            Vec::new()
        } else {
            Vec::<f64>::try_from(Tensor::f_cat(&values, 0)?.f_to_device(Device::Cpu)?)?
        };
        let mut of_method: Vec<(String, f64)> = names.into_iter().zip(values).collect();
        let of_engine = of_method.split_off(own);
        Ok(StepSums {
            loss: total(&losses)?,
            counted: if counted.is_empty() { None } else { Some(total(&counted)?) },
            of_method,
            of_engine,
            stopped,
            checksum: 0,
        })
    }
}

/// The weighted sums over the micro-batches of a step.
#[derive(Serialize, Deserialize)]
struct StepSums {
    loss: f64,
    /// Number of pairs that count; `None` if the method counts all pairs.
    counted: Option<f64>,
    /// The metrics of the method.
    of_method: Vec<(String, f64)>,
    /// The metrics of the engine.
    of_engine: Vec<(String, f64)>,
    /// True if a rank stopped before it had computed all of its micro-batches.
    stopped: bool,
    /// The checksum of the trained tensors.
    checksum: i64,
}

impl StepSums {
    /// Adds the sums of all ranks. A rank without a micro-batch has no metrics.
    fn over_ranks(of_ranks: Vec<Self>) -> Self {
        let add = |to: &mut Vec<(String, f64)>, from: Vec<(String, f64)>| {
            for (name, value) in from {
                match to.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, sum)) => *sum += value,
                    None => to.push((name, value)),
                }
            }
        };
        let mut of_ranks = of_ranks.into_iter();
        let mut sums = of_ranks.next().unwrap_or(Self {
            loss: 0.0,
            counted: None,
            of_method: Vec::new(),
            of_engine: Vec::new(),
            stopped: false,
            checksum: 0,
        });
        for other in of_ranks {
            sums.loss += other.loss;
            if let Some(counted) = other.counted {
                *sums.counted.get_or_insert(0.0) += counted;
            }
            add(&mut sums.of_method, other.of_method);
            add(&mut sums.of_engine, other.of_engine);
            sums.stopped |= other.stopped;
        }
        sums
    }

    /// The means over a step of `pairs` pairs. Also returns the factor for the gradients; see
    /// [`sum`].
    fn means(self, pairs: usize, lacking: Option<&'static str>) -> (Accumulated, Option<f64>) {
        let Self { mut loss, counted, mut of_method, of_engine, .. } = self;
        let (mut left_out, mut factor) = (None, None);
        if let Some(counted) = counted {
            // Rank 0, which records, always has a micro-batch, so it knows what the pairs lack.
            let lacking = lacking.unwrap_or_default();
            left_out = Some(LeftOut { pairs: pairs - counted.round() as usize, lacking });
            if counted == 0.0 {
                // The means of the metrics are not defined if no pair counts.
                of_method.clear();
            } else if counted < pairs as f64 {
                // The weights assume that all pairs count. Correct for those that do not.
                let rest = pairs as f64 / counted;
                loss *= rest;
                for (_, value) in &mut of_method {
                    *value *= rest;
                }
                factor = Some(rest);
            }
        }
        let metrics = of_method.into_iter().chain(of_engine).collect();
        (Accumulated { loss, metrics, left_out }, factor)
    }
}
