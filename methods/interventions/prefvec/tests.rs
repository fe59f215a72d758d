use reprpo_plugin::tch::{self, Device};

use super::*;

fn tensor(values: &[f64], shape: &[i64]) -> Tensor {
    Tensor::from_slice(values).reshape(shape)
}

fn sides(chosen: &Tensor, rejected: &Tensor) -> Sides {
    Sides { chosen: chosen.shallow_clone(), rejected: rejected.shallow_clone() }
}

/// Completions of two tokens each.
fn logprobs(chosen: &Tensor, rejected: &Tensor) -> Logprobs {
    let tokens = |t: &Tensor| TokenLogprobs {
        per_token: t.shallow_clone(),
        owner: Tensor::arange(t.size()[0] / 2, (Kind::Int64, Device::Cpu)).repeat_interleave_self_int(2, 0, None),
        tokens: Tensor::full([t.size()[0] / 2], 2.0, (Kind::Double, Device::Cpu)),
        log_collision: None,
    };
    Logprobs::new(tokens(chosen), Some(tokens(rejected)))
}

fn value(config: &PrefVecConfig, policy: &[Sides], reference: &[Sides], logp: Option<(&Sides, &Sides)>) -> Tensor {
    let taps = policy.iter().zip(reference).enumerate();
    let taps = taps.map(|(k, (p, r))| TapStates::new(Site::Residual(k), sides(&p.chosen, &p.rejected), Some(sides(&r.chosen, &r.rejected)))).collect();
    let (pi, re) = logp.map(|(p, r)| (logprobs(&p.chosen, &p.rejected), logprobs(&r.chosen, &r.rejected))).unzip();
    let pairs = Pairs::new(policy[0].chosen.size()[0] as usize, taps, pi, re);
    config.clone().loss(&pairs, StepInfo { step: 0, steps: 1 }).unwrap().value
}

#[test]
fn a_case_worked_out_by_hand() {
    let config = PrefVecConfig { lambda_nll: 0.0, ..PrefVecConfig::default() };
    // d = (2, 0), so s = 2 and v̂ = (1, 0).
    let reference = || sides(&tensor(&[2.0, 0.0], &[1, 2]), &tensor(&[0.0, 0.0], &[1, 2]));
    let at = |c: &PrefVecConfig, chosen: [f64; 2], rejected: [f64; 2]| {
        value(c, &[sides(&tensor(&chosen, &[1, 2]), &tensor(&rejected, &[1, 2]))], &[reference()], None).double_value(&[])
    };
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-10, "{a} {b}");
    near(at(&config, [2.0, 0.0], [0.0, 0.0]), 1.0);
    // m⁺ = (½, 1), m⁻ = (−1, 0): ½(½ + 2) along, 0.1·½·1 off.
    near(at(&config, [3.0, 2.0], [-2.0, 0.0]), 1.25 + 0.05);
    // Past τ nothing is left to gain.
    near(at(&config, [9.0, 0.0], [4.0, 0.0]), 0.0);
    // τ = 2: ½(2 + 2)/2; p⁺ − p⁻ = (0, 2) is at a right angle to d, and m⁺ = (−1, 1), m⁻ = (0, 0).
    near(at(&PrefVecConfig { tau: 2.0, lambda_angle: 0.5, ..config.clone() }, [0.0, 2.0], [0.0, 0.0]), 0.5 * (3.0 + 2.0) / 2.0 + 0.05 + 0.5);
}

#[test]
fn it_starts_at_one_with_nothing_from_the_likelihood() {
    let r = [sides(&Tensor::randn([3, 5], (Kind::Double, Device::Cpu)), &Tensor::randn([3, 5], (Kind::Double, Device::Cpu)))];
    let logp = sides(&Tensor::randn([6], (Kind::Double, Device::Cpu)), &Tensor::randn([6], (Kind::Double, Device::Cpu)));
    assert!((value(&PrefVecConfig::default(), &r, &r, Some((&logp, &logp))).double_value(&[]) - 1.0).abs() < 1e-10);
    // Half a nat a token less likely than under the reference; more likely costs nothing.
    let worse = sides(&(&logp.chosen - 0.5), &logp.rejected);
    assert!((value(&PrefVecConfig::default(), &r, &r, Some((&worse, &logp))).double_value(&[]) - 1.5).abs() < 1e-10);
    assert!((value(&PrefVecConfig::default(), &r, &r, Some((&logp, &worse))).double_value(&[]) - 1.0).abs() < 1e-10);
}

#[test]
fn gradients_are_those_of_finite_differences() {
    tch::manual_seed(0);
    let config = PrefVecConfig { tau: 1.0, beta_orth: 0.3, lambda_angle: 0.7, lambda_nll: 0.9, lambda_dpo: 1.1, beta: 0.2 };
    let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Double, Device::Cpu));
    let pair = |shape: &[i64]| sides(&random(shape), &random(shape));
    let (policy, reference) = ([pair(&[3, 5]), pair(&[3, 4])], [pair(&[3, 5]), pair(&[3, 4])]);
    let (logp, logr) = (pair(&[6]), pair(&[6]));
    let leaves: Vec<&Tensor> = policy.iter().chain([&logp]).flat_map(|s| [&s.chosen, &s.rejected]).collect();
    for leaf in &leaves {
        let _ = leaf.set_requires_grad(true);
    }
    let loss = || value(&config, &policy, &reference, Some((&logp, &logr)));
    loss().backward();
    let _guard = tch::no_grad_guard();
    for leaf in leaves {
        let (grad, flat) = (leaf.grad().reshape([-1]), leaf.detach().view([-1]));
        for i in 0..flat.size()[0] {
            let (mut element, step) = (flat.get(i), 1e-6);
            element += step;
            let above = loss().double_value(&[]);
            element -= 2.0 * step;
            let below = loss().double_value(&[]);
            element += step;
            let (numeric, exact) = ((above - below) / (2.0 * step), grad.double_value(&[i]));
            assert!((numeric - exact).abs() < 1e-7 * exact.abs().max(1.0), "{numeric} {exact}");
        }
    }
}

#[test]
fn it_asks_for_what_its_weights_need() {
    let needs = |lambda_nll, lambda_dpo| PrefVecConfig { lambda_nll, lambda_dpo, ..PrefVecConfig::default() }.needs();
    assert_eq!(needs(0.0, 0.0).logprobs, Completions::None);
    assert!(!needs(0.0, 0.0).reference_logprobs && needs(0.0, 0.0).reference_states);
    assert_eq!(needs(1.0, 0.0).logprobs, Completions::Chosen);
    assert_eq!(needs(0.0, 1.0).logprobs, Completions::Both);
}
