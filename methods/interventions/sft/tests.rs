use super::*;
use reprpo_plugin::testkit::{STEP, near, tensor, tokens};

#[test]
fn every_pair_has_the_same_weight_regardless_of_its_length() {
    let policy = Logprobs::new(tokens(&tensor(&[-1.0, -2.0, -3.0, -8.0], &[4]), &[3, 1]), None);
    let loss = Sft {}.loss(&Pairs::new(2, Vec::new(), Some(policy), None), STEP).unwrap();
    near(loss.value.double_value(&[]), f64::midpoint(2.0, 8.0));
}

#[test]
fn sft_only_needs_the_chosen_completion() {
    assert_eq!(Sft {}.needs(), Needs { logprobs: Completions::Chosen, ..Needs::default() });
}
