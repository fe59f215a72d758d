//! Checks that training only the transform cannot make a loss small.

use reprpo_core::config::TrainConfig;
use reprpo_core::registry::Registry;
use reprpo_core::train::{AdamW, Group};
use reprpo_plugin::prelude::*;
use reprpo_plugin::tch::{self, Device};

use super::innerpo::{InnerPo, Mode};
use super::mse::Mse;
use super::prefvec::PrefVec;
use super::rank::Rank;
use reprpo_plugin::testkit::{STEP, logprobs, map, model, random, random_sides, tap};

const WIDTH: i64 = 8;
/// Number of pairs. With this many pairs, T cannot fit their random directions.
const PAIRS: i64 = 8192;

/// T(x) = xW without any constraint on W.
struct Free {
    w: Tensor,
}

impl Transform for Free {
    fn forward(&self, h: &Tensor, _: &Around) -> Result<Tensor> {
        Ok(h.matmul(&self.w))
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::new("weight", &self.w)]
    }

    fn linear(&self) -> bool {
        true
    }

    fn orthogonal(&self) -> bool {
        false
    }
}

fn built_in(name: &str, json: &str) -> Box<dyn Transform> {
    let entry = Registry::builtin().unwrap().transform(name).unwrap();
    let (site, matrix) = (Site::Residual(1), random(&[11, WIDTH]));
    let cx = TransformCx {
        model: &model(),
        site: &site,
        width: WIDTH,
        embedding: &matrix,
        unembedding: &matrix,
    };
    entry.build(json, &cx, &mut Init::new(0, "hidden_states.1", Kind::Double, Device::Cpu)).unwrap()
}

fn free() -> Box<dyn Transform> {
    Box::new(Free { w: Tensor::eye(WIDTH, (Kind::Double, Device::Cpu)).set_requires_grad(true) })
}

/// Returns the singular values of T, largest first.
fn singular_values(t: &dyn Transform) -> Vec<f64> {
    let _guard = tch::no_grad_guard();
    let matrix =
        t.forward(&Tensor::eye(WIDTH, (Kind::Double, Device::Cpu)), &Around::default()).unwrap();
    Vec::try_from(matrix.svd(true, false).1).unwrap()
}

/// Trains only T on fixed states. Returns the loss before and after training.
fn train(
    method: &mut dyn Intervention,
    t: &dyn Transform,
    policy: &Sides,
    reference: &Sides,
    steps: usize,
) -> (f64, f64) {
    let parameters = t.parameters().into_iter().map(|p| (p.key, p.tensor)).collect();
    let mut optimiser = AdamW::new(vec![Group { parameters, scale: 1.0 }], &TrainConfig::default());
    let mut losses = Vec::new();
    for _ in 0..=steps {
        let through = |x: &Sides| map(x, |x| t.forward(x, &Around::default()).unwrap());
        let zero = Sides::of(|_| Tensor::zeros([PAIRS], (Kind::Double, Device::Cpu)));
        let logp = || Some(logprobs(&zero, 1));
        let loss = method
            .loss(
                &Pairs::new(
                    PAIRS as usize,
                    vec![tap(&through(policy), &through(reference))],
                    logp(),
                    logp(),
                ),
                STEP,
            )
            .unwrap()
            .value;
        loss.backward();
        optimiser.step(2e-2).unwrap();
        losses.push(loss.double_value(&[]));
    }
    (losses[0], losses[steps])
}

#[test]
fn training_only_the_transform_does_not_lower_the_loss() {
    let reference = random_sides(&[PAIRS, WIDTH]);
    // Add random offsets to the policy's states, to imitate a policy in the middle of training.
    let policy = map(&reference, |r| r + random(&[PAIRS, WIDTH]) * 0.5);
    // The number in each entry is a lower bound for the last loss divided by the first loss. The
    // flag is true if an unconstrained T must keep its rank. With prefvec, T may lose rank:
    // shrinking the components orthogonal to v̂ lowers the orthogonal term. This term is only a few
    // hundredths of the loss.
    // The inner term of innerpo is nearly the whole loss with a large α.
    let innerpo = |mode| Box::new(InnerPo { mode, alpha: Some(1e3), ..InnerPo::default() });
    let methods: [(&str, Box<dyn Intervention>, f64, bool); 6] = [
        ("mse", Box::new(Mse::default()), 0.99, true),
        ("rank", Box::new(Rank::default()), 0.98, true),
        // The likelihood term is disabled, because it does not depend on T.
        ("prefvec", Box::new(PrefVec { lambda_nll: 0.0, ..PrefVec::default() }), 0.97, false),
        ("innerpo", innerpo(Mode::Innerdpo), 0.98, true),
        ("innerpo topk", innerpo(Mode::Topk), 0.98, true),
        ("innerpo topkl", innerpo(Mode::Topkl), 0.98, true),
    ];
    for (name, mut method, least, keeps_rank) in methods {
        // Transforms that preserve lengths by construction need fewer steps.
        let transforms = [
            ("ortho", built_in("ortho", "{}"), 40),
            ("hra", built_in("hra", r#"{"r": 4}"#), 40),
            ("free", free(), 200),
        ];
        for (transform, t, steps) in transforms {
            let (first, last) = train(method.as_mut(), t.as_ref(), &policy, &reference, steps);
            let values = singular_values(t.as_ref());
            eprintln!("{name}, {transform}: {first:.3} → {last:.3}, singular values {values:.2?}");
            assert!(
                last > least * first,
                "{name}, {transform}: the loss fell from {first} to {last}"
            );
            let (largest, smallest) = (values[0], values[values.len() - 1]);
            let scale = if transform == "free" { 0.5..10.0 } else { 0.999..1.001 };
            assert!(scale.contains(&largest), "{name}, {transform}: {values:?}");
            assert!(
                smallest > 0.02 * largest || (transform == "free" && !keeps_rank),
                "{name}, {transform}: {values:?}"
            );
        }
    }
}

#[test]
fn a_transform_that_keeps_lengths_only_changes_the_loss_of_rank() {
    let (policy, reference) = (random_sides(&[PAIRS, WIDTH]), random_sides(&[PAIRS, WIDTH]));
    let t = built_in("ortho", "{}");
    let through = |x: &Sides| map(x, |x| t.forward(x, &Around::default()).unwrap());
    let change = |method: &mut dyn Intervention| {
        let mut value = |p: &Sides, r: &Sides| {
            method
                .loss(&Pairs::new(PAIRS as usize, vec![tap(p, r)], None, None), STEP)
                .unwrap()
                .value
                .double_value(&[])
        };
        (value(&through(&policy), &through(&reference)) - value(&policy, &reference)).abs()
    };
    assert!(change(&mut Mse::default()) < 1e-9);
    assert!(change(&mut Mse { log: true, ..Mse::default() }) < 1e-9);
    assert!(
        change(&mut PrefVec { lambda_nll: 0.0, lambda_angle: 1.0, ..PrefVec::default() }) < 1e-9
    );
    assert!(change(&mut Rank::default()) > 1e-3);
}
