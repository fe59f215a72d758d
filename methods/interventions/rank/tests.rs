use super::*;
use reprpo_plugin::testkit::{
    STEP, gradients_are_those_of_finite_differences, logprobs, map, model, near, random_sides,
    sides, tap, tap_of_tokens, tensor,
};

fn value(config: &Rank, pairs: &Pairs) -> Tensor {
    config.clone().loss(pairs, STEP).unwrap().value
}

fn pooled(policy: &Sides, reference: &Sides) -> Pairs {
    Pairs::new(policy.chosen.size()[0] as usize, vec![tap(policy, reference)], None, None)
}

#[test]
fn the_loss_equals_a_case_worked_out_by_hand() {
    // The softmax of (ln 3, 0) is (¾, ¼), and the softmax of (0, 0) is (½, ½). At temperature 2,
    // the two probabilities of (ln 3, 0) have the ratio √3 : 1.
    let (three, even) = (tensor(&[3f64.ln(), 0.0], &[1, 2]), tensor(&[0.0, 0.0], &[1, 2]));
    let kl = |p: f64, q: f64| p * (p / q).ln() + (1.0 - p) * ((1.0 - p) / (1.0 - q)).ln();
    let reference = sides(&three, &even);
    let one = Rank { temperature: 1.0, ..Rank::default() };
    near(value(&one, &pooled(&reference, &reference)).double_value(&[]), 1.0);
    // The policy's softmax is (¼, ¾) for the chosen states and (¾, ¼) for the rejected states.
    let policy = sides(&-&three, &three);
    near(
        value(&one, &pooled(&policy, &reference)).double_value(&[]),
        0.25 * kl(0.75, 0.25) / kl(0.75, 0.5),
    );
    let hot = Rank { temperature: 2.0, alpha: 1.0, ..Rank::default() };
    let root = 3f64.sqrt() / (1.0 + 3f64.sqrt());
    near(
        value(&hot, &pooled(&policy, &reference)).double_value(&[]),
        kl(root, 1.0 - root) / kl(root, 0.5),
    );
}

#[test]
fn the_original_starts_at_log_two() {
    let states = random_sides(&[2, 5, 4]);
    let logp = random_sides(&[4]);
    let pairs = Pairs::new(
        2,
        vec![tap_of_tokens(&states, &states, 2)],
        Some(logprobs(&logp, 2)),
        Some(logprobs(&logp, 2)),
    );
    near(
        value(&Rank { variant: Variant::Original, ..Rank::default() }, &pairs).double_value(&[]),
        std::f64::consts::LN_2,
    );
}

#[test]
fn gradients_equal_finite_differences_for_every_variant() {
    let config = Rank { temperature: 1.5, alpha: 0.7, ..Rank::default() };
    // Also check the gradients with respect to the reference states, because they train the
    // transform.
    let (p, r) = (random_sides(&[3, 5]), random_sides(&[3, 5]));
    gradients_are_those_of_finite_differences(
        &[&p.chosen, &p.rejected, &r.chosen, &r.rejected],
        || value(&config, &pooled(&p, &r)),
    );

    let config = Rank { variant: Variant::Original, original_retain: true, ..Rank::default() };
    let (p, r) = (random_sides(&[2, 7, 4]), random_sides(&[2, 7, 4]));
    let (logp, logr) = (random_sides(&[4]), random_sides(&[4]));
    gradients_are_those_of_finite_differences(&[&p.chosen, &p.rejected, &logp.chosen], || {
        let pairs = Pairs::new(
            2,
            vec![tap_of_tokens(&p, &r, 3)],
            Some(logprobs(&logp, 2)),
            Some(logprobs(&map(&logr, |x| x + 5.0), 2)),
        );
        value(&config, &pairs)
    });
}

#[test]
fn numbers_out_of_range_are_rejected() {
    let bad = |config: Rank| assert!(config.clone().build(&model()).is_err(), "{config:?}");
    bad(Rank { alpha: -0.1, ..Rank::default() });
    bad(Rank { temperature: 0.0, ..Rank::default() });
    bad(Rank { original_beta: f64::NAN, ..Rank::default() });
}

#[test]
fn needs_of_the_original_follow_from_its_switches() {
    let needs = |original_dpo, original_nll| {
        Rank { variant: Variant::Original, original_dpo, original_nll, ..Rank::default() }.needs()
    };
    assert_eq!(
        (needs(false, false).logprobs, needs(true, false).logprobs),
        (Completions::None, Completions::Both)
    );
    assert!(needs(false, true).sequence_nll && !needs(true, false).sequence_nll);
    assert_eq!(Rank::default().needs().logprobs, Completions::None);
}
