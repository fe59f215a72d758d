use std::path::Path;

use reprpo_core::text::{Limits, TokenPair, tokenise};
use reprpo_core::train::Reference;
use reprpo_core::weights::read_safetensors;
use reprpo_plugin::serde_json::{self, Value, json};

use super::super::trl_policy::Policy;
use super::*;
use crate::golden;
use reprpo_plugin::testkit::{
    gradients_are_those_of_finite_differences, logged, logprobs, model, near, random, random_sides,
    tensor, tokens,
};

const TYPES: [LossType; 18] = [
    LossType::Sigmoid,
    LossType::Hinge,
    LossType::Ipo,
    LossType::IpoRelu,
    LossType::ExoPair,
    LossType::NcaPair,
    LossType::Robust,
    LossType::BcoPair,
    LossType::SppoHard,
    LossType::Aot,
    LossType::AotUnpaired,
    LossType::ApoZero,
    LossType::ApoDown,
    LossType::Discopop,
    LossType::Sft,
    LossType::SigmoidNorm,
    LossType::Simper,
    LossType::Unbounded,
];

fn of(loss_type: LossType) -> Dpo {
    let label_smoothing = if loss_type.takes_smoothing() { 0.1 } else { 0.0 };
    Dpo { loss_type: LossTypes::One(loss_type), label_smoothing, ..Dpo::default() }
}

/// Returns pairs of one-token completions with the given log-probabilities `[chosen, rejected]`.
fn pairs(policy: [&[f64]; 2], reference: [&[f64]; 2]) -> Pairs {
    let of = |[chosen, rejected]: [&[f64]; 2]| {
        logprobs(
            &Sides { chosen: Tensor::from_slice(chosen), rejected: Tensor::from_slice(rejected) },
            1,
        )
    };
    Pairs::new(policy[0].len(), Vec::new(), Some(of(policy)), Some(of(reference)))
}

fn value(config: &Dpo, pairs: &Pairs) -> f64 {
    config.loss(pairs).unwrap().value.double_value(&[])
}

fn neg_log_sigmoid(x: f64) -> f64 {
    (-x).exp().ln_1p()
}

#[test]
fn the_loss_equals_the_test_values_of_torchtune() {
    let policy: [&[f64]; 2] = [&[-0.5, -10.0, -1.0], &[-0.1, -30.0, -21.0]];
    let reference: [&[f64]; 2] = [&[-0.5, -10.1, -0.1], &[-0.1, -20.1, -0.1]];
    for (i, expected) in [0.0, 1.0, 2.0].into_iter().enumerate() {
        let at = |sides: [&'static [f64]; 2]| sides.map(|s| &s[i..=i]);
        near(value(&Dpo::default(), &pairs(at(policy), at(reference))), neg_log_sigmoid(expected));
    }
    let all = Dpo::default().loss(&pairs(policy, reference)).unwrap();
    near(
        all.value.double_value(&[]),
        (neg_log_sigmoid(0.0) + neg_log_sigmoid(1.0) + neg_log_sigmoid(2.0)) / 3.0,
    );
    assert!((logged(&all, "rewards/margins") - 1.0).abs() < 1e-6);
    // As in TRL, a tie does not count as a success.
    assert!((logged(&all, "rewards/accuracies") - 2.0 / 3.0).abs() < 1e-6);
}

#[test]
fn the_loss_starts_at_log_two() {
    let same: [&[f64]; 2] = [&[-3.0, -7.5], &[-2.0, -9.0]];
    near(value(&Dpo::default(), &pairs(same, same)), std::f64::consts::LN_2);
    // The loss `unbounded` has no lower bound. If the policy equals the reference, the loss is log
    // σ(0).
    near(value(&of(LossType::Unbounded), &pairs(same, same)), -std::f64::consts::LN_2);
    near(value(&of(LossType::Unbounded), &pairs([&[500.0], &[-500.0]], [&[0.0], &[0.0]])), -1000.0);
}

#[test]
fn sorted_losses_do_not_depend_on_the_order_of_the_pairs() {
    let (policy, reference): ([&[f64]; 2], [&[f64]; 2]) =
        ([&[-3.0, -7.5], &[-2.0, -9.0]], [&[-3.5, -7.0], &[-2.5, -8.0]]);
    // The sorted log-ratios are −1 and 1.5 for the policy, and −1 and 1 for the reference.
    near(value(&of(LossType::Aot), &pairs(policy, reference)), {
        let each =
            |delta: f64| 0.9 * neg_log_sigmoid(0.1 * delta) + 0.1 * neg_log_sigmoid(-0.1 * delta);
        f64::midpoint(each(0.0), each(0.5))
    });
    let swapped: [&[f64]; 2] = [&[-7.0, -3.5], &[-8.0, -2.5]];
    near(
        value(&of(LossType::Aot), &pairs(policy, swapped)),
        value(&of(LossType::Aot), &pairs(policy, reference)),
    );
}

#[test]
fn simper_is_the_difference_of_two_inverse_perplexities_without_a_reference() {
    let policy = Logprobs::new(
        tokens(&tensor(&[-1.0, -3.0, -0.5], &[3]), &[2, 1]),
        Some(tokens(&tensor(&[-1.0, -0.25, -1.25], &[3]), &[1, 2])),
    );
    let config = of(LossType::Simper);
    assert!(!config.needs().reference_logprobs && Dpo::default().needs().reference_logprobs);
    let pairs = Pairs::new(2, Vec::new(), Some(policy), None);
    let loss = config.loss(&pairs).unwrap();
    let (chosen, rejected) = ([(-2f64).exp(), (-0.5f64).exp()], [(-1f64).exp(), (-0.75f64).exp()]);
    let mean = |x: [f64; 2]| f64::midpoint(x[0], x[1]);
    near(loss.value.double_value(&[]), mean(rejected) - mean(chosen));
    for (metric, expected) in [
        ("rewards/chosen", mean(chosen)),
        ("rewards/rejected", mean(rejected)),
        ("rewards/margins", mean(chosen) - mean(rejected)),
        ("rewards/accuracies", 0.5),
    ] {
        assert!((logged(&loss, metric) - expected).abs() < 1e-6, "{metric}");
    }
    // With another type, the rewards are those of DPO, which need the reference.
    let types = vec![LossType::Simper, LossType::Sigmoid];
    let both = Dpo { loss_type: LossTypes::Several(types), ..Dpo::default() };
    assert!(both.needs().reference_logprobs && both.loss(&pairs).is_err());
}

#[test]
fn ipo_relu_equals_ipo_below_its_target_and_is_zero_beyond_it() {
    // With β = 0.25, the target is 2 nats per token.
    let at = |loss_type, chosen: f64| {
        let config = Dpo { beta: 0.25, ..of(loss_type) };
        value(&config, &pairs([&[chosen], &[-1.0]], [&[-1.0], &[-1.0]]))
    };
    near(at(LossType::IpoRelu, -0.5), 1.5f64.powi(2));
    near(at(LossType::IpoRelu, -0.5), at(LossType::Ipo, -0.5));
    near(at(LossType::IpoRelu, 2.0), 0.0);
    near(at(LossType::Ipo, 2.0), 1.0);
}

#[test]
fn tokens_beyond_the_shorter_completion_have_the_weight_ld_alpha() {
    let policy = Logprobs::new(
        tokens(&tensor(&[-1.0, -2.0, -4.0, -8.0], &[4]), &[3, 1]),
        Some(tokens(&tensor(&[-0.5, -0.25, -3.0, -5.0], &[4]), &[2, 2])),
    );
    let sides = Dpo { ld_alpha: Some(0.5), ..Dpo::default() }.logps(&policy).unwrap();
    assert_eq!(Vec::<f64>::try_from(&sides.chosen).unwrap(), [-1.0 - 2.0 - 0.5 * 4.0, -8.0]);
    assert_eq!(Vec::<f64>::try_from(&sides.rejected).unwrap(), [-0.75, -3.0 - 0.5 * 5.0]);
}

#[test]
fn gradients_equal_finite_differences_for_every_type() {
    let configs = TYPES.map(of).into_iter().chain([
        Dpo { f_divergence_type: FDivergence::ForwardKl, ..Dpo::default() },
        Dpo { f_divergence_type: FDivergence::JsDivergence, ..Dpo::default() },
        Dpo { f_divergence_type: FDivergence::AlphaDivergence, ..Dpo::default() },
        Dpo {
            loss_type: LossTypes::Several(vec![LossType::Sft, LossType::Ipo]),
            loss_weights: Some(vec![2.0, 0.1]),
            ..Dpo::default()
        },
        Dpo { ld_alpha: Some(0.3), ..Dpo::default() },
    ]);
    for config in configs {
        config.check().unwrap();
        let (pi, r) = (random_sides(&[6]), random_sides(&[6]));
        let at = |of: &Sides| {
            Logprobs::new(tokens(&of.chosen, &[1, 3, 2]), Some(tokens(&of.rejected, &[2, 2, 2])))
        };
        let loss =
            || config.loss(&Pairs::new(3, Vec::new(), Some(at(&pi)), Some(at(&r)))).unwrap().value;
        // Only `sft` does not depend on the rejected completion.
        let leaves: &[&Tensor] =
            if config == of(LossType::Sft) { &[&pi.chosen] } else { &[&pi.chosen, &pi.rejected] };
        gradients_are_those_of_finite_differences(leaves, loss);
    }
}

#[test]
fn weights_have_no_gradient() {
    let pi = random(&[2]).set_requires_grad(true);
    let with = |log_collision: &Tensor| {
        let mut one = tokens(&pi, &[2]);
        one.log_collision = Some(log_collision.shallow_clone());
        one
    };
    let weight = alignment(&with(&tensor(&[-1.0, -3.0], &[2]))).unwrap();
    near(weight.double_value(&[0]), ((pi.sum(Kind::Double).double_value(&[]) + 4.0) / 2.0).exp());
    assert!(!weight.requires_grad());
    let config = Dpo { use_weighting: true, ..Dpo::default() };
    assert!(config.needs().collision && !Dpo::default().needs().collision);
}

#[test]
fn invalid_settings_are_rejected() {
    let refused = |json: Value, part: &str| {
        let config: Dpo = serde_json::from_value(json.clone()).unwrap();
        let error = config.build(&model()).err().unwrap_or_else(|| panic!("{json} was accepted"));
        assert!(format!("{error:?}").contains(part), "{json}: {error:?}");
    };
    for beta in [0.0, -0.1] {
        refused(json!({ "beta": beta }), "`intervention.beta`");
    }
    for beta in [f64::NAN, f64::INFINITY] {
        assert!(Dpo { beta, ..Dpo::default() }.build(&model()).is_err());
    }
    refused(json!({ "loss_type": [] }), "empty list");
    refused(
        json!({ "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0] }),
        "1 weights for 2 loss types",
    );
    refused(json!({ "loss_type": "sigmoid", "loss_weights": [0.0] }), "greater than 0");
    refused(json!({ "loss_type": "exo_pair" }), "greater than 0");
    refused(json!({ "loss_type": "robust", "label_smoothing": 0.5 }), "less than 0.5");
    refused(json!({ "label_smoothing": 0.1 }), "none of the chosen loss types uses it");
    refused(json!({ "label_smoothing": 1.0, "loss_type": "aot" }), "less than 1");
    refused(json!({ "loss_type": "bco_pair", "f_divergence_type": "forward_kl" }), "`bco_pair`");
    refused(json!({ "loss_type": "aot", "use_weighting": true }), "`aot` sorts");
    refused(json!({ "ld_alpha": 1.5 }), "0 to 1");
    refused(json!({ "ld_alpha": 0.5, "loss_type": ["sigmoid", "simper"] }), "perplexities");
    refused(json!({ "loss_type": "simper", "f_divergence_type": "forward_kl" }), "`simper`");
    refused(json!({ "discopop_tau": 0.0 }), "`intervention.discopop_tau`");
    let unknown =
        serde_json::from_value::<Dpo>(json!({ "loss_type": "simpo" })).unwrap_err().to_string();
    assert!(TYPES.iter().all(|t| unknown.contains(&format!("`{}`", t.name()))), "{unknown}");
}

/// Compares the loss, the gradient and all logged metrics of a training step with TRL's values, for
/// every case in `losses.json`.
#[test]
fn losses_gradients_and_metrics_equal_those_of_trl() {
    for root in golden::roots() {
        assert_losses_gradients_and_metrics(&root);
    }
}

fn assert_losses_gradients_and_metrics(golden: &Path) {
    let trl = golden.join("trl");
    let policy = Policy::open(golden);

    let text = std::fs::read_to_string(trl.join("pairs.jsonl")).unwrap();
    let rows = text
        .lines()
        .map(|l| serde_json::from_str::<PreferencePair>(l).unwrap())
        .enumerate()
        .map(Ok);
    let limits = Limits { max_length: 512, ..Limits::NONE };
    let tokenised = tokenise(&policy.files.tokenizer().unwrap(), rows, &limits, Some(4)).unwrap();
    let pairs: Vec<&TokenPair> = tokenised.pairs.iter().collect();
    let collated = read_safetensors(&trl.join("batch.safetensors")).unwrap();
    for (i, pair) in pairs.iter().enumerate() {
        let ids = collated["input_ids"]
            .get(i as i64)
            .masked_select(&collated["attention_mask"].get(i as i64).to_kind(Kind::Bool));
        assert_eq!(Vec::<i64>::try_from(ids).unwrap(), [&pair.prompt[..], &pair.chosen].concat());
    }

    let table: Value =
        serde_json::from_str(&std::fs::read_to_string(trl.join("losses.json")).unwrap()).unwrap();
    let cases = table["values"].as_object().unwrap();
    assert_eq!(cases.len(), 21);
    let tokens = pairs.iter().map(|p| p.tokens()).sum::<usize>() as f64;
    for (name, case) in cases {
        let config: Dpo = serde_json::from_value(case["args"].clone()).unwrap();
        let method = config.build(policy.model.info()).unwrap();
        let off = policy.step(method, Reference::default(), &pairs).unwrap().deviation(
            name,
            case,
            |metric| (metric == "num_tokens").then_some(tokens),
        );
        // A sum of 500 nats in float32 is only exact to 3e-5.
        let limit = if name.ends_with("+forward_kl") { 5e-5 } else { 1e-5 };
        assert!(off.loss < limit && off.grad_norm < 1e-3 && off.metrics < 1e-4, "{name}: {off:?}");
    }
}
