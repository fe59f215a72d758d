//! The kit as an author's crate uses it, on two methods of such a crate.

use reprpo_plugin::prelude::*;
use reprpo_plugin::registry;
use reprpo_plugin::testkit::{self, STEP, logprobs, model, near, sides, tensor};

/// A squared margin.
#[intervention(
    name = "squared",
    summary = "the squared distance of the margin from one that is wanted",
    reference = "a test",
    explain = "L = (θ − m)²",
    example(margin = 3)
)]
pub struct Squared {
    /// m: the margin that is wanted, in nats.
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
    summary = "a multiple of the states, which is said to keep lengths whatever the factor",
    reference = "a test",
    explain = "T(x) = f·x"
)]
pub struct Scaled {
    /// What states are multiplied with.
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
fn every_plugin_here_keeps_its_promises() {
    testkit::registered();
}

#[test]
#[should_panic(
    expected = "violated  it keeps lengths and angles where it says so\n            an inner \
        product is off by "
)]
fn a_broken_promise_is_a_panic_that_says_which() {
    testkit::examine(registry::Kind::Transform, "scaled", r#"{"factor": 2.0}"#);
}

#[test]
fn a_case_worked_out_by_hand() {
    // One pair of two tokens a completion: the policy gives the chosen one 1 nat more than the
    // reference, the rejected ½ less.
    let reference = sides(&tensor(&[-2.0, -2.0], &[2]), &tensor(&[-3.0, -0.5], &[2]));
    let policy = sides(&tensor(&[-1.0, -2.0], &[2]), &tensor(&[-3.5, -0.5], &[2]));
    let pairs =
        Pairs::new(1, Vec::new(), Some(logprobs(&policy, 2)), Some(logprobs(&reference, 2)));
    let loss = Squared::default().build(&model()).unwrap().loss(&pairs, STEP).unwrap();
    near(loss.value.double_value(&[]), 0.25);
}
