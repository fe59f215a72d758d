use super::*;
use reprpo_plugin::testkit::{
    gradients_are_those_of_finite_differences, logged, model, near, random_sides, sides,
    tap_of_tokens, tensor,
};

fn loss(policy: &Sides, reference: &Sides, step: usize) -> Loss {
    let pairs = Pairs::new(
        policy.chosen.size()[0] as usize,
        vec![tap_of_tokens(policy, reference, 1)],
        None,
        None,
    );
    Rr::default().loss(&pairs, StepInfo { step, steps: 10, seed: 0 }).unwrap()
}

#[test]
fn the_retain_term_is_relative_to_the_reference_state_except_in_the_original() {
    let states = |chosen: [f64; 6]| {
        sides(&tensor(&chosen, &[1, 3, 2]), &tensor(&[9.0, 9.0, 1.0, 0.0, 0.0, 1.0], &[1, 3, 2]))
    };
    // The distances are 5 and 2, and the norms of the reference states are 2 and 0. The relative
    // distances are 5/2 and 0. The second is 0 because 2/0 is undefined.
    let (reference, policy) =
        (states([9.0, 9.0, 2.0, 0.0, 0.0, 0.0]), states([9.0, 9.0, 5.0, 4.0, 2.0, 0.0]));
    let retain = |variant| {
        let pairs = Pairs::new(1, vec![tap_of_tokens(&policy, &reference, 1)], None, None);
        let config = Rr { variant, ..Rr::default() };
        logged(
            &config.clone().loss(&pairs, StepInfo { step: 4, steps: 10, seed: 0 }).unwrap(),
            "rr/retain",
        )
    };
    assert!(
        (retain(Variant::Default) - 1.25).abs() < 1e-6
            && (retain(Variant::Original) - 3.5).abs() < 1e-6
    );
}

#[test]
fn the_loss_equals_a_case_worked_out_by_hand() {
    // The first token belongs to the prompt, which the loss ignores.
    let reference = sides(
        &tensor(&[9.0, 9.0, 1.0, 0.0, 0.0, 1.0], &[1, 3, 2]),
        &tensor(&[9.0, 9.0, 1.0, 0.0, 0.0, 1.0], &[1, 3, 2]),
    );
    let policy = sides(
        &tensor(&[0.0, 1.0, 4.0, 4.0, 0.0, 1.0], &[1, 3, 2]),
        &tensor(&[0.0, 0.0, 1.0, 1.0, 0.0, -1.0], &[1, 3, 2]),
    );
    // The distances are 5 and 0. The cosines are 1/√2 and −1. The negative cosine is clamped to 0.
    let (retain, reroute) = (2.5, 0.5f64.sqrt() / 2.0);
    let at = loss(&policy, &reference, 4);
    near(at.value.double_value(&[]), 10.0 * (0.2 * retain + 0.8 * reroute));
    assert!(
        (logged(&at, "rr/retain") - retain).abs() < 1e-6
            && (logged(&at, "rr/reroute") - reroute).abs() < 1e-6
    );
}

#[test]
fn the_loss_starts_at_alpha_max() {
    let states = random_sides(&[2, 4, 3]);
    near(loss(&states, &states, 0).value.double_value(&[]), 10.0);
}

#[test]
fn gradients_of_both_terms_equal_finite_differences() {
    let (p, r) = (random_sides(&[2, 5, 4]), random_sides(&[2, 5, 4]));
    gradients_are_those_of_finite_differences(&[&p.chosen, &p.rejected], || loss(&p, &r, 5).value);
}

#[test]
fn alpha_max_must_be_greater_than_zero() {
    for alpha_max in [0.0, -1.0, f64::NAN] {
        assert!(Rr { alpha_max, ..Rr::default() }.build(&model()).is_err(), "{alpha_max}");
    }
}
