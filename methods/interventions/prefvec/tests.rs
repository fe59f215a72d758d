use super::*;
use reprpo_plugin::testkit::{
    self, STEP, logprobs, map, model, near, random_sides, sides, tap, tap_of_tokens, tensor,
};

/// Computes the loss of pairs whose completions have two tokens each.
fn value(
    config: &PrefVec,
    policy: &[Sides],
    reference: &[Sides],
    logp: Option<(&Sides, &Sides)>,
) -> Tensor {
    let taps = policy.iter().zip(reference).map(|(p, r)| tap(p, r)).collect();
    let (pi, re) = logp.map(|(p, r)| (logprobs(p, 2), logprobs(r, 2))).unzip();
    config
        .clone()
        .loss(&Pairs::new(policy[0].chosen.size()[0] as usize, taps, pi, re), STEP)
        .unwrap()
        .value
}

#[test]
fn the_loss_equals_a_case_worked_out_by_hand() {
    let config = PrefVec { lambda_nll: 0.0, ..PrefVec::default() };
    // d = (2, 0), so s = 2 and v̂ = (1, 0).
    let reference = || sides(&tensor(&[2.0, 0.0], &[1, 2]), &tensor(&[0.0, 0.0], &[1, 2]));
    let at = |c: &PrefVec, chosen: [f64; 2], rejected: [f64; 2]| {
        value(
            c,
            &[sides(&tensor(&chosen, &[1, 2]), &tensor(&rejected, &[1, 2]))],
            &[reference()],
            None,
        )
        .double_value(&[])
    };
    near(at(&config, [2.0, 0.0], [0.0, 0.0]), 1.0);
    // m⁺ = (½, 1) and m⁻ = (−1, 0), so the term along v̂ is ½(½ + 2), and the orthogonal term is
    // 0.1·½·1.
    near(at(&config, [3.0, 2.0], [-2.0, 0.0]), 1.25 + 0.05);
    // Beyond τ, the loss is 0.
    near(at(&config, [9.0, 0.0], [4.0, 0.0]), 0.0);
    // Here τ = 2, m⁺ = (−1, 1) and m⁻ = (0, 0), so the term along v̂ is ½(3 + 2)/2. The difference
    // p⁺ − p⁻ = (0, 2) is orthogonal to d, so 1 − cos = 1.
    near(
        at(&PrefVec { tau: 2.0, lambda_angle: 0.5, ..config.clone() }, [0.0, 2.0], [0.0, 0.0]),
        0.5 * (3.0 + 2.0) / 2.0 + 0.05 + 0.5,
    );
}

#[test]
fn the_loss_starts_at_one_without_a_likelihood_term() {
    let r = [random_sides(&[3, 5])];
    let logp = random_sides(&[6]);
    assert!(
        (value(&PrefVec::default(), &r, &r, Some((&logp, &logp))).double_value(&[]) - 1.0).abs()
            < 1e-10
    );
    // The loss rises by ½ if the policy's log-probability of the chosen completion is ½ nat per
    // token below the reference's. A log-probability above the reference's does not change the
    // loss.
    let worse = sides(&(&logp.chosen - 0.5), &logp.rejected);
    assert!(
        (value(&PrefVec::default(), &r, &r, Some((&worse, &logp))).double_value(&[]) - 1.5).abs()
            < 1e-10
    );
    assert!(
        (value(&PrefVec::default(), &r, &r, Some((&logp, &worse))).double_value(&[]) - 1.0).abs()
            < 1e-10
    );
}

#[test]
fn gradients_equal_finite_differences_for_every_variant() {
    let config = PrefVec {
        beta_orth: 0.3,
        lambda_angle: 0.7,
        lambda_nll: 0.9,
        lambda_dpo: 1.1,
        beta: 0.2,
        ..PrefVec::default()
    };
    let (policy, reference) = (
        [random_sides(&[3, 5]), random_sides(&[3, 4])],
        [random_sides(&[3, 5]), random_sides(&[3, 4])],
    );
    let (logp, logr) = (random_sides(&[6]), random_sides(&[6]));
    // Also check the gradients with respect to the reference's states. A trained transform
    // receives gradients through these states.
    let leaves: Vec<&Tensor> = policy
        .iter()
        .chain(&reference)
        .chain([&logp])
        .flat_map(|s| [&s.chosen, &s.rejected])
        .collect();
    testkit::gradients_are_those_of_finite_differences(&leaves, || {
        value(&config, &policy, &reference, Some((&logp, &logr)))
    });

    let config = PrefVec {
        variant: Variant::Original,
        original_orth: true,
        original_angle: true,
        ..PrefVec::default()
    };
    let (p, r) = (random_sides(&[2, 7, 4]), random_sides(&[2, 7, 4]));
    let loss = || {
        let pairs = Pairs::new(
            2,
            vec![tap_of_tokens(&p, &r, 3)],
            Some(logprobs(&map(&logp, |x| x.narrow(0, 0, 4)), 2)),
            Some(logprobs(&map(&logr, |x| x.narrow(0, 0, 4)), 2)),
        );
        config.clone().loss(&pairs, STEP).unwrap().value * 1e-6
    };
    testkit::gradients_are_those_of_finite_differences(&[&p.chosen, &p.rejected], loss);
}

#[test]
fn an_original_without_terms_is_rejected() {
    let original = PrefVec { variant: Variant::Original, ..PrefVec::default() };
    let without = |original_dpo| PrefVec { original_proj: false, original_dpo, ..original.clone() };
    assert!(without(false).build(&model()).is_err());
    assert!(without(true).build(&model()).is_ok());
    assert_eq!(without(true).needs().states, States::None);
    assert_eq!(original.needs().states, States::PerToken);
}

#[test]
fn needs_follow_from_the_weights() {
    let needs =
        |lambda_nll, lambda_dpo| PrefVec { lambda_nll, lambda_dpo, ..PrefVec::default() }.needs();
    assert_eq!(needs(0.0, 0.0).logprobs, Completions::None);
    assert!(!needs(0.0, 0.0).reference_logprobs && needs(0.0, 0.0).reference_states);
    assert_eq!(needs(1.0, 0.0).logprobs, Completions::Chosen);
    assert_eq!(needs(0.0, 1.0).logprobs, Completions::Both);
}
