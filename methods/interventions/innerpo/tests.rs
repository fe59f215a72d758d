use super::*;
use reprpo_plugin::serde_json::{self, Value, json};
use reprpo_plugin::tch::Device;
use reprpo_plugin::testkit::{
    STEP, gradients_are_those_of_finite_differences, logged, logprobs, map, model, near, random,
    random_sides, sides, tap, tap_of_tokens, tensor, tokens,
};

const LN_2: f64 = std::f64::consts::LN_2;

fn config(fields: Value) -> InnerPo {
    serde_json::from_value(fields).unwrap()
}

/// Computes the loss of the pairs at the given taps. The policy and the reference have the same
/// log-probabilities.
fn loss(config: &InnerPo, taps: Vec<TapStates>, pairs: i64) -> Loss {
    let logp = Sides::of(|_| Tensor::zeros([pairs], (Kind::Double, Device::Cpu)));
    let of = || Some(logprobs(&logp, 1));
    let pairs = Pairs::new(pairs as usize, taps, of(), of());
    config.clone().loss(&pairs, STEP).unwrap()
}

fn row(chosen: &[f64], rejected: &[f64]) -> Sides {
    let of = |x: &[f64]| tensor(x, &[1, x.len() as i64]);
    sides(&of(chosen), &of(rejected))
}

/// Computes the inner term of one pair. At θ = 0, the loss of DPO is log 2.
fn inner(config: &InnerPo, taps: Vec<TapStates>) -> f64 {
    let loss = loss(config, taps, 1);
    let inner = (loss.value.double_value(&[]) - LN_2) / config.alpha();
    assert!((logged(&loss, "innerpo/inner") - inner).abs() < 1e-5);
    inner
}

#[test]
fn the_inner_term_of_each_function_equals_a_calculation_by_hand() {
    // d = (2, 0), so s = 2. p⁺ − p⁻ = (3, 1), so x = 3/2 − 1.
    let reference = row(&[2.0, 5.0], &[0.0, 5.0]);
    let at = |fields: Value, chosen: [f64; 2]| {
        inner(&config(fields), vec![tap(&row(&chosen, &[0.0, 0.0]), &reference)])
    };
    near(at(json!({}), [3.0, 1.0]), 0.25);
    near(at(json!({ "tau": 2.0, "alpha": 0.7 }), [3.0, 1.0]), 2.25);
    // At the start, x = 0. Beyond τ, the loss is constant.
    near(at(json!({}), [2.0, 0.0]), 1.0);
    near(at(json!({}), [9.0, 0.0]), 0.0);
    near(at(json!({ "inner": "symlog" }), [3.0, 1.0]), -(2.5f64.ln()));
    near(at(json!({ "inner": "symlog" }), [-3.0, 1.0]), 2.5f64.ln());
    near(at(json!({ "inner": "symlog" }), [9.0, 0.0]), -(3f64.ln()));
    let neg_log_sigmoid = |x: f64| (-x).exp().ln_1p();
    near(at(json!({ "inner": "sigmoid" }), [3.0, 1.0]), neg_log_sigmoid(0.5));
    near(at(json!({ "inner": "sigmoid", "inner_beta": 3.0 }), [9.0, 0.0]), neg_log_sigmoid(3.0));
}

#[test]
fn the_margins_of_the_largest_coordinates_equal_calculations_by_hand() {
    // Of eight coordinates, K has at most two: the first and the last one.
    let d = [4.0, 0.1, 0.0, 0.2, 0.0, 0.1, 0.0, -3.0];
    let a = [8.0, 7.0, 9.0, 7.0, 7.0, 7.0, 7.0, 1.0];
    let zero = [0.0; 8];
    let states = || tap(&row(&a, &zero), &row(&d, &zero));
    let near_square = |found: f64, x: f64| near(found, (1.0 - x).powi(2));
    near_square(inner(&config(json!({ "mode": "topk" })), vec![states()]), 29.0 / 25.0 - 1.0);
    near_square(inner(&config(json!({ "mode": "topk", "topk_n": 1 })), vec![states()]), 1.0);
    // With topkl, K is chosen from both taps, after each is divided by its ‖d‖. The second tap has
    // the larger lengths, but the smaller relative coordinates.
    let (d2, a2) = ([30.0; 8], [45.0; 8]);
    let second = || tap(&row(&a2, &zero), &row(&d2, &zero));
    let found = |n: usize| {
        let config = config(json!({ "mode": "topkl", "topk_n": n, "tau": 3.0 }));
        inner(&config, vec![states(), second()])
    };
    near(found(2), (3.0f64 - (29.0 / 25.0 - 1.0)).powi(2));
    let (s1, s2) = (25.06, 8.0 * 900.0);
    let (dot, square) = (29.0 / s1 + 2.0 * 45.0 * 30.0 / s2, 25.0 / s1 + 2.0 * 900.0 / s2);
    near(found(100), (3.0f64 - (dot / square - 1.0)).powi(2));
}

#[test]
fn every_inner_term_falls_as_the_margin_of_the_states_grows() {
    for fields in [
        json!({}),
        json!({ "inner": "sigmoid" }),
        json!({ "inner": "symlog" }),
        json!({ "mode": "topk" }),
        json!({ "mode": "topkl" }),
    ] {
        let reference = random_sides(&[3, 8]);
        let d = &reference.chosen - &reference.rejected;
        let at = |steps: f64| {
            let policy = sides(&(&reference.chosen + &d * steps), &reference.rejected);
            loss(&config(fields.clone()), vec![tap(&policy, &reference)], 3).value.double_value(&[])
        };
        let values = [-3.0, -1.0, 0.0, 0.5, 0.9].map(at);
        assert!(values.windows(2).all(|pair| pair[1] < pair[0]), "{fields}: {values:?}");
    }
}

#[test]
fn a_pair_counts_in_topkl_if_it_has_a_direction_at_any_tap() {
    let config = config(json!({ "mode": "topkl" }));
    let (reference, policy) = (random_sides(&[2, 8]), random_sides(&[2, 8]));
    // The states of the first pair are equal at the second tap, and those of the second pair at
    // both.
    let equal = |of: &Sides, pairs: &[i64]| {
        let rejected = of.rejected.copy();
        for pair in pairs {
            rejected.get(*pair).copy_(&of.chosen.get(*pair));
        }
        sides(&of.chosen, &rejected)
    };
    let taps =
        vec![tap(&policy, &equal(&reference, &[1])), tap(&policy, &equal(&reference, &[0, 1]))];
    let found = loss(&config, taps, 2);
    assert_eq!(Vec::<f64>::try_from(found.partial.unwrap().counts).unwrap(), [1.0, 0.0]);
    // The coordinates of a tap without a direction do not belong to K. With two taps, K has four
    // coordinates.
    let (a, d) = (
        (&policy.chosen - &policy.rejected).get(0),
        (&reference.chosen - &reference.rejected).get(0),
    );
    let k = d.abs().topk(4, -1, true, true).1;
    let (a, d) = (a.gather(0, &k, false), d.gather(0, &k, false));
    let x = (&a * &d).sum(Kind::Double) / d.square().sum(Kind::Double) - 1.0;
    let expected = (x.clamp_max(1.0) - 1.0).square().double_value(&[]);
    near(found.value.double_value(&[]), LN_2 + 0.1 * expected);
}

#[test]
fn the_token_constraint_penalises_the_movement_of_the_rejected_tokens() {
    // One prompt token and two completion tokens, with states of width 1.
    let of = |chosen: [f64; 3], rejected: [f64; 3]| {
        sides(&tensor(&chosen, &[1, 3, 1]), &tensor(&rejected, &[1, 3, 1]))
    };
    let reference = of([7.0, 1.0, 3.0], [7.0, -1.0, 1.0]);
    let policy = of([0.0, 1.5, 3.0], [0.0, 1.0, -3.0]);
    let at = tap_of_tokens(&policy, &reference, 1);
    let config = config(json!({ "token_constraint": true, "tau": 9.0, "alpha": 1.0 }));
    assert_eq!(config.needs().states, States::PerToken);
    // δ⁺ = ¼ and δ⁻ = 3, so the penalty is ½·2.75/s.
    let (p, r) = (at.policy().unwrap(), at.reference().unwrap());
    let value = |x: &Tensor| x.double_value(&[0, 0]);
    let s = value(&r.chosen) - value(&r.rejected);
    let x = (value(&p.chosen) - value(&p.rejected)) / s - 1.0 - 0.5 * 2.75 / s.abs();
    near(inner(&config, vec![at]), (9.0 - x).powi(2));

    // The movement of the chosen tokens has no gradient. Here, only they move, in directions that
    // cancel in the mean.
    let chosen = tensor(&[0.0, 1.5, 2.5], &[1, 3, 1]).set_requires_grad(true);
    let rejected = tensor(&[0.0, 1.0, -3.0], &[1, 3, 1]);
    let both = |on: bool| {
        let at = tap_of_tokens(&sides(&chosen, &rejected), &reference, 1);
        let mut config = config.clone();
        (config.token_constraint, config.inner) = (on, Some(Inner::Symlog));
        let value = loss(&config, vec![at], 1).value;
        Tensor::run_backward(&[value], &[&chosen], false, false).remove(0).reshape([-1])
    };
    let [with, without] = [true, false].map(|on| Vec::<f64>::try_from(both(on)).unwrap());
    // A penalty only changes the slope of the function, which is the same for all tokens.
    near(with[1] / with[2], without[1] / without[2]);
}

#[test]
fn detached_rejected_states_have_no_gradient() {
    for mode in ["innerdpo", "topk", "topkl"] {
        let (policy, reference) = (random_sides(&[2, 8]), random_sides(&[2, 8]));
        let _ = (policy.chosen.set_requires_grad(true), policy.rejected.set_requires_grad(true));
        let value = |rejected: &str| {
            let config = config(json!({ "mode": mode, "rejected": rejected, "tau": 50.0 }));
            loss(&config, vec![tap(&policy, &reference)], 2).value
        };
        near(value("detach").double_value(&[]), value("train").double_value(&[]));
        value("detach").backward();
        assert!(!policy.rejected.grad().defined() && policy.chosen.grad().defined(), "{mode}");
        value("train").backward();
        assert!(policy.rejected.grad().abs().max().double_value(&[]) > 0.0, "{mode}");
    }
}

#[test]
fn gradients_equal_finite_differences_for_every_mode() {
    for fields in [
        json!({ "tau": 3.0 }),
        json!({ "tau": 3.0, "inner": "sigmoid", "inner_beta": 0.7 }),
        json!({ "inner": "symlog", "dpo": { "loss_type": "ipo" } }),
        json!({ "mode": "topk", "tau": 3.0, "topk_n": 2 }),
        json!({ "mode": "topkl", "tau": 3.0, "dpo": { "loss_type": "simper" } }),
    ] {
        let config = config(fields);
        let (policy, reference) = (
            [random_sides(&[3, 8]), random_sides(&[3, 9])],
            [random_sides(&[3, 8]), random_sides(&[3, 9])],
        );
        let logp = random_sides(&[6]);
        let other = random_sides(&[6]);
        let leaves: Vec<&Tensor> = policy
            .iter()
            .chain(&reference)
            .chain([&logp])
            .flat_map(|x| [&x.chosen, &x.rejected])
            .collect();
        gradients_are_those_of_finite_differences(&leaves, || {
            let taps = policy.iter().zip(&reference).map(|(p, r)| tap(p, r)).collect();
            let (pi, re) = (logprobs(&logp, 2), logprobs(&other, 2));
            let pairs = Pairs::new(3, taps, Some(pi), Some(re));
            config.clone().loss(&pairs, STEP).unwrap().value
        });
    }
}

#[test]
fn the_weights_of_wpo_multiply_the_whole_loss_of_a_pair() {
    let (policy, reference) = (random_sides(&[2, 8]), random_sides(&[2, 8]));
    let with = |weighting: bool, pair: i64| {
        let config = config(json!({ "dpo": { "use_weighting": weighting } }));
        let pick = |of: &Sides| map(of, |x| x.narrow(0, pair, 1));
        let side = |value: f64| {
            let mut one = tokens(&tensor(&[value], &[1]), &[1]);
            one.log_collision = Some(tensor(&[-0.5], &[1]));
            one
        };
        let logp = || Logprobs::new(side(-1.0), Some(side(-2.0)));
        let taps = vec![tap(&pick(&policy), &pick(&reference))];
        let pairs = Pairs::new(1, taps, Some(logp()), Some(logp()));
        config.clone().loss(&pairs, STEP).unwrap().value.double_value(&[])
    };
    // The weight of each pair is w(y⁺)·w(y⁻) = exp(−0.5 − 1.5).
    for pair in [0, 1] {
        near(with(true, pair), (-2f64).exp() * with(false, pair));
    }
}

#[test]
fn the_original_reads_neither_the_prompt_nor_the_ends_of_a_completion() {
    let config = config(json!({ "variant": "original", "original_dpo_loss": "dpo" }));
    let needs = config.needs();
    assert_eq!((needs.states, needs.logprobs), (States::PerToken, Completions::Both));
    let (states, others) = (random_sides(&[2, 6, 4]), random_sides(&[2, 6, 4]));
    let (logp, logr) = (random_sides(&[8]), random_sides(&[8]));
    let value = |states: &Sides, logp: &Sides| {
        let taps = vec![tap_of_tokens(states, &others, 2)];
        let (pi, re) = (logprobs(logp, 4), logprobs(&logr, 4));
        let pairs = Pairs::new(2, taps, Some(pi), Some(re));
        config.clone().loss(&pairs, STEP).unwrap().value.double_value(&[])
    };
    let expected = value(&states, &logp);
    // Tokens 0 and 1 are the prompt, and 5 is the last token of the completion.
    for token in 0..6 {
        let changed = map(&states, Tensor::copy);
        let _ = changed.chosen.narrow(1, token, 1).g_add_(&random(&[2, 1, 4]));
        let is_pooled = (2..5).contains(&token);
        assert_eq!((value(&changed, &logp) - expected).abs() > 1e-9, is_pooled, "{token}");
    }
    for token in 0..4 {
        let changed = map(&logp, Tensor::copy);
        let _ = changed.chosen.reshape([2, 4]).narrow(1, token, 1).g_add_scalar_(1.0);
        assert_eq!((value(&states, &changed) - expected).abs() > 1e-9, token > 0, "{token}");
    }
}

#[test]
fn the_original_needs_a_reference_and_states_only_if_it_reads_them() {
    let needs = |fields: Value| {
        let mut fields = fields;
        fields["variant"] = json!("original");
        config(fields).needs()
    };
    assert!(!needs(json!({})).reference_logprobs);
    assert!(needs(json!({ "original_dpo_loss": "ipo" })).reference_logprobs);
    assert_eq!(needs(json!({ "mode": "topk" })).logprobs, Completions::None);
    let dpo = needs(json!({ "mode": "dpo", "original_policy_weights": true }));
    assert_eq!((dpo.states, dpo.collision, dpo.depends_on_batch), (States::None, true, true));
    assert!(!needs(json!({ "mode": "dpo", "original_dpo_loss": "simper" })).reference_logprobs);
}

#[test]
fn fields_that_the_mode_does_not_read_are_refused() {
    let refused = |fields: Value, part: &str| {
        let config: InnerPo = serde_json::from_value(fields.clone()).unwrap();
        let error = config.build(&model()).err().unwrap_or_else(|| panic!("{fields} was accepted"));
        assert!(format!("{error:?}").contains(part), "{fields}: {error:?}");
    };
    refused(json!({ "topk_n": 5 }), "mode `innerdpo` with `inner = \"ratio\"` does not read it");
    refused(json!({ "inner_beta": 2.0 }), "`intervention.inner_beta` is set");
    refused(json!({ "mode": "topk", "inner": "ratio" }), "mode `topk` does not read it");
    refused(
        json!({ "mode": "topkl", "token_constraint": true }),
        "`intervention.token_constraint`",
    );
    refused(json!({ "original_beta": 0.4 }), "`intervention.original_beta` is set");
    refused(json!({ "mode": "dpo" }), "only possible with `variant = \"original\"`");
    let original = |fields: Value, part: &str| {
        let mut fields = fields;
        fields["variant"] = json!("original");
        refused(fields, part);
    };
    original(json!({ "tau": 2.0 }), "mode `innerdpo` of `original` with `simper`");
    original(json!({ "dpo": { "beta": 0.2 } }), "`intervention.dpo` is set");
    for field in ["original_beta", "original_trust_region", "original_label_smoothing"] {
        original(json!({ field: 0.2 }), field);
    }
    for field in ["original_inner_weights", "original_token_constraint", "original_clamp_bottom"] {
        original(json!({ field: true }), field);
    }
    original(json!({ "original_align_method": "para_signed" }), "original_align_method");
    original(json!({ "original_dpo_loss": "ipo", "original_clamp_bottom": true }), "clamp_bottom");
    original(json!({ "original_dpo_loss": "ipo", "original_label_smoothing": 0.1 }), "smoothing");
    original(json!({ "mode": "topk", "original_eps": 1e-4 }), "mode `topk` of `original`");
    original(json!({ "mode": "topk", "alpha": 0.1 }), "it reads topk_n, original_trust_region");
    original(json!({ "mode": "dpo", "original_filter_sinks": true }), "with `ipo`");
}

#[test]
fn invalid_settings_are_rejected() {
    let refused = |fields: Value, part: &str| {
        let config: InnerPo = serde_json::from_value(fields.clone()).unwrap();
        let error = config.build(&model()).err().unwrap_or_else(|| panic!("{fields} was accepted"));
        assert!(format!("{error:?}").contains(part), "{fields}: {error:?}");
    };
    refused(json!({ "alpha": -0.1 }), "`intervention.alpha` must be 0 or more, got -0.1");
    refused(json!({ "tau": 0.0 }), "`intervention.tau` must be greater than 0, got 0");
    refused(json!({ "inner": "sigmoid", "inner_beta": 0.0 }), "`intervention.inner_beta`");
    refused(json!({ "mode": "topk", "topk_n": 0 }), "at least 1");
    refused(json!({ "dpo": { "beta": 0.0 } }), "beta` must be greater than 0");
    refused(json!({ "dpo": { "loss_type": "aot" } }), "sort all pairs");
    refused(json!({ "token_constraint": true, "rejected": "detach" }), "has no gradient");
    for fields in [
        json!({ "original_p": 3 }),
        json!({ "original_eps": 0.0 }),
        json!({ "original_dpo_loss": "ipo", "original_trust_region": -1.0 }),
        json!({ "original_dpo_loss": "dpo", "original_label_smoothing": 1.0 }),
        json!({ "mode": "topk", "original_trust_region": 0.0 }),
    ] {
        let mut fields = fields;
        fields["variant"] = json!("original");
        refused(fields, "`intervention.original_");
    }
}
