//! A small task that every method must learn at its defaults. A method fails it if its default
//! learning rate, its start or a sign in its loss is wrong.

use std::sync::atomic::AtomicBool;

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::training::{STEP, UNTRAINED, refs};
use super::{Bench, Case, Invariant, Verdict};
use crate::api::StepInfo;
use crate::config::{Score, TrainConfig, default_learning_rate};
use crate::error::{Error, Result};
use crate::eval::score_pairs;
use crate::eval::statistics::SplitSummary;
use crate::report::Silent;
use crate::text::TokenPair;
use crate::train::{AdamW, Group, accumulate, learning_rate, leave_flat_start};

/// What interventions and adapters must do with their default fields and their default learning
/// rate.
pub const LESSON: &[Invariant] = &[Invariant {
    name: "60 steps at its defaults lower the loss and raise the accuracy on the training pairs",
    check: learnt,
}];

/// The number of steps in the invariant's name.
const STEPS: usize = 60;
/// How many pairs the base model orders rightly and wrongly. Most are wrong, as if it followed the
/// opinion and not the evidence.
const RIGHT: usize = 8;
const WRONG: usize = 24;

/// A pair about evidence against the user's opinion, in tokens. The prompt is
/// `SOURCE THING e OPINION THING o ASK`, with the two claims in either order. The answers are
/// `HOLDS e END` and `HOLDS o END`, for two different numbers e and o.
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

/// The share of `pairs` that the model orders rightly, with the adapter if it is `on`.
fn accuracy(bench: &Bench, on: bool, pairs: &[TokenPair]) -> Result<f64> {
    let scores = score_pairs(
        &bench.model,
        on.then_some(&bench.adapted),
        pairs,
        usize::MAX,
        &AtomicBool::new(false),
        &mut Silent,
    )?;
    let summary = SplitSummary::of_base("train", "", &scores, Score::Mean, 0);
    Ok(summary.base_accuracy.ok_or_else(|| Error::internal("no pair has a score"))?.value)
}

/// Pairs of which the base model orders [`RIGHT`] rightly and [`WRONG`] wrongly.
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

/// The loss of all pairs in one batch, always at the same place in the schedule. It leaves no
/// gradients.
fn loss(bench: &mut Bench, pairs: &[TokenPair]) -> Result<f64> {
    let batch = bench.objective.batch(&refs(pairs), &bench.model)?;
    let loss = bench
        .objective
        .loss(&bench.model, &bench.adapted, &batch, STEP, 1.0 / pairs.len() as f64)?
        .loss
        .value
        .f_double_value(&[])?;
    bench.objective.map_gradients(&bench.adapted)?;
    Ok(loss)
}

/// The loss and the accuracy, each before and after the training.
struct Lesson {
    loss: [f64; 2],
    accuracy: [f64; 2],
}

/// Trains the case as a run at its defaults does; `None` if it trains nothing.
fn lesson(case: &Case) -> Result<Option<Lesson>> {
    let mut bench = Bench::new(case, 0)?;
    if bench.objective.needs().evaluate_only {
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
        let now = order.split_off(order.len() - train.batch * train.accumulate);
        tch::manual_seed(step as i64);
        accumulate(
            &mut bench.objective,
            &bench.model,
            &bench.adapted,
            &now,
            train.batch,
            StepInfo { step, steps: STEPS },
        )?;
        optimiser.clip(train.clip)?;
        optimiser.step(learning_rate(&train, step, STEPS))?;
    }
    let after = (loss(&mut bench, &pairs)?, accuracy(&bench, true, &pairs)?);
    Ok(Some(Lesson { loss: [before.0, after.0], accuracy: [before.1, after.1] }))
}

fn learnt(case: &Case) -> Result<Verdict> {
    let Some(Lesson { loss, accuracy }) = lesson(case)? else { return Ok(UNTRAINED) };
    let said = || {
        format!(
            "the loss went from {:.4} to {:.4}, and the accuracy from {:.3} to {:.3}",
            loss[0], loss[1], accuracy[0], accuracy[1]
        )
    };
    // Written so that NaN is a violation.
    Ok(if loss[1] < loss[0] && accuracy[1] > accuracy[0] {
        Verdict::Holds
    } else {
        Verdict::Violated(said())
    })
}
