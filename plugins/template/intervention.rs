//! An intervention: a training objective, and a declaration of the values that it needs from the
//! model.

use reprpo_plugin::prelude::*;

/// The intervention that `--intervention my-method` selects.
// `reprpo list` and `reprpo explain my-method` show the strings in this attribute.
#[intervention(
    name = "my-method",
    summary = "raise the chosen completion's log-probability above the rejected one's, and keep \
        its states close to the reference",
    reference = "source of the method: paper and section",
    explain = "L = −log σ(β[logp(y⁺) − logp(y⁻)]) + λ·mean (p⁺ − r⁺)²\n\np⁺ and r⁺ are the states \
        of the policy and of the reference at a tap."
)]
// Users set the fields with `--set intervention.FIELD=…`; their doc comments become the help texts.
// Without `#[default(…)]`, a field defaults to the default value of its type.
pub struct MyMethod {
    /// β: factor by which the loss multiplies the margin in nats; greater than 0.
    #[default(0.1)]
    pub beta: f64,
    /// λ: weight of the squared distance between the policy's and the reference's chosen states; at
    /// least 0.
    #[default(1.0)]
    pub lambda: f64,
}

impl InterventionPlugin for MyMethod {
    fn build(self, _model: &ModelInfo) -> Result<Box<dyn Intervention>> {
        if !(self.beta > 0.0 && self.lambda >= 0.0) {
            return Err(Error::new(format!(
                "`beta` must be greater than 0 and `lambda` must be at least 0, got {} and {}",
                self.beta, self.lambda
            )));
        }
        Ok(Box::new(self))
    }
}

impl Intervention for MyMethod {
    // The engine only computes the values that are listed here.
    fn needs(&self) -> Needs {
        Needs {
            logprobs: Completions::Both,
            states: States::Pooled,
            reference_states: true,
            ..Needs::default()
        }
    }

    fn loss(&mut self, pairs: &Pairs, _step: StepInfo) -> Result<Loss> {
        // Your formula goes here. For b pairs, the sums of the log-probabilities are `[b]`, and the
        // states are `[b h]`.
        let logprobs = pairs.policy()?;
        let margin = logprobs.chosen()?.sum() - logprobs.rejected()?.sum();
        let moved = pairs.mean_over_taps(|tap| {
            Ok((&tap.policy()?.chosen - &tap.reference()?.chosen).square().mean_dim(
                -1,
                false,
                None::<Kind>,
            ))
        })?;
        let value = (&moved * self.lambda - (&margin * self.beta).log_sigmoid()).mean(None::<Kind>);
        // The run writes the mean of each metric over the pairs to `metrics.jsonl`.
        Ok(Loss::new(value).metric("my-method/margin", &margin).metric("my-method/moved", &moved))
    }
}

#[cfg(feature = "plugin")]
reprpo_plugin::export_plugin!();

#[cfg(test)]
mod tests {
    use reprpo_plugin::testkit::{STEP, near, registered, sides, tap, tensor, tokens};

    use super::*;

    #[test]
    fn it_passes_the_conformance_tests() {
        registered();
    }

    #[test]
    fn the_loss_of_one_pair_matches_a_calculation_by_hand() {
        // The margin is −3 − (−5) = 2. The mean squared distance of the states is (0 + 2²)/2 = 2.
        let states =
            |chosen: [f64; 2]| sides(&tensor(&chosen, &[1, 2]), &tensor(&[0.0, 0.0], &[1, 2]));
        let logprobs = Logprobs::new(
            tokens(&tensor(&[-1.0, -2.0], &[2]), &[2]),
            Some(tokens(&tensor(&[-5.0], &[1]), &[1])),
        );
        let pairs = Pairs::new(
            1,
            vec![tap(&states([1.0, 2.0]), &states([1.0, 0.0]))],
            Some(logprobs),
            None,
        );
        let loss = MyMethod { beta: 0.5, lambda: 3.0 }.loss(&pairs, STEP).unwrap();
        near(loss.value.double_value(&[]), (-1f64).exp().ln_1p() + 3.0 * 2.0);
    }
}
