//! SimPO: preference optimisation without a reference model.

use reprpo_plugin::prelude::*;

/// Simple preference optimisation.
#[intervention(
    name = "simpo",
    summary = "SimPO: the mean log-probability of a token as the reward, with a margin and no \
        reference model",
    reference = "Meng, Xia and Chen 2024, SimPO: Simple Preference Optimization with a \
        Reference-Free Reward, eq. 6 (arXiv:2405.14734)",
    explain = "\
L = −log σ(R⁺ − R⁻ − γ)    R± = β·logp_π(y±)/|y±|

|y| counts the completion's tokens, so that a longer completion has no smaller reward for its \
length. There is no reference:
nothing holds the policy near the base model but the learning rate. The authors take β = 2 or \
2.5, at times 10, and γ/β from
0.1 to 0.8, and begin at 0.5.
TRL has it as CPOTrainer with loss_type = simpo, cpo_alpha = 0 and simpo_gamma = γ."
)]
pub struct SimPo {
    /// β: the reward of one nat a token, above 0.
    #[default(2.0)]
    pub beta: f64,
    /// γ: by how much the chosen completion's reward has to be the larger, 0 or more.
    #[default(1.0)]
    pub gamma: f64,
}

impl InterventionPlugin for SimPo {
    fn build(self, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            return Err(Error::new(format!(
                "`intervention.beta` is {}, but has to be above 0",
                self.beta
            )));
        }
        if !(self.gamma >= 0.0 && self.gamma.is_finite()) {
            return Err(Error::new(format!(
                "`intervention.gamma` is {}, but has to be 0 or more",
                self.gamma
            )));
        }
        Ok(Box::new(self))
    }
}

impl Intervention for SimPo {
    fn needs(&self) -> Needs {
        Needs { logprobs: Completions::Both, ..Needs::default() }
    }

    fn loss(&mut self, pairs: &Pairs, _: StepInfo) -> Result<Loss> {
        let policy = pairs.policy()?;
        // R⁺ and R⁻, each [b].
        let (chosen, rejected) =
            (policy.chosen()?.mean() * self.beta, policy.rejected()?.mean() * self.beta);
        let margins = &chosen - &rejected;
        let value = -(&margins - self.gamma).log_sigmoid().mean(None::<Kind>);
        Ok(Loss::new(value)
            .metric("rewards/chosen", &chosen)
            .metric("rewards/rejected", &rejected)
            .metric("rewards/margins", &margins)
            .metric("rewards/accuracies", &chosen.gt_tensor(&rejected).to_kind(Kind::Float)))
    }
}

#[cfg(feature = "plugin")]
reprpo_plugin::export_plugin!();

#[cfg(test)]
mod tests {
    use reprpo_plugin::testkit::{STEP, logged, model, near, registered, tensor, tokens};

    use super::*;

    #[test]
    fn it_keeps_what_every_plugin_promises() {
        registered();
    }

    #[test]
    fn loss_gradient_and_metrics_of_two_pairs_worked_out_by_hand() {
        // Of two tokens and one, and of one and two: R⁺ − R⁻ = 2·(−2) − 2·(−4) = 4 and 2·(−1) −
        // 2·(−1) = 0; γ = 1.
        let leaf = tensor(&[-1.0, -3.0, -1.0], &[3]).set_requires_grad(true);
        let (chosen, rejected) =
            (tokens(&leaf, &[2, 1]), tokens(&tensor(&[-4.0, -0.5, -1.5], &[3]), &[1, 2]));
        let pairs = Pairs::new(2, Vec::new(), Some(Logprobs::new(chosen, Some(rejected))), None);
        let loss = SimPo::default().loss(&pairs, STEP).unwrap();
        near(
            loss.value.double_value(&[]),
            f64::midpoint((-3f64).exp().ln_1p(), 1f64.exp().ln_1p()),
        );

        // ∂L/∂logp_t = −σ(γ − (R⁺ − R⁻))·β/|y⁺|, over two pairs.
        loss.value.backward();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        for (token, expected) in
            [(0, -sigmoid(-3.0) / 2.0), (1, -sigmoid(-3.0) / 2.0), (2, -sigmoid(1.0))]
        {
            near(leaf.grad().double_value(&[token]), expected);
        }
        for (metric, expected) in [
            ("rewards/chosen", -3.0),
            ("rewards/rejected", -5.0),
            ("rewards/margins", 2.0),
            ("rewards/accuracies", 0.5),
        ] {
            near(logged(&loss, metric), expected);
        }
    }

    #[test]
    fn a_field_out_of_range_is_named() {
        let refused = |config: SimPo| config.build(&model()).err().unwrap().to_string();
        assert!(
            refused(SimPo { beta: 0.0, ..SimPo::default() }).contains("`intervention.beta` is 0")
        );
        assert!(
            refused(SimPo { gamma: f64::NAN, ..SimPo::default() })
                .contains("`intervention.gamma` is NaN")
        );
    }
}
