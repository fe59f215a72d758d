//! A pair whose reference states are equal has no preference direction. Such a pair must contribute
//! neither to the loss nor to the number of pairs by which the loss is divided.

use reprpo_core::conformance::{model, pairs};
use reprpo_core::model::Adapted;
use reprpo_core::registry::Registry;
use reprpo_core::text::TokenPair;
use reprpo_core::train::{Accumulated, Objective, Reference, Taps, accumulate};
use reprpo_plugin::prelude::*;
use reprpo_plugin::testkit::{
    STEP, logged, logprobs, map, near, random, random_sides, sides, tap, tensor,
};

use super::innerpo::{InnerPo, Mode};
use super::mse::Mse;
use super::prefvec::PrefVec;
use super::rank::Rank;

fn methods() -> [(&'static str, Box<dyn Intervention>); 6] {
    let prefvec = PrefVec { lambda_angle: 0.5, lambda_dpo: 0.5, ..PrefVec::default() };
    [
        ("mse/reroute", Box::new(Mse::default())),
        ("mse/retain", Box::new(Mse { log: true, ..Mse::default() })),
        ("rank/reroute", Box::new(Rank { temperature: 1.0, ..Rank::default() })),
        ("prefvec/along", Box::new(prefvec)),
        ("innerpo/inner", Box::new(InnerPo::default())),
        ("innerpo/margin", Box::new(InnerPo { mode: Mode::Topk, ..InnerPo::default() })),
    ]
}

/// Returns a batch of the pairs with the indices `rows`. Every completion has two tokens.
fn batch_of_rows(policy: &[Sides], reference: &[Sides], logp: &[Sides; 2], rows: &[i64]) -> Pairs {
    let index = Tensor::from_slice(rows);
    let pick = |x: &Sides| map(x, |x| x.index_select(0, &index));
    let taps = policy.iter().zip(reference).map(|(p, r)| tap(&pick(p), &pick(r))).collect();
    let of = |x: &Sides| {
        logprobs(&map(x, |x| x.reshape([-1, 2]).index_select(0, &index).reshape([-1])), 2)
    };
    Pairs::new(rows.len(), taps, Some(of(&logp[0])), Some(of(&logp[1])))
}

/// Sets the rejected state of pair 1 to its chosen state times 1 + `off`, so that the two states
/// are equal up to rounding.
fn with_equal(reference: &Sides, off: f64) -> Sides {
    let rejected = reference.rejected.copy();
    rejected.get(1).copy_(&(reference.chosen.get(1) * (1.0 + off)));
    sides(&reference.chosen, &rejected)
}

#[test]
fn a_pair_with_equal_states_is_left_out_and_does_not_dilute_the_others() {
    for off in [0.0, 4e-16] {
        let (policy, logp) = (
            [random_sides(&[3, 5]), random_sides(&[3, 4])],
            [random_sides(&[6]), random_sides(&[6])],
        );
        let reference =
            [with_equal(&random_sides(&[3, 5]), off), with_equal(&random_sides(&[3, 4]), off)];
        for (name, mut method) in methods() {
            let leaves =
                [&policy[0].chosen, &policy[0].rejected, &reference[0].chosen, &logp[0].chosen];
            for leaf in leaves {
                let _ = leaf.set_requires_grad(true);
            }
            let mut run = |rows: &[i64]| {
                let loss =
                    method.loss(&batch_of_rows(&policy, &reference, &logp, rows), STEP).unwrap();
                let gradients = Tensor::run_backward(&[&loss.value], &leaves, false, false);
                (loss, gradients)
            };
            let ((with, with_grads), (without, without_grads)) = (run(&[0, 1, 2]), run(&[0, 2]));
            near(with.value.double_value(&[]), without.value.double_value(&[]));
            assert!((logged(&with, name) - logged(&without, name)).abs() < 1e-6, "{name}");
            for (a, b) in with_grads.iter().zip(&without_grads).filter(|(a, _)| a.defined()) {
                assert!((a - b).abs().max().double_value(&[]) < 1e-9, "{name}: {a} {b}");
            }
            let partial = with.partial.unwrap();
            assert_eq!(Vec::<f64>::try_from(partial.counts).unwrap(), [1.0, 0.0, 1.0], "{name}");
            assert!(partial.lacking.starts_with("no preference direction"), "{name}");
            for leaf in leaves {
                let _ = leaf.set_requires_grad(false);
            }
        }
    }
}

#[test]
fn a_pair_counts_only_at_the_taps_where_its_states_differ() {
    let (policy, reference) = (
        [random_sides(&[2, 5]), random_sides(&[2, 4])],
        [random_sides(&[2, 5]), random_sides(&[2, 4])],
    );
    let logp = [random_sides(&[4]), random_sides(&[4])];
    let half = [with_equal(&reference[0], 0.0), map(&reference[1], Tensor::shallow_clone)];
    for (name, mut method) in methods() {
        let value = |method: &mut dyn Intervention, taps: std::ops::Range<usize>, rows: &[i64]| {
            method
                .loss(&batch_of_rows(&policy[taps.clone()], &half[taps], &logp, rows), STEP)
                .unwrap()
                .value
                .double_value(&[])
        };
        let both = value(method.as_mut(), 0..2, &[0, 1]);
        let expected =
            (value(method.as_mut(), 0..2, &[0]) + value(method.as_mut(), 1..2, &[1])) / 2.0;
        assert!((both - expected).abs() < 1e-9, "{name}: {both} {expected}");
    }
}

#[test]
fn a_batch_of_only_pairs_with_equal_states_has_no_loss_and_no_gradient() {
    let policy = random_sides(&[1, 5]);
    let equal = tensor(&[1.0, -2.0, 3.0, 0.5, 4.0], &[1, 5]);
    let logp = [random_sides(&[2]), random_sides(&[2])];
    let _ = policy.chosen.set_requires_grad(true);
    for (name, mut method) in methods() {
        let loss = method
            .loss(
                &batch_of_rows(
                    &[map(&policy, Tensor::shallow_clone)],
                    &[sides(&equal, &equal)],
                    &logp,
                    &[0],
                ),
                STEP,
            )
            .unwrap();
        assert_eq!(loss.value.double_value(&[]), 0.0, "{name}");
        let gradient = &Tensor::run_backward(&[&loss.value], &[&policy.chosen], false, false)[0];
        assert_eq!(gradient.abs().max().double_value(&[]), 0.0, "{name}");
    }
}

#[test]
fn no_pair_counts_at_a_temperature_that_leaves_only_rounding_errors() {
    let states = map(&random_sides(&[4, 16]), |x| x.to_kind(Kind::Float));
    let counted = |temperature: f64| {
        let mut method = Rank { temperature, ..Rank::default() };
        let loss =
            method.loss(&Pairs::new(4, vec![tap(&states, &states)], None, None), STEP).unwrap();
        loss.partial.unwrap().counts.sum(Kind::Float).double_value(&[])
    };
    assert_eq!((counted(1.0), counted(1e6)), (4.0, 0.0));
}

/// Runs one training step with LoRA on the small model. Returns its outcome and the gradient of
/// every parameter.
fn step(
    method: Box<dyn Intervention>,
    pairs: &[TokenPair],
    batch: usize,
) -> (Accumulated, Vec<Tensor>) {
    let model = model(Kind::Double).unwrap();
    let registry = Registry::builtin().unwrap();
    let lora = registry.adapter("lora").unwrap().build(r#"{"r": 4}"#).unwrap();
    let adapted = Adapted::attach(lora.as_ref(), &model, model.info().layers, 0).unwrap();
    let mut noise = Init::new(3, "noise", Kind::Double, reprpo_plugin::tch::Device::Cpu);
    for (name, tensor) in adapted.parameters() {
        let _ = tensor.detach().g_add_(&noise.normal(&name, &tensor.size(), 0.1).detach());
    }
    let site = Site::Residual(2);
    let matrix = random(&[4, model.info().hidden as i64]);
    let cx = TransformCx {
        model: model.info(),
        site: &site,
        width: model.info().hidden as i64,
        embedding: &matrix,
        unembedding: &matrix,
    };
    let mut init = Init::new(0, "t", Kind::Double, reprpo_plugin::tch::Device::Cpu);
    let transform = registry.transform("none").unwrap().build("{}", &cx, &mut init).unwrap();
    let taps = Taps {
        sites: vec![site.clone()],
        pooling: Pooling::Completion,
        transforms: vec![transform],
        transform_of: vec![0],
        ..Taps::default()
    };
    let mut objective = Objective::new(method, taps, Reference::default(), &adapted).unwrap();
    let accumulated = accumulate(
        &mut objective,
        &model,
        &adapted,
        &pairs.iter().collect::<Vec<_>>(),
        batch,
        STEP,
        0,
    )
    .unwrap();
    (
        accumulated,
        adapted
            .parameters()
            .iter()
            .map(|(_, t)| if t.grad().defined() { t.grad().copy() } else { t.zeros_like() })
            .collect(),
    )
}

#[test]
fn every_counted_pair_has_the_same_weight_in_uneven_micro_batches() {
    let plain = pairs();
    let twin = |index| TokenPair { index, chosen: vec![1], rejected: vec![1], ..plain[0].clone() };
    let mut mixed = plain.clone();
    mixed.insert(1, twin(7));
    mixed.insert(4, twin(8));
    for i in 0..methods().len() {
        let of = |pairs: &[TokenPair], batch| {
            step(methods().into_iter().nth(i).unwrap().1, pairs, batch)
        };
        let ((without, expected), name) = (of(&plain, 6), methods()[i].0);
        assert_eq!(without.left_out.unwrap().pairs, 0, "{name}");
        // With these batch sizes, the number of counted pairs in a micro-batch ranges from zero to
        // several.
        for batch in [8, 2, 1] {
            let (with, gradients) = of(&mixed, batch);
            assert_eq!(with.left_out.unwrap().pairs, 2, "{name}");
            near(with.loss, without.loss);
            let metric = |accumulated: &Accumulated| {
                accumulated.metrics.iter().find(|(n, _)| n == name).unwrap().1
            };
            assert!((metric(&with) - metric(&without)).abs() < 1e-6, "{name}");
            for (a, b) in gradients.iter().zip(&expected) {
                assert!(
                    (a - b).abs().max().double_value(&[])
                        < 1e-9 * b.abs().max().double_value(&[]).max(1e-3),
                    "{name}, {batch}"
                );
            }
        }
        let (nothing, gradients) = of(&[twin(7), twin(8)], 1);
        assert_eq!((nothing.loss, nothing.left_out.unwrap().pairs), (0.0, 2), "{name}");
        assert!(gradients.iter().all(|g| g.abs().max().double_value(&[]) == 0.0), "{name}");
        assert!(
            nothing.metrics.iter().all(|(n, _)| n != name),
            "a mean over zero pairs was logged"
        );
    }
}

#[test]
fn the_original_variants_count_every_pair() {
    use super::original::Variant;

    let mse = Mse { variant: Variant::Original, ..Mse::default() };
    let states = random_sides(&[2, 5, 4]);
    let at =
        reprpo_plugin::testkit::tap_of_tokens(&states, &sides(&states.chosen, &states.chosen), 2);
    assert!(
        mse.clone().loss(&Pairs::new(2, vec![at], None, None), STEP).unwrap().partial.is_none()
    );
}
