use super::*;
use reprpo_plugin::serde_json::{self, Value, json};
use reprpo_plugin::testkit::{
    STEP, gradients_are_those_of_finite_differences, logged, model, near, random_sides, tensor,
    tokens,
};

/// Returns two pairs. The chosen completions have two tokens and one, the rejected ones one and
/// two.
fn pairs(chosen: &[f64; 3], rejected: &[f64; 3]) -> Pairs {
    let of = |values, lengths: &[i64]| tokens(&tensor(values, &[3]), lengths);
    let policy = Logprobs::new(of(chosen, &[2, 1]), Some(of(rejected, &[1, 2])));
    Pairs::new(2, Vec::new(), Some(policy), None)
}

fn value(config: &Cpo, pairs: &Pairs) -> f64 {
    config.clone().loss(pairs, STEP).unwrap().value.double_value(&[])
}

#[test]
fn the_loss_of_each_type_equals_a_calculation_by_hand() {
    let pairs = pairs(&[-1.0, -3.0, -1.0], &[-6.0, -0.5, -1.5]);
    // The margins of the sums are 2 and 1, and those of the means 4 and 0. The mean of −log p over
    // the three chosen tokens is 5/3.
    let with = |loss_type, cpo_alpha| Cpo { beta: 0.5, loss_type, cpo_alpha, ..Cpo::default() };
    let log_sigmoid = |x: f64| -(-x).exp().ln_1p();
    let sigmoid = -f64::midpoint(log_sigmoid(1.0), log_sigmoid(0.5));
    near(value(&with(LossType::Sigmoid, 0.0), &pairs), sigmoid);
    near(value(&with(LossType::Sigmoid, 0.3), &pairs), sigmoid + 0.3 * 5.0 / 3.0);
    near(value(&with(LossType::Hinge, 0.0), &pairs), f64::midpoint(0.0, 0.5));
    near(value(&with(LossType::Ipo, 0.0), &pairs), f64::midpoint(9.0, 1.0));
    let smoothed = Cpo { label_smoothing: 0.1, ..with(LossType::Sigmoid, 0.0) };
    let each = |x: f64| -0.9 * log_sigmoid(x) - 0.1 * log_sigmoid(-x);
    near(value(&smoothed, &pairs), f64::midpoint(each(1.0), each(0.5)));

    let loss = with(LossType::Sigmoid, 0.3).loss(&pairs, STEP).unwrap();
    for (metric, expected) in [
        ("rewards/chosen", 0.5 * -2.5),
        ("rewards/rejected", 0.5 * -4.0),
        ("rewards/margins", 0.75),
        ("rewards/accuracies", 1.0),
        ("logps/chosen", -2.5),
        ("nll_loss", 5.0 / 3.0),
    ] {
        assert!((logged(&loss, metric) - expected).abs() < 1e-6, "{metric}");
    }
}

#[test]
fn gradients_equal_finite_differences_for_every_type() {
    for loss_type in [LossType::Sigmoid, LossType::Hinge, LossType::Ipo] {
        let leaves = random_sides(&[6]);
        let policy = || {
            let of = |x: &Tensor, lengths: &[i64]| tokens(x, lengths);
            Logprobs::new(of(&leaves.chosen, &[1, 3, 2]), Some(of(&leaves.rejected, &[2, 2, 2])))
        };
        gradients_are_those_of_finite_differences(&[&leaves.chosen, &leaves.rejected], || {
            let pairs = Pairs::new(3, Vec::new(), Some(policy()), None);
            Cpo { loss_type, ..Cpo::default() }.loss(&pairs, STEP).unwrap().value
        });
    }
}

#[test]
fn the_likelihood_term_makes_the_loss_depend_on_the_micro_batch() {
    assert!(Cpo::default().needs().depends_on_batch);
    assert!(!Cpo { cpo_alpha: 0.0, ..Cpo::default() }.needs().depends_on_batch);
}

#[test]
fn invalid_settings_are_rejected() {
    let refused = |json: Value, part: &str| {
        let config: Cpo = serde_json::from_value(json.clone()).unwrap();
        let error = config.build(&model()).err().unwrap_or_else(|| panic!("{json} was accepted"));
        assert!(format!("{error:?}").contains(part), "{json}: {error:?}");
    };
    refused(json!({ "beta": 0.0 }), "`intervention.beta` must be greater than 0, got 0");
    refused(json!({ "cpo_alpha": -1.0 }), "`intervention.cpo_alpha` must be 0 or more, got -1");
    refused(json!({ "label_smoothing": 1.0 }), "less than 1");
    refused(json!({ "label_smoothing": 0.1, "loss_type": "hinge" }), "only `loss_type");
    assert!(serde_json::from_value::<Cpo>(json!({ "loss_type": "simpo" })).is_err());
}
