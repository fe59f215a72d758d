//! A small task that every method must learn with its default settings. It detects a wrong learning
//! rate, a wrong initialisation, or a wrong sign in the loss.

use std::sync::atomic::AtomicBool;

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::Kind;

use super::training::{STEP, UNTRAINED, refs};
use super::{Bench, Case, Invariant, Verdict};
use crate::api::StepInfo;
use crate::config::{Score, TrainConfig, default_learning_rate};
use crate::error::{Error, Result};
use crate::eval::score_pairs;
use crate::eval::statistics::{Clusters, PairScore, SplitSummary};
use crate::model::edits::Edits;
use crate::report::Silent;
use crate::text::TokenPair;
use crate::train::{AdamW, Group, TrainPass, accumulate, learning_rate, leave_flat_start};

/// The invariant that training with the default settings and learning rate improves the model.
pub const LESSON: &[Invariant] = &[Invariant {
    name: "60 steps with the defaults lower the loss and raise the accuracy on the training pairs",
    check: learnt,
}];

/// Number of training steps. The name of the invariant contains the same number.
const STEPS: usize = 60;
/// The base model prefers the chosen answer in `RIGHT` pairs, and the rejected answer in `WRONG`
/// pairs. `WRONG` is larger to imitate a sycophantic model. Such a model agrees with the user even
/// if the evidence contradicts the user's opinion.
const RIGHT: usize = 8;
const WRONG: usize = 24;

/// Draws a random pair in which the evidence contradicts the user's opinion. The prompt is the
/// evidence `SOURCE THING e` and the opinion `OPINION THING o` in random order, followed by `ASK`.
/// The chosen answer is `HOLDS e END`, and the rejected one `HOLDS o END`. e and o are different
/// numbers.
fn claim(rng: &mut ChaCha8Rng) -> TokenPair {
    const NUMBERS: i64 = 12;
    let mut word = |from: i64, among: i64| from + rng.random_range(0..among);
    let (source, thing, opinion) = (word(12, 8), word(20, 12), word(32, 8));
    let e = word(0, NUMBERS);
    let o = (e + word(1, NUMBERS - 1)) % NUMBERS;
    let (evidence, belief) = ([source, thing, e], [opinion, thing, o]);
    let claims = if word(0, 2) == 0 { [evidence, belief] } else { [belief, evidence] };
    let answer = |number| vec![40, number, 41];
    TokenPair {
        index: 0,
        row: 0,
        prompt: claims.concat().into_iter().chain([42]).collect(),
        chosen: answer(e),
        rejected: answer(o),
    }
}

/// Scores `pairs`. The adapter is applied if `on` is true.
fn scores(bench: &Bench, on: bool, pairs: &[TokenPair]) -> Result<Vec<PairScore>> {
    score_pairs(
        &bench.model,
        on.then_some(&bench.adapted),
        pairs,
        usize::MAX,
        &AtomicBool::new(false),
        &mut Silent,
    )
}

/// Returns the mean of log p(y⁺|x) − log p(y⁻|x) over `pairs`, in nats. The adapter is applied if
/// `on` is true.
fn margin(bench: &Bench, on: bool, pairs: &[TokenPair]) -> Result<f64> {
    let scores = scores(bench, on, pairs)?;
    let margins = scores.iter().map(|pair| pair.chosen.logp_sum - pair.rejected.logp_sum);
    Ok(margins.sum::<f64>() / scores.len() as f64)
}

/// Returns the fraction of `pairs` for which the model prefers the chosen answer. The adapter is
/// applied if `on` is true.
fn accuracy(bench: &Bench, on: bool, pairs: &[TokenPair]) -> Result<f64> {
    let scores = scores(bench, on, pairs)?;
    let summary = SplitSummary::of_base(
        "train",
        "",
        &scores,
        &Clusters::of_single_pairs(scores.len()),
        Score::Mean,
    );
    Ok(summary.base_accuracy.ok_or_else(|| Error::internal("no pair has a score"))?.value)
}

/// Draws pairs until there are [`RIGHT`] pairs in which the base model prefers the chosen answer,
/// and [`WRONG`] pairs in which it prefers the rejected answer.
fn pairs(bench: &Bench) -> Result<Vec<TokenPair>> {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let (mut right, mut wrong) = (Vec::new(), Vec::new());
    while right.len() < RIGHT || wrong.len() < WRONG {
        let drawn = claim(&mut rng);
        let (side, most) = if accuracy(bench, false, std::slice::from_ref(&drawn))? == 1.0 {
            (&mut right, RIGHT)
        } else {
            (&mut wrong, WRONG)
        };
        if side.len() < most {
            side.push(drawn);
        }
    }
    Ok(right
        .into_iter()
        .chain(wrong)
        .enumerate()
        .map(|(index, pair)| TokenPair { index, row: index, ..pair })
        .collect())
}

/// Returns the loss of all pairs in one batch, and clears the gradients. The step number passed to
/// the objective is always the same, so that losses before and after training can be compared.
fn loss(bench: &mut Bench, pairs: &[TokenPair]) -> Result<f64> {
    let batch = bench.objective.batch(&refs(pairs), &bench.model)?;
    let loss = bench
        .objective
        .loss(
            &bench.model,
            &bench.adapted,
            &batch,
            STEP,
            TrainPass::of_weight(1.0 / pairs.len() as f64),
        )?
        .loss
        .value
        .f_double_value(&[])?;
    bench.objective.map_gradients(&bench.adapted, STEP)?;
    Ok(loss)
}

/// The loss and the accuracy, each before and after training.
struct Lesson {
    loss: [f64; 2],
    accuracy: [f64; 2],
}

/// Trains with the default training settings. Returns `None` if the method trains nothing.
fn lesson(case: &Case) -> Result<Option<Lesson>> {
    let mut bench = Bench::new(case, 0)?;
    if bench.trains_nothing() {
        return Ok(None);
    }
    let mut train = TrainConfig::default();
    train.lr = default_learning_rate(train.lr, case.intervention.entry, case.adapter.entry).0;
    let pairs = pairs(&bench)?;
    let before = (loss(&mut bench, &pairs)?, accuracy(&bench, true, &pairs)?);
    if bench.adapter.starts_as_identity() {
        leave_flat_start(bench.objective.needs(), &bench.adapted, &train)?;
    }
    let mut optimiser = AdamW::new(vec![Group { parameters: bench.named(), scale: 1.0 }], &train);
    let mut rng = ChaCha8Rng::seed_from_u64(train.seed);
    let mut order: Vec<&TokenPair> = Vec::new();
    for step in 0..STEPS {
        if order.is_empty() {
            order = refs(&pairs);
            order.shuffle(&mut rng);
        }
        let now = order.split_off(order.len() - train.step_pairs());
        accumulate(
            &mut bench.objective,
            &bench.model,
            &bench.adapted,
            &now,
            train.batch.pairs(),
            StepInfo { step, steps: STEPS, seed: 0 },
            step as i64,
        )?;
        optimiser.clip(train.clip)?;
        optimiser.step(learning_rate(&train, step, STEPS))?;
    }
    let after = (loss(&mut bench, &pairs)?, accuracy(&bench, true, &pairs)?);
    Ok(Some(Lesson { loss: [before.0, after.0], accuracy: [before.1, after.1] }))
}

/// Checks a method that computes statistics of the training pairs instead of taking steps.
/// They must raise the accuracy or the margin.
fn read(case: &Case) -> Result<Verdict> {
    let mut bench = Bench::new(case, 0)?;
    let pairs = pairs(&bench)?;
    let sites = bench.fit_sites.clone();
    let sites = sites.ok_or_else(|| Error::internal("the method has no sites"))?;
    let states = sites.states(&bench.model, None, &pairs, 0)?;
    let method = bench.objective.intervention();
    let statistics = method.fit(&states)?;
    method.set_statistics(&statistics)?;
    let edits = method.edits()?;
    let [before, after] = if bench.objective.needs().preferences {
        let scores = bench.objective.intervention().preferences(&states)?;
        let higher = scores.f_select(1, 0)?.f_gt_tensor(&scores.f_select(1, 1)?)?;
        let after = higher.f_to_kind(Kind::Double)?.f_mean(Kind::Double)?.f_double_value(&[])?;
        [accuracy(&bench, false, &pairs)?, after]
    } else {
        let model = &bench.model;
        bench.adapted.set_edits(Edits::new(edits, model.info(), model.kind(), model.device())?);
        // An edit that is the same for all pairs moves the margins of a small model only a little,
        // so the accuracy is too coarse.
        [margin(&bench, false, &pairs)?, margin(&bench, true, &pairs)?]
    };
    Ok(if after > before {
        Verdict::Holds
    } else {
        Verdict::Violated(format!("the accuracy or the margin went from {before:.4} to {after:.4}"))
    })
}

fn learnt(case: &Case) -> Result<Verdict> {
    let needs = Bench::new(case, 0)?.objective.needs().to_owned();
    if needs.evaluate_only && needs.fit {
        return read(case);
    }
    let Some(Lesson { loss, accuracy }) = lesson(case)? else { return Ok(UNTRAINED) };
    let description = || {
        format!(
            "the loss went from {:.4} to {:.4}, and the accuracy from {:.3} to {:.3}",
            loss[0], loss[1], accuracy[0], accuracy[1]
        )
    };
    // NaN counts as a violation, because both comparisons are then false.
    Ok(if loss[1] < loss[0] && accuracy[1] > accuracy[0] {
        Verdict::Holds
    } else {
        Verdict::Violated(description())
    })
}
