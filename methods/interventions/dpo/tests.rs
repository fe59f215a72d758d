use reprpo_plugin::tch::Device;

use super::*;

/// Completions of one token each, of these log-probabilities.
fn logprobs(chosen: &[f64], rejected: &[f64]) -> Logprobs {
    let tokens = |sums: &[f64]| TokenLogprobs {
        per_token: Tensor::from_slice(sums),
        owner: Tensor::arange(sums.len() as i64, (Kind::Int64, Device::Cpu)),
        tokens: Tensor::ones([sums.len() as i64], (Kind::Double, Device::Cpu)),
        log_collision: None,
    };
    Logprobs::new(tokens(chosen), Some(tokens(rejected)))
}

fn loss(policy: [&[f64]; 2], reference: [&[f64]; 2]) -> Loss {
    let pairs = Pairs::new(policy[0].len(), Vec::new(), Some(logprobs(policy[0], policy[1])), Some(logprobs(reference[0], reference[1])));
    DpoConfig::default().loss(&pairs, StepInfo { step: 0, steps: 1 }).unwrap()
}

fn neg_log_sigmoid(x: f64) -> f64 {
    (-x).exp().ln_1p()
}

#[test]
fn torchtunes_vectors() {
    let policy: [&[f64]; 2] = [&[-0.5, -10.0, -1.0], &[-0.1, -30.0, -21.0]];
    let reference: [&[f64]; 2] = [&[-0.5, -10.1, -0.1], &[-0.1, -20.1, -0.1]];
    for (i, expected) in [0.0, 1.0, 2.0].into_iter().enumerate() {
        let at = |sides: [&'static [f64]; 2]| sides.map(|s| &s[i..=i]);
        let value = loss(at(policy), at(reference)).value.double_value(&[]);
        assert!((value - neg_log_sigmoid(expected)).abs() < 1e-12, "{value}");
    }
    let all = loss(policy, reference);
    let mean = (neg_log_sigmoid(0.0) + neg_log_sigmoid(1.0) + neg_log_sigmoid(2.0)) / 3.0;
    assert!((all.value.double_value(&[]) - mean).abs() < 1e-12);
    let logged = |name: &str| all.metrics.iter().find(|(n, _)| n == name).unwrap().1.double_value(&[]);
    assert!((logged("rewards/margins") - 1.0).abs() < 1e-6);
    // A tie is no success, as TRL counts.
    assert!((logged("rewards/accuracies") - 2.0 / 3.0).abs() < 1e-6);
}

#[test]
fn it_starts_at_log_two() {
    let same: [&[f64]; 2] = [&[-3.0, -7.5], &[-2.0, -9.0]];
    assert!((loss(same, same).value.double_value(&[]) - std::f64::consts::LN_2).abs() < 1e-12);
}

#[test]
fn beta_has_to_be_above_zero() {
    let model = ModelInfo { architecture: "llama".to_owned(), layers: 1, hidden: 1, heads: 1, head_dim: 1, vocab: 1, linears: Vec::new() };
    for beta in [0.0, -0.1, f64::NAN, f64::INFINITY] {
        assert!(Dpo::build(DpoConfig { beta, ..DpoConfig::default() }, &model).is_err(), "{beta}");
    }
}
