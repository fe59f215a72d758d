//! DPOP: DPO with a penalty if the chosen completion becomes less likely.

use reprpo_plugin::prelude::*;

/// DPO-Positive.
#[intervention(
    name = "dpop",
    summary = "DPO-Positive: DPO that is not satisfied by making the chosen completion less likely",
    reference = "Pal et al. 2024, Smaug: Fixing Failure Modes of Preference Optimisation with \
        DPO-Positive, eq. 3 (arXiv:2402.13228)",
    explain = "\
L = −log σ(β(θ − λ·relu(−Δ⁺)))    θ = Δ⁺ − Δ⁻    Δ± = logp_π(y±|x) − logp_r(y±|x)

DPO only rewards the margin θ, so it may lower both log-probabilities as long as the rejected one
falls faster. The penalty is 0 while the chosen completion is at least as likely as under the
reference, and λ times as steep as the margin below that. λ = 0 is DPO.
Use it if the two completions are nearly equal, as in arithmetic: most of their tokens are the same,
and DPO makes these tokens less likely. The authors use β = 0.3 and λ = 50."
)]
pub struct Dpop {
    /// β: factor by which the loss multiplies the margin in nats, above 0.
    #[default(0.3)]
    pub beta: f64,
    /// λ: weight of the penalty, 0 or more.
    #[default(50.0)]
    pub lambda: f64,
}

impl InterventionPlugin for Dpop {
    fn build(self, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            return Err(Error::new(format!(
                "`intervention.beta` must be greater than 0, got {}",
                self.beta
            )));
        }
        if !(self.lambda >= 0.0 && self.lambda.is_finite()) {
            return Err(Error::new(format!(
                "`intervention.lambda` must be 0 or more, got {}",
                self.lambda
            )));
        }
        Ok(Box::new(self))
    }
}

impl Intervention for Dpop {
    // The engine computes the reference's log-probabilities once per pair, before the first step.
    fn needs(&self) -> Needs {
        Needs { logprobs: Completions::Both, reference_logprobs: true, ..Needs::default() }
    }

    fn loss(&mut self, pairs: &Pairs, _: StepInfo) -> Result<Loss> {
        // Δ⁺ and Δ⁻, each [b].
        let Sides { chosen, rejected } = pairs.log_ratios()?;
        let margin = &chosen - &rejected;
        let penalty = (-&chosen).relu();
        let value = -((&margin - &penalty * self.lambda) * self.beta).log_sigmoid();
        Ok(Loss::new(value.mean(None::<Kind>))
            .metric("rewards/chosen", &(&chosen * self.beta))
            .metric("rewards/rejected", &(&rejected * self.beta))
            .metric("rewards/margins", &(&margin * self.beta))
            .metric("rewards/accuracies", &chosen.gt_tensor(&rejected).to_kind(Kind::Float))
            .metric("dpop/penalty", &penalty))
    }
}

#[cfg(feature = "plugin")]
reprpo_plugin::export_plugin!();

#[cfg(test)]
mod tests {
    use reprpo_plugin::testkit::{STEP, logged, model, near, registered, tensor, tokens};

    use super::*;

    #[test]
    fn it_passes_the_conformance_tests() {
        registered();
    }

    #[test]
    fn loss_gradient_and_metrics_of_two_pairs_match_a_calculation_by_hand() {
        // The chosen completions have two tokens and one. Δ⁺ is −1 and 0.5, and Δ⁻ is −3 and 1, so
        // θ is 2 and −0.5. Only the first pair has a penalty, λ·1.
        let leaf = tensor(&[-1.0, -3.0, -1.0], &[3]).set_requires_grad(true);
        let side = |values: &[f64], lengths: &[i64]| {
            tokens(&tensor(values, &[values.len() as i64]), lengths)
        };
        let policy =
            Logprobs::new(tokens(&leaf, &[2, 1]), Some(side(&[-5.0, -1.0, -1.0], &[1, 2])));
        let reference =
            Logprobs::new(side(&[-1.5, -1.5, -1.5], &[2, 1]), Some(side(&[-2.0, -3.0], &[1, 1])));
        let pairs = Pairs::new(2, Vec::new(), Some(policy), Some(reference));
        let mut dpop = Dpop { beta: 0.5, lambda: 3.0 };
        let loss = dpop.loss(&pairs, STEP).unwrap();
        let (first, second) = (0.5 * (2.0 - 3.0), 0.5 * -0.5);
        let neg_log_sigmoid = |x: f64| (-x).exp().ln_1p();
        near(
            loss.value.double_value(&[]),
            f64::midpoint(neg_log_sigmoid(first), neg_log_sigmoid(second)),
        );

        // For two pairs, ∂L/∂logp_t = −σ(−β(θ − λ·relu(−Δ⁺)))·β·(1 + λ) / 2 if Δ⁺ < 0; otherwise
        // without λ.
        loss.value.backward();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        for (token, expected) in [
            (0, -sigmoid(-first) * 0.5 * 4.0 / 2.0),
            (1, -sigmoid(-first) * 0.5 * 4.0 / 2.0),
            (2, -sigmoid(-second) * 0.5 / 2.0),
        ] {
            near(leaf.grad().double_value(&[token]), expected);
        }
        for (metric, expected) in [
            ("rewards/chosen", 0.5 * -0.25),
            ("rewards/rejected", -0.5),
            ("rewards/margins", 0.5 * 0.75),
            ("rewards/accuracies", 0.5),
            ("dpop/penalty", 0.5),
        ] {
            near(logged(&loss, metric), expected);
        }
    }

    #[test]
    fn a_field_out_of_range_is_an_error_that_names_it() {
        let refused = |config: Dpop| config.build(&model()).err().unwrap().to_string();
        assert!(
            refused(Dpop { beta: 0.0, ..Dpop::default() })
                .contains("`intervention.beta` must be greater than 0, got 0")
        );
        assert!(
            refused(Dpop { lambda: f64::NAN, ..Dpop::default() })
                .contains("`intervention.lambda` must be 0 or more, got NaN")
        );
    }
}
