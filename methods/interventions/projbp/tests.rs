//! Compares the gradient hooks with a segmented backward pass. The segmented pass cuts the graph at
//! the output of every adapted module. It propagates the gradient across the cuts explicitly, from
//! the last cut to the first.

use std::cell::RefCell;

use reprpo_core::batch::{BatchSpec, PairBatch, Sharing};
use reprpo_core::conformance::{model, pairs};
use reprpo_core::model::pass::Request;
use reprpo_core::model::{Adapted, Detail, FinalStates, Model, PassSeed};
use reprpo_core::registry::Registry;
use reprpo_core::text::TokenPair;
use reprpo_core::train::{Objective, Reference, Taps, accumulate};
use reprpo_plugin::tch::{self, Device};

use super::*;

const STEP: StepInfo = StepInfo { step: 0, steps: 1, seed: 0 };

fn adapter(targets: &str) -> Box<dyn Adapter> {
    let lora = Registry::builtin().unwrap().adapter("lora").unwrap();
    lora.build(&format!(r#"{{"r": 4, "target_modules": {targets}}}"#)).unwrap()
}

/// Returns an adapter with noise added to its parameters. With the initial values, half of the
/// parameters would have no gradient.
fn attached(model: &Model, targets: &str) -> Adapted {
    let adapted =
        Adapted::attach(adapter(targets).as_ref(), model, model.info().layers, 0).unwrap();
    // libtorch's generator is shared by all tests, so the noise comes from `Init`.
    let mut noise = Init::new(3, "noise", Kind::Double, Device::Cpu);
    for (name, tensor) in adapted.parameters() {
        let _ = tensor.detach().g_add_(&noise.normal(&name, &tensor.size(), 0.1).detach());
    }
    adapted
}

fn gradients(adapted: &Adapted) -> Vec<Tensor> {
    adapted.parameters().iter().map(|(_, t)| t.grad().copy()).collect()
}

fn hooked(config: &ProjBp, model: &Model, targets: &str) -> Vec<Tensor> {
    let adapted = attached(model, targets);
    let taps = Taps::default();
    let mut objective = Objective::new(
        config.clone().build(model.info()).unwrap(),
        taps,
        Reference::default(),
        &adapted,
    )
    .unwrap();
    let pairs = pairs();
    accumulate(&mut objective, model, &adapted, &pairs.iter().collect::<Vec<_>>(), 6, STEP, 0)
        .unwrap();
    gradients(&adapted)
}

/// Computes the same gradients as [`hooked`], but with a segmented backward pass.
fn segmented(config: &ProjBp, model: &Model, targets: &str) -> Vec<Tensor> {
    let adapted = attached(model, targets);
    let pairs: Vec<TokenPair> = pairs();
    let spec = BatchSpec {
        logprobs: Completions::Both,
        states: Completions::Both,
        sharing: Sharing::WithinPair,
    };
    let batch = PairBatch::of(&pairs.iter().collect::<Vec<_>>(), spec, model).unwrap();
    let mut method = Projected { config: config.clone(), loss: Box::new(config.dpo.clone()) };
    let logprobs = |hidden: &FinalStates| {
        let logps =
            model.score_tokens(hidden, &batch.predicted, Detail::NONE, None).unwrap().logprobs;
        Logprobs::new(
            batch.tokens_of(&logps, Side::Chosen).unwrap(),
            Some(batch.tokens_of(&logps, Side::Rejected).unwrap()),
        )
    };

    let outputs: Vec<Site> = adapted.changed().map(|c| c.output).collect();
    let reference = {
        let _guard = tch::no_grad_guard();
        model
            .forward(&batch.stream, Request { sites: &outputs, hidden: true, ..Request::default() })
            .unwrap()
    };
    let direction = |i: usize| {
        let pool = |side| batch.pool(&reference.states[i], Pooling::Completion, side).unwrap();
        pool(Side::Chosen) - pool(Side::Rejected)
    };

    let cuts = RefCell::new(Vec::new());
    let cut = |site: &Site, y: Tensor| {
        let leaf = y.detach().set_requires_grad(true);
        cuts.borrow_mut().push((site.clone(), y, leaf.shallow_clone()));
        Ok(leaf)
    };
    let reached = model
        .forward(
            &batch.stream,
            Request {
                adapted: Some(&adapted),
                train: Some(PassSeed::default()),
                hidden: true,
                intercept: Some(&cut),
                ..Request::default()
            },
        )
        .unwrap();
    let loss = method
        .loss(
            &Pairs::new(
                batch.len(),
                Vec::new(),
                Some(logprobs(&reached.hidden.unwrap())),
                Some(logprobs(&reference.hidden.unwrap())),
            ),
            STEP,
        )
        .unwrap();

    // The residual stream bypasses the cuts, so several backward passes contribute to the same
    // gradient. Sum their contributions.
    let cuts = cuts.into_inner();
    let leaves: Vec<Tensor> = cuts
        .iter()
        .map(|(_, _, leaf)| leaf.shallow_clone())
        .chain(adapted.parameters().into_iter().map(|(_, t)| t))
        .collect();
    let mut sums: Vec<Tensor> = leaves.iter().map(Tensor::zeros_like).collect();
    let accumulate_from = |sums: &mut Vec<Tensor>, from: &Tensor| {
        for (sum, part) in sums.iter_mut().zip(Tensor::run_backward(&[from], &leaves, true, false))
        {
            if part.defined() {
                *sum += part;
            }
        }
    };
    accumulate_from(&mut sums, &loss.value);
    for (i, (site, y, _)) in cuts.iter().enumerate().rev() {
        let place = outputs.iter().position(|o| o == site).unwrap();
        let at = OutputGrad {
            site: site.clone(),
            direction: direction(place),
            owner: batch.row_owner().unwrap(),
            weight: 1.0 / batch.len() as f64,
            step: STEP,
        };
        let mapped = method.output_grad(at).unwrap()(&sums[i]).unwrap();
        accumulate_from(&mut sums, &(y * mapped).sum(Kind::Double));
    }
    sums.split_off(cuts.len())
}

fn assert_hooks_equal_segments(model: &Model, targets: &[&str]) {
    let configs = [
        ProjBp::default(),
        ProjBp { variant: Variant::Original, ..ProjBp::default() },
        ProjBp { keep_norm: false, mag_clip: Some(1e-3), ..ProjBp::default() },
        ProjBp {
            sign: Sign::Both,
            beta: 0.0,
            keep_norm: false,
            mag_clip: None,
            ..ProjBp::default()
        },
    ];
    for config in &configs {
        for targets in targets {
            for (hooked, segmented) in
                hooked(config, model, targets).iter().zip(segmented(config, model, targets))
            {
                let scale = segmented.abs().max().double_value(&[]);
                let off = (hooked - &segmented).abs().max().double_value(&[]);
                assert!(
                    scale > 0.0 && off <= 1e-9 * scale,
                    "{targets}: largest error {off}, largest gradient {scale}"
                );
            }
        }
    }
}

#[test]
fn hooks_equal_a_backward_pass_in_segments() {
    let targets =
        [r#"["q_proj", "v_proj"]"#, r#"["o_proj"]"#, r#"["down_proj"]"#, r#""all-linear""#];
    assert_hooks_equal_segments(&model(Kind::Double).unwrap(), &targets);
}

#[test]
fn hooks_on_parts_of_modules_equal_a_backward_pass_in_segments() {
    for (name, targets) in [
        ("phi3", r#"["qkv_proj.k_proj", "gate_up_proj.up_proj"]"#),
        ("gpt_neox", r#"["query_key_value.q_proj", "query_key_value.v_proj"]"#),
    ] {
        let dir = crate::golden::own().join("models").join(name);
        let files = reprpo_core::weights::ModelFiles::open(&dir).unwrap();
        assert_hooks_equal_segments(
            &Model::load(&files, Kind::Double, Device::Cpu).unwrap(),
            &[targets],
        );
    }
}

#[test]
fn a_projection_that_keeps_everything_equals_dpo() {
    let keep = ProjBp {
        beta: 1.0,
        sign: Sign::Both,
        mag_clip: None,
        keep_norm: true,
        ..ProjBp::default()
    };
    let model = model(Kind::Double).unwrap();
    let adapted = attached(&model, r#""all-linear""#);
    let taps = Taps::default();
    let mut objective = Objective::new(
        keep.dpo.clone().build(model.info()).unwrap(),
        taps,
        Reference::default(),
        &adapted,
    )
    .unwrap();
    let pairs = pairs();
    accumulate(&mut objective, &model, &adapted, &pairs.iter().collect::<Vec<_>>(), 2, STEP, 0)
        .unwrap();
    for (plain, hooked) in gradients(&adapted).iter().zip(hooked(&keep, &model, r#""all-linear""#))
    {
        assert!(
            (plain - &hooked).abs().max().double_value(&[])
                < 1e-9 * plain.abs().max().double_value(&[]).max(1e-3)
        );
    }
}

#[test]
fn only_the_original_clips_by_default() {
    let c = Tensor::from_slice(&[-2.0f64, 3.0]);
    let passed = |config: ProjBp| Vec::<f64>::try_from(config.kept().clip(&c, 0.5)).unwrap();
    assert_eq!(passed(ProjBp::default()), [-2.0, 3.0]);
    // The variant `Original` ignores `sign`.
    for sign in [Sign::Both, Sign::Pos, Sign::Neg] {
        assert_eq!(
            passed(ProjBp { variant: Variant::Original, sign, ..ProjBp::default() }),
            [-1.0, 3.0]
        );
    }
}
