use super::*;
use reprpo_plugin::testkit::{
    STEP, gradients_are_those_of_finite_differences, logged, map, model, near, random_sides, sides,
    tap, tap_of_tokens, tensor,
};

fn value(config: &Mse, taps: Vec<TapStates>, pairs: usize) -> Tensor {
    config.clone().loss(&Pairs::new(pairs, taps, None, None), STEP).unwrap().value
}

fn row(chosen: [f64; 2], rejected: [f64; 2]) -> Sides {
    sides(&tensor(&chosen, &[1, 2]), &tensor(&rejected, &[1, 2]))
}

#[test]
fn the_loss_equals_a_case_worked_out_by_hand() {
    // s² = 4.
    let reference = row([2.0, 0.0], [0.0, 0.0]);
    let at = |config: &Mse, policy: &Sides| {
        value(config, vec![tap(policy, &reference)], 1).double_value(&[])
    };
    near(at(&Mse::default(), &reference), 1.0);
    // ‖p⁻ − r⁺‖² = 1, ‖p⁺ − r⁺‖² = 9.
    let policy = row([2.0, 3.0], [1.0, 0.0]);
    near(at(&Mse::default(), &policy), 0.25 + 0.6 * 2.25);
    let log = Mse { log: true, ..Mse::default() };
    near(at(&log, &policy), 0.2501f64.ln() + 0.6 * 2.2501f64.ln());
    near(at(&log, &reference), 1.0001f64.ln() + 0.6 * 1e-4f64.ln());
}

#[test]
fn with_transform_in_reroute_the_other_terms_use_raw_states() {
    let (raw_policy, raw_reference) = (row([2.0, 3.0], [1.0, 0.0]), row([2.0, 0.0], [0.0, 0.0]));
    let of = |x: &Sides| map(x, |x| x.narrow(1, 0, 1) * 3.0);
    let config = Mse { transform_in: TransformIn::Reroute, ..Mse::default() };
    assert!(config.needs().raw_states && !Mse::default().needs().raw_states);
    let at = tap(&of(&raw_policy), &of(&raw_reference)).with_raw(raw_policy, Some(raw_reference));
    // The terms are ratios of mean squares: ((3 − 6)²/1)/(4/2) = 4.5 and (9/2)/(4/2) = 2.25.
    let pairs = Pairs::new(1, vec![at], None, None);
    let loss = config.clone().loss(&pairs, STEP).unwrap();
    near(loss.value.double_value(&[]), 4.5 + 0.6 * 2.25);
    near(logged(&loss, "mse/reroute"), 4.5);
}

#[test]
fn the_loss_starts_at_one_and_is_a_mean_over_pairs_and_taps() {
    let r = [random_sides(&[3, 5]), random_sides(&[3, 4])];
    near(value(&Mse::default(), r.iter().map(|r| tap(r, r)).collect(), 3).double_value(&[]), 1.0);
}

#[test]
fn gradients_equal_finite_differences_for_every_variant() {
    for log in [false, true] {
        let config = Mse { alpha: 0.3, log, ..Mse::default() };
        // Also check the gradients with respect to the reference's states. A trained transform
        // receives gradients through these states.
        let (p, r) = (random_sides(&[3, 5]), random_sides(&[3, 5]));
        let leaves = [&p.chosen, &p.rejected, &r.chosen, &r.rejected];
        gradients_are_those_of_finite_differences(&leaves, || value(&config, vec![tap(&p, &r)], 3));
    }
    let config = Mse { variant: Variant::Original, ..Mse::default() };
    let (p, r) = (random_sides(&[2, 7, 4]), random_sides(&[2, 7, 4]));
    gradients_are_those_of_finite_differences(&[&p.chosen, &p.rejected], || {
        value(&config, vec![tap_of_tokens(&p, &r, 3)], 2) * 0.01
    });
}

#[test]
fn alpha_must_be_zero_or_more() {
    for alpha in [-0.1, f64::NAN, f64::INFINITY] {
        assert!(Mse { alpha, ..Mse::default() }.build(&model()).is_err(), "{alpha}");
    }
}

#[test]
fn the_original_needs_the_states_of_every_token() {
    let needs = Mse { variant: Variant::Original, ..Mse::default() }.needs();
    assert_eq!((needs.states, needs.logprobs), (States::PerToken, Completions::None));
    assert_eq!(Mse::default().needs().states, States::Pooled);
}
