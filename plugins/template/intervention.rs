//! An intervention: what a step needs from the model, and the loss made of it.

use reprpo_plugin::prelude::*;

/// What `--intervention my-method` names.
// `reprpo list` and `reprpo explain my-method` show these texts.
#[intervention(
    name = "my-method",
    summary = "raise the chosen completion's log-probability over the rejected one's, and hold \
        its states",
    reference = "where it comes from: paper and section",
    explain = "L = −log σ(β[logp(y⁺) − logp(y⁻)]) + λ·mean (p⁺ − r⁺)²\n\np⁺ are the policy's \
        states at a tap, r⁺ the reference's."
)]
// Every field is on the command line as `--set intervention.FIELD=…`, and its comment is its help.
// A field without `#[default(…)]` has the default of its type.
pub struct MyMethod {
    /// β: how steep the loss of the margin is, per nat, above 0.
    #[default(0.1)]
    pub beta: f64,
    /// λ: weight of the distance of the chosen states from the reference's, 0 or more.
    #[default(1.0)]
    pub lambda: f64,
}

impl InterventionPlugin for MyMethod {
    fn build(self, _model: &ModelInfo) -> Result<Box<dyn Intervention>> {
        if !(self.beta > 0.0 && self.lambda >= 0.0) {
            return Err(Error::new(format!(
                "`beta` is {} and `lambda` {}, but they have to be above 0, and 0 or more",
                self.beta, self.lambda
            )));
        }
        Ok(Box::new(self))
    }
}

impl Intervention for MyMethod {
    // The engine computes what is named here, and nothing more.
    fn needs(&self) -> Needs {
        Needs {
            logprobs: Completions::Both,
            states: States::Pooled,
            reference_states: true,
            ..Needs::default()
        }
    }

    fn loss(&mut self, pairs: &Pairs, _step: StepInfo) -> Result<Loss> {
        // Your formula goes here: log-probabilities are `[b]` for b pairs, states `[b h]`.
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
        // Each metric is a column of the run's `metrics.jsonl`, its mean over pairs.
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
    fn it_keeps_what_every_plugin_promises() {
        registered();
    }

    #[test]
    fn one_pair_worked_out_by_hand() {
        // A margin of −3 − (−5) = 2, and states that are (0 + 2²)/2 = 2 from the reference's.
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
