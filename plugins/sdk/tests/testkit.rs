//! Tests the testkit on two methods. It is used in the same way as in the crate of a plugin author.

use reprpo_plugin::prelude::*;
use reprpo_plugin::registry;
use reprpo_plugin::testkit::{self, STEP, logprobs, model, near, sides, tensor};

/// The squared distance between the margin and a target.
#[intervention(
    name = "squared",
    summary = "the squared distance of the margin from a target",
    reference = "a test",
    explain = "L = (θ − m)²",
    example(margin = 3)
)]
pub struct Squared {
    /// m: the target margin, in nats.
    #[default(2.0)]
    pub margin: f64,
}

impl InterventionPlugin for Squared {
    fn build(self, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
        Ok(Box::new(self))
    }
}

impl Intervention for Squared {
    fn needs(&self) -> Needs {
        Needs { logprobs: Completions::Both, reference_logprobs: true, ..Needs::default() }
    }

    fn loss(&mut self, pairs: &Pairs, _: StepInfo) -> Result<Loss> {
        let Sides { chosen, rejected } = pairs.log_ratios()?;
        Ok(Loss::new((chosen - rejected - self.margin).square().mean(None::<Kind>)))
    }
}

/// A multiple of the states.
#[transform(
    name = "scaled",
    summary = "a multiple of the states that claims to preserve lengths for every factor",
    reference = "a test",
    explain = "T(x) = f·x"
)]
pub struct Scaled {
    /// Factor on the states.
    #[default(1.0)]
    pub factor: f64,
}

impl TransformPlugin for Scaled {
    fn build(self, _: &TransformCx<'_>, _: &mut Init) -> Result<Box<dyn Transform>> {
        Ok(Box::new(self))
    }
}

impl Transform for Scaled {
    fn forward(&self, h: &Tensor, _: &Around) -> Result<Tensor> {
        Ok(h * self.factor)
    }

    fn linear(&self) -> bool {
        true
    }

    fn orthogonal(&self) -> bool {
        true
    }
}

#[test]
fn the_plugins_pass_the_conformance_tests() {
    testkit::registered();
}

#[test]
#[should_panic(
    expected = "violated  the transform preserves lengths and angles if it claims to\n            \
        an inner product is off by "
)]
fn a_violated_invariant_causes_a_panic_that_names_it() {
    testkit::examine(registry::Kind::Transform, "scaled", r#"{"factor": 2.0}"#);
}

#[test]
fn the_loss_of_one_pair_matches_a_calculation_by_hand() {
    // One pair, with two tokens per completion. Compared with the reference, the policy's
    // log-probability is 1 nat higher for the chosen completion and ½ nat lower for the rejected
    // one.
    let reference = sides(&tensor(&[-2.0, -2.0], &[2]), &tensor(&[-3.0, -0.5], &[2]));
    let policy = sides(&tensor(&[-1.0, -2.0], &[2]), &tensor(&[-3.5, -0.5], &[2]));
    let pairs =
        Pairs::new(1, Vec::new(), Some(logprobs(&policy, 2)), Some(logprobs(&reference, 2)));
    let loss = Squared::default().build(&model()).unwrap().loss(&pairs, STEP).unwrap();
    near(loss.value.double_value(&[]), 0.25);
}
