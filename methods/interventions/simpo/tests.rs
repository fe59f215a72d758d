use super::*;
use reprpo_plugin::testkit::{STEP, logged, model, near, tensor, tokens};

#[test]
fn loss_gradient_and_metrics_of_two_pairs_equal_a_calculation_by_hand() {
    // The completions of the first pair have two tokens and one, those of the second one and two.
    // R⁺ − R⁻ is 2·(−2) − 2·(−4) = 4 for the first pair and 2·(−1) − 2·(−1) = 0 for the second; γ =
    // 1.
    let leaf = tensor(&[-1.0, -3.0, -1.0], &[3]).set_requires_grad(true);
    let (chosen, rejected) =
        (tokens(&leaf, &[2, 1]), tokens(&tensor(&[-4.0, -0.5, -1.5], &[3]), &[1, 2]));
    let pairs = Pairs::new(2, Vec::new(), Some(Logprobs::new(chosen, Some(rejected))), None);
    let loss = SimPo::default().loss(&pairs, STEP).unwrap();
    let neg_log_sigmoid = |x: f64| (-x).exp().ln_1p();
    near(loss.value.double_value(&[]), f64::midpoint(neg_log_sigmoid(3.0), neg_log_sigmoid(-1.0)));

    // For two pairs, ∂L/∂logp_t = −σ(γ − (R⁺ − R⁻))·β/n⁺ / 2.
    loss.value.backward();
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    for (token, expected) in
        [(0, -sigmoid(-3.0) / 2.0), (1, -sigmoid(-3.0) / 2.0), (2, -sigmoid(1.0))]
    {
        near(leaf.grad().double_value(&[token]), expected);
    }
    for (metric, expected) in [
        ("rewards/chosen", -3.0),
        ("rewards/rejected", -5.0),
        ("rewards/margins", 2.0),
        ("rewards/accuracies", 0.5),
        ("nll_loss", 0.0),
    ] {
        near(logged(&loss, metric), expected);
    }

    let mut more = SimPo { label_smoothing: 0.2, cpo_alpha: 0.5, ..SimPo::default() };
    let each = |x: f64| 0.8 * neg_log_sigmoid(x) + 0.2 * neg_log_sigmoid(-x);
    near(
        more.loss(&pairs, STEP).unwrap().value.double_value(&[]),
        f64::midpoint(each(3.0), each(-1.0)) + 0.5 * 5.0 / 3.0,
    );
    assert!(more.needs().depends_on_batch && !SimPo::default().needs().depends_on_batch);
}

#[test]
fn a_field_out_of_range_is_an_error_that_names_it() {
    let refused = |config: SimPo| config.build(&model()).err().unwrap().to_string();
    for (config, message) in [
        (SimPo { beta: 0.0, ..SimPo::default() }, "beta` must be greater than 0, got 0"),
        (SimPo { simpo_gamma: f64::NAN, ..SimPo::default() }, "simpo_gamma` must be 0 or more"),
        (SimPo { cpo_alpha: -0.5, ..SimPo::default() }, "cpo_alpha` must be 0 or more, got -0.5"),
        (SimPo { label_smoothing: 1.0, ..SimPo::default() }, "label_smoothing` must be at least 0"),
    ] {
        let error = refused(config);
        assert!(error.contains(&format!("`intervention.{message}")), "{error}");
    }
}
