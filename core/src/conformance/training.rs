//! Invariants that hold when a method is trained. They apply to interventions, adapters and
//! transforms.

use tch::{Kind, Tensor};

use super::fixture::{self, pairs, twins};
use super::measure::{copies, difference, largest};
use super::{Bench, Case, Invariant, Verdict};
use crate::api::{Init, StepInfo};
use crate::batch::Sharing;
use crate::config::TrainConfig;
use crate::error::{Context, Result};
use crate::text::TokenPair;
use crate::train::{AdamW, Group, TrainPass, accumulate};

/// The invariants for interventions, adapters and transforms.
pub const TRAINING: &[Invariant] = &[
    Invariant { name: "the loss and its gradients are finite", check: finite },
    Invariant {
        name: "a pair with identical completions does not dominate the gradient",
        check: twin_weight,
    },
    Invariant { name: "gradients agree with central finite differences", check: gradients },
    Invariant {
        name: "every trained tensor receives a gradient, and no frozen tensor does",
        check: reach,
    },
    Invariant {
        name: "a batch of n gives the same gradient as n accumulated batches of one",
        check: accumulation,
    },
    Invariant { name: "shared and separate sequences have the same gradient", check: sharing },
    Invariant {
        name: "activation checkpointing gives the same loss and the same gradients",
        check: checkpointing,
    },
    Invariant { name: "the same seed gives the same bytes", check: determinism },
    Invariant { name: "training lowers the loss", check: learning },
];

pub(super) const STEP: StepInfo = StepInfo { step: 3, steps: 10, seed: 0 };
pub(super) const UNTRAINED: Verdict = Verdict::DoesNotApply("the method trains nothing");

pub(super) fn refs(pairs: &[TokenPair]) -> Vec<&TokenPair> {
    pairs.iter().collect()
}

fn gradients_of(tensors: &[Tensor]) -> Vec<Tensor> {
    tensors
        .iter()
        .map(|t| if t.grad().defined() { t.grad().copy() } else { t.zeros_like() })
        .collect()
}

fn loss_at(bench: &mut Bench, pairs: &[TokenPair]) -> Result<Tensor> {
    let batch = bench.objective.batch(&refs(pairs), &bench.model)?;
    Ok(bench
        .objective
        .loss(
            &bench.model,
            &bench.adapted,
            &batch,
            STEP,
            TrainPass::of_weight(1.0 / pairs.len() as f64),
        )?
        .loss
        .value)
}

fn finite(case: &Case) -> Result<Verdict> {
    let mut bench = Bench::new(case, 0)?;
    if bench.trains_nothing() {
        return Ok(UNTRAINED);
    }
    // These batches are edge cases: a single pair has no standard deviation, and the difference
    // between identical completions is zero. The other invariants use larger batches.
    let batches = [("a single pair", &pairs()[0]), ("a pair with identical completions", &twins())];
    for place in ["at the initial parameters", "at perturbed parameters"] {
        for (what, pair) in batches {
            let step =
                accumulate(&mut bench.objective, &bench.model, &bench.adapted, &[pair], 1, STEP, 0)
                    .within(|| format!("{place}, training on {what} failed"))?;
            if let Some((name, value)) = step.metrics.iter().find(|(_, value)| !value.is_finite()) {
                return Ok(Verdict::Violated(format!(
                    "{place}, the metric `{name}` for {what} is {value}"
                )));
            }
            // Gradients accumulate over the batches. They were finite after the previous batch, so
            // a non-finite value comes from this batch.
            if let Some((name, _)) = bench
                .named()
                .iter()
                .find(|(_, t)| t.grad().defined() && !largest(&t.grad()).is_finite())
            {
                return Ok(Verdict::Violated(format!(
                    "{place}, the gradient of `{name}` for {what} is not finite"
                )));
            }
        }
        bench.disturb();
    }
    Ok(Verdict::Holds)
}

/// Maximum gradient norm of a pair with identical completions, as a multiple of the largest
/// gradient norm of the other pairs. A loss that divides by a distance of 0 exceeds this by orders
/// of magnitude.
const MAX_NORM_RATIO: f64 = 1e3;

fn twin_weight(case: &Case) -> Result<Verdict> {
    let length = |pair: &TokenPair| -> Result<Option<f64>> {
        let mut bench = Bench::new(case, 0)?;
        if bench.trains_nothing() {
            return Ok(None);
        }
        bench.disturb();
        accumulate(&mut bench.objective, &bench.model, &bench.adapted, &[pair], 1, STEP, 0)?;
        let squares: f64 = gradients_of(&bench.trained())
            .iter()
            .map(|g| g.square().sum(Kind::Double).double_value(&[]))
            .sum();
        Ok(Some(squares.sqrt()))
    };
    let Some(twin) = length(&twins())? else { return Ok(UNTRAINED) };
    let lengths =
        pairs().iter().filter_map(|pair| length(pair).transpose()).collect::<Result<Vec<_>>>()?;
    let longest = lengths.into_iter().fold(0.0, f64::max);
    let description = || {
        format!(
            "the gradient norm is {twin:.2e} for this pair, and at most {longest:.2e} for the \
                others"
        )
    };
    Ok(if twin <= MAX_NORM_RATIO * longest {
        Verdict::Holds
    } else {
        Verdict::Violated(description())
    })
}

fn gradients(case: &Case) -> Result<Verdict> {
    let mut bench = Bench::new(case, 0)?;
    if bench.trains_nothing() {
        return Ok(UNTRAINED);
    }
    if bench.objective.needs().output_grads {
        return Ok(Verdict::DoesNotApply("the method modifies gradients during the backward pass"));
    }
    let pairs = pairs();
    bench.disturb();
    loss_at(&mut bench, &pairs)?.f_backward()?;
    let tensors = bench.trained();
    let gradients = gradients_of(&tensors);
    if gradients.iter().all(|g| largest(g) == 0.0) {
        return Ok(Verdict::Violated("all gradients are 0".to_owned()));
    }
    const H: f64 = 1e-4;
    let mut worst: f64 = 0.0;
    // Check each tensor separately, along a random direction, because large gradients of one tensor
    // could hide an error in another.
    for (i, (tensor, gradient)) in tensors.iter().zip(&gradients).enumerate() {
        // Do not use libtorch's generator, because tests in other threads share it.
        let direction = Init::new(11, "direction", Kind::Double, tensor.device())
            .normal(&i.to_string(), &tensor.size(), 1.0)
            .detach();
        let direction = &direction / direction.norm();
        let mut at = |steps: f64| -> Result<f64> {
            let mut place = tensor.detach();
            let _ = place.f_add_(&(&direction * (steps * H)))?;
            let value = loss_at(&mut bench, &pairs)?.f_double_value(&[])?;
            let _ = place.f_sub_(&(&direction * (steps * H)))?;
            Ok(value)
        };
        let numeric = (at(1.0)? - at(-1.0)?) / (2.0 * H);
        let analytic = (gradient * &direction).sum(Kind::Double).f_double_value(&[])?;
        let off = (numeric - analytic).abs() / (largest(gradient).max(analytic.abs()).max(1e-3));
        worst = if off > worst || off.is_nan() { off } else { worst };
    }
    Ok(Verdict::within("a directional derivative", worst, 1e-4))
}

fn reach(case: &Case) -> Result<Verdict> {
    let mut bench = Bench::new(case, 0)?;
    if bench.trains_nothing() {
        return Ok(UNTRAINED);
    }
    bench.disturb();
    let of_adapter: Vec<_> =
        bench.adapted.tensors().into_iter().filter(|(_, t)| !t.requires_grad()).collect();
    // `weights` recreates the base model's weights as they were before the adapter was attached.
    let before: Vec<Tensor> = fixture::weights(fixture::BLOCKS, Kind::Double)
        .into_values()
        .chain(of_adapter.iter().map(|(_, t)| t.copy()))
        .collect();
    let base = bench.frozen.iter().map(|(name, t)| (name.clone(), t.shallow_clone()));
    let frozen: Vec<(String, Tensor)> = base.chain(of_adapter).collect();
    let pairs = pairs();
    loss_at(&mut bench, &pairs)?.f_backward()?;
    for (name, tensor) in bench.named() {
        let gradient = tensor.grad();
        if !gradient.defined() || largest(&gradient) == 0.0 {
            return Ok(Verdict::Violated(format!("`{name}` is trained, but receives no gradient")));
        }
    }
    optimiser(&bench).step(1e-3)?;
    for ((name, tensor), before) in frozen.iter().zip(&before) {
        if tensor.requires_grad() || tensor.grad().defined() {
            return Ok(Verdict::Violated(format!("`{name}` is frozen, but has a gradient")));
        }
        if tensor != before {
            return Ok(Verdict::Violated(format!("`{name}` is frozen, but has changed")));
        }
    }
    Ok(Verdict::Holds)
}

fn accumulation(case: &Case) -> Result<Verdict> {
    if Bench::new(case, 0)?.objective.needs().depends_on_batch {
        return Ok(Verdict::DoesNotApply("the loss of a pair depends on its micro-batch"));
    }
    let gradient = |batch: usize| -> Result<Option<Vec<Tensor>>> {
        let mut bench = Bench::new(case, 0)?;
        if bench.trains_nothing() {
            return Ok(None);
        }
        bench.disturb();
        let pairs = pairs();
        accumulate(
            &mut bench.objective,
            &bench.model,
            &bench.adapted,
            &refs(&pairs),
            batch,
            STEP,
            0,
        )?;
        Ok(Some(gradients_of(&bench.trained())))
    };
    let (Some(whole), Some(single)) = (gradient(6)?, gradient(1)?) else { return Ok(UNTRAINED) };
    let scale = whole.iter().map(largest).fold(1e-6, f64::max);
    Ok(Verdict::within(
        "the gradient (relative to its largest entry)",
        difference(&whole, &single) / scale,
        1e-9,
    ))
}

fn sharing(case: &Case) -> Result<Verdict> {
    let mut bench = Bench::new(case, 0)?;
    if bench.trains_nothing() {
        return Ok(UNTRAINED);
    }
    if bench.objective.needs().output_grads {
        return Ok(Verdict::DoesNotApply("the method changes gradients during the backward pass"));
    }
    bench.disturb();
    let pairs = fixture::pairs_with_common_beginnings();
    loss_at(&mut bench, &pairs)?.f_backward()?;
    let shared = gradients_of(&bench.trained());
    bench.trained().iter_mut().for_each(Tensor::zero_grad);
    bench.objective.set_sharing(Sharing::Nothing);
    loss_at(&mut bench, &pairs)?.f_backward()?;
    let separate = gradients_of(&bench.trained());
    let scale = separate.iter().map(largest).fold(1e-6, f64::max);
    Ok(Verdict::within(
        "the gradient, relative to its largest entry,",
        difference(&shared, &separate) / scale,
        1e-9,
    ))
}

/// Compares with equality, because a block that runs again computes the same bytes.
fn checkpointing(case: &Case) -> Result<Verdict> {
    let mut bench = Bench::new(case, 0)?;
    if bench.trains_nothing() {
        return Ok(UNTRAINED);
    }
    if bench.adapted.shared_by_modules().is_some() {
        return Ok(Verdict::DoesNotApply("several modules share a trained tensor"));
    }
    bench.disturb();
    let pairs = fixture::pairs_with_common_beginnings();
    let mut step = |on: bool| -> Result<(f64, Vec<Tensor>)> {
        bench.trained().iter_mut().for_each(Tensor::zero_grad);
        bench.objective.set_checkpointing(on, &bench.adapted)?;
        let Bench { model, adapted, objective, .. } = &mut bench;
        let sums = accumulate(objective, model, adapted, &refs(&pairs), 2, STEP, 0)?;
        Ok((sums.loss, gradients_of(&bench.trained())))
    };
    // The reference's values must be the same, so compute them before both steps.
    step(false)?;
    let ((kept_loss, kept), (loss, again)) = (step(false)?, step(true)?);
    let off = difference(&kept, &again);
    if kept_loss.to_bits() != loss.to_bits() {
        return Ok(Verdict::Violated(format!("the loss is {loss} instead of {kept_loss}")));
    }
    if off != 0.0 {
        return Ok(Verdict::Violated(format!("a gradient differs by up to {off:.2e}")));
    }
    Ok(Verdict::Holds)
}

fn optimiser(bench: &Bench) -> AdamW {
    AdamW::new(vec![Group { parameters: bench.named(), scale: 1.0 }], &TrainConfig::default())
}

/// Trains for `steps` steps. If `disturbed` is true, adds noise to the initial values first.
/// Returns the loss of each step and copies of the trained tensors, or `None` if the method trains
/// nothing.
pub(super) fn trained(
    case: &Case,
    seed: u64,
    steps: usize,
    lr: f64,
    disturbed: bool,
) -> Result<Option<(Vec<f64>, Vec<Tensor>)>> {
    let mut bench = Bench::new(case, seed)?;
    if bench.trains_nothing() {
        return Ok(None);
    }
    if disturbed {
        bench.disturb();
    }
    let mut optimiser = optimiser(&bench);
    let pairs = pairs();
    let mut losses = Vec::new();
    for _ in 0..steps {
        // Always pass the same step number to the objective, so that the losses can be compared.
        losses.push(
            accumulate(
                &mut bench.objective,
                &bench.model,
                &bench.adapted,
                &refs(&pairs),
                6,
                STEP,
                seed as i64,
            )?
            .loss,
        );
        optimiser.step(lr)?;
    }
    Ok(Some((losses, copies(&bench.trained()))))
}

fn determinism(case: &Case) -> Result<Verdict> {
    let run = |before: i64| {
        // The two runs start with different states of libtorch's generator, which must not affect
        // the result.
        tch::manual_seed(before);
        trained(case, 1, 2, 1e-3, false)
    };
    let (Some((_, one)), Some((_, two))) = (run(101)?, run(102)?) else { return Ok(UNTRAINED) };
    if one.iter().zip(&two).any(|(a, b)| a != b) {
        return Ok(Verdict::Violated(format!(
            "two runs differ by up to {:.2e}",
            difference(&one, &two)
        )));
    }
    Ok(Verdict::Holds)
}

fn learning(case: &Case) -> Result<Verdict> {
    // Add noise to the initial values, because the gradients of some losses, such as a cosine
    // between states, vanish where policy and reference are equal.
    let Some((losses, _)) = trained(case, 0, 12, 2e-3, true)? else { return Ok(UNTRAINED) };
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    Ok(if last < first {
        Verdict::Holds
    } else {
        Verdict::Violated(format!("the loss went from {first:.6} to {last:.6}"))
    })
}
