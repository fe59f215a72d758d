//! Direct preference optimisation.

use reprpo_plugin::prelude::*;

use super::rewards::log_rewards;

#[cfg(test)]
mod tests;

/// Direct preference optimisation.
pub struct Dpo;

/// Fields of `intervention` with `name = "dpo"`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "reprpo_plugin::serde", deny_unknown_fields, default)]
#[schemars(crate = "reprpo_plugin::schemars")]
pub struct DpoConfig {
    /// β: how strongly the margin is pulled from the reference's, above 0.
    pub beta: f64,
    /// The function of the margin θ.
    pub loss_type: LossType,
}

/// Functions of the margin, under TRL's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "reprpo_plugin::serde", rename_all = "snake_case")]
#[schemars(crate = "reprpo_plugin::schemars")]
pub enum LossType {
    /// −log σ(βθ)
    Sigmoid,
}

impl Default for DpoConfig {
    fn default() -> Self {
        Self { beta: 0.1, loss_type: LossType::Sigmoid }
    }
}

impl Plugin for Dpo {
    const NAME: &'static str = "dpo";
    const SUMMARY: &'static str = "direct preference optimisation: raise the chosen completion's log-probability over the rejected one's";
    const REFERENCE: &'static str = "Rafailov et al. 2023, Direct Preference Optimization, eq. 7; logged as TRL 1.16 does";
    const EXPLAIN: &'static str = "\
L = −log σ(β θ)
θ = [logp_π(y⁺|x) − logp_π(y⁻|x)] − [logp_r(y⁺|x) − logp_r(y⁻|x)]

logp is the sum over the completion's tokens, π the model with its adapter on, r the same model with the adapter off.
At the first step π = r, so L = log 2 = 0.693147. Outputs alone: the baseline that the other methods are measured against.";
    type Config = DpoConfig;
}

impl InterventionPlugin for Dpo {
    fn build(config: DpoConfig, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
        if !(config.beta > 0.0 && config.beta.is_finite()) {
            return Err(Error::new(format!("`intervention.beta` is {}, but has to be above 0", config.beta)));
        }
        Ok(Box::new(config))
    }
}

impl Intervention for DpoConfig {
    fn needs(&self) -> Needs {
        Needs { logprobs: Completions::Both, reference_logprobs: true, ..Needs::default() }
    }

    fn loss(&mut self, pairs: &Pairs, _: StepInfo) -> Result<Loss> {
        let ratios = pairs.log_ratios()?;
        let theta = &ratios.chosen - &ratios.rejected;
        let value = match self.loss_type {
            LossType::Sigmoid => -(theta * self.beta).log_sigmoid().mean(None::<Kind>),
        };
        Ok(log_rewards(Loss::new(value), &ratios, self.beta))
    }
}

register!(intervention: Dpo);
