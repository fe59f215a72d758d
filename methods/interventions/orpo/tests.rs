use super::*;
use reprpo_plugin::testkit::{
    STEP, gradients_are_those_of_finite_differences, logged, model, near, random_sides, tensor,
    tokens,
};

fn pairs(chosen: TokenLogprobs, rejected: TokenLogprobs, sequence: TokenLogprobs) -> Pairs {
    let b = chosen.tokens.size()[0] as usize;
    Pairs::new(b, Vec::new(), Some(Logprobs::new(chosen, Some(rejected))), None)
        .with_sequence_logprobs(Logprobs::new(sequence, None))
}

#[test]
fn the_loss_equals_a_calculation_by_hand() {
    // P⁺ = ½ and P⁻ = ¼, so the odds are 1 and ⅓.
    let (half, quarter) = (0.5f64.ln(), 0.25f64.ln());
    let chosen = tokens(&tensor(&[half - 1.0, half + 1.0], &[2]), &[2]);
    let rejected = tokens(&tensor(&[quarter], &[1]), &[1]);
    let sequence = tokens(&tensor(&[-5.0, -3.0, -1.0, -1.0], &[4]), &[4]);
    let loss = Orpo { beta: 0.4 }.loss(&pairs(chosen, rejected, sequence), STEP).unwrap();
    // σ(log 3) = ¾
    near(loss.value.double_value(&[]), 2.5 - 0.4 * 0.75f64.ln());
    for (metric, expected) in [
        ("nll_loss", 2.5),
        ("log_odds_ratio", 0.75f64.ln()),
        ("log_odds_chosen", 3f64.ln()),
        ("rewards/chosen", 0.4 * half),
        ("rewards/rejected", 0.4 * quarter),
    ] {
        assert!((logged(&loss, metric) - expected).abs() < 1e-6, "{metric}");
    }
}

#[test]
fn gradients_equal_finite_differences() {
    // Log-probabilities are negative.
    let of = |x: &Tensor| (-x.abs() - 0.1).detach();
    let (own, whole) = (random_sides(&[6]), random_sides(&[12]));
    let leaves = [of(&own.chosen), of(&own.rejected), of(&whole.chosen)];
    let loss = || {
        let [chosen, rejected, sequence] = &leaves;
        let pairs = pairs(
            tokens(chosen, &[1, 3, 2]),
            tokens(rejected, &[2, 2, 2]),
            tokens(sequence, &[3, 5, 4]),
        );
        Orpo::default().loss(&pairs, STEP).unwrap().value
    };
    gradients_are_those_of_finite_differences(&leaves.each_ref()[..], loss);
}

#[test]
fn certain_and_impossible_completions_have_a_finite_loss_and_gradient() {
    for kind in [Kind::Float, Kind::Double] {
        for [chosen, rejected] in [[0.0, -1.0], [-1.0, 0.0], [0.0, 0.0], [-200.0, -1e-9]] {
            let leaf = tensor(&[chosen], &[1]).to_kind(kind).set_requires_grad(true);
            let of = |x: &Tensor| tokens(x, &[1]);
            let other = of(&tensor(&[rejected], &[1]).to_kind(kind));
            let loss = Orpo::default().loss(&pairs(of(&leaf), other, of(&leaf)), STEP).unwrap();
            assert!(loss.value.double_value(&[]).is_finite(), "{chosen} {rejected}");
            loss.value.backward();
            assert!(leaf.grad().double_value(&[0]).is_finite(), "{chosen} {rejected}");
        }
    }
}

#[test]
fn beta_must_be_zero_or_more() {
    for beta in [-0.1, f64::NAN, f64::INFINITY] {
        assert!(Orpo { beta }.build(&model()).is_err(), "{beta}");
    }
}
