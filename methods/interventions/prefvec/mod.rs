//! Preference vectors: both completions' states move along the direction from rejected to chosen.

use reprpo_plugin::prelude::*;

use super::rewards::log_rewards;

#[cfg(test)]
mod tests;

/// ε of the method reference.
const EPS: f64 = 1e-12;

/// Preference vectors in a trust region.
pub struct PrefVec;

/// Fields of `intervention` with `name = "prefvec"`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "reprpo_plugin::serde", deny_unknown_fields, default)]
#[schemars(crate = "reprpo_plugin::schemars")]
pub struct PrefVecConfig {
    /// τ: how far to move along v̂, in lengths of the preference vector, above 0.
    pub tau: f64,
    /// β_orth: weight of the movement off v̂, in lengths of the preference vector.
    pub beta_orth: f64,
    /// λ_angle: weight of 1 − cos between the policy's preference vector and the reference's.
    pub lambda_angle: f64,
    /// λ_nll: weight of the chosen completion becoming less likely than under the reference, per nat a token.
    pub lambda_nll: f64,
    /// λ_dpo: weight of −log σ(βθ).
    pub lambda_dpo: f64,
    /// β of the DPO term and of the logged rewards.
    pub beta: f64,
}

impl Default for PrefVecConfig {
    fn default() -> Self {
        Self { tau: 1.0, beta_orth: 0.1, lambda_angle: 0.0, lambda_nll: 1.0, lambda_dpo: 0.0, beta: 0.1 }
    }
}

impl Plugin for PrefVec {
    const NAME: &'static str = "prefvec";
    const SUMMARY: &'static str = "move chosen and rejected states along the reference's preference direction, inside a trust region";
    const REFERENCE: &'static str = "wassname, repr-preference-optimization (PrefVec), with the projection taken as a signed length";
    const EXPLAIN: &'static str = "\
L = ½[relu(τ − a⁺) + relu(τ − a⁻)]/τ + β_orth·½[‖m⁺ − a⁺v̂‖ + ‖m⁻ − a⁻v̂‖]
    + λ_angle[1 − cos(p⁺ − p⁻, d)] + λ_nll·relu(nll_π(y⁺) − nll_r(y⁺)) + λ_dpo·(−log σ(β θ))
d = r⁺ − r⁻    s = ‖d‖ + ε    v̂ = d/s    m± = (p± − r±)/s    a± = ⟨m±, v̂⟩

p± are the policy's pooled and transformed states at a tap, r± the reference's; means over pairs and taps. Everything is
in units of the preference vector's own length s: τ = 1 asks both completions to move by one such vector. β_orth is the
trust region, λ_nll keeps the chosen text as likely as it was (nll is the mean over completion tokens).";
    type Config = PrefVecConfig;
}

impl InterventionPlugin for PrefVec {
    fn build(config: PrefVecConfig, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
        let c = &config;
        for (field, value, least) in [
            ("tau", c.tau, f64::MIN_POSITIVE),
            ("beta_orth", c.beta_orth, 0.0),
            ("lambda_angle", c.lambda_angle, 0.0),
            ("lambda_nll", c.lambda_nll, 0.0),
            ("lambda_dpo", c.lambda_dpo, 0.0),
            ("beta", c.beta, f64::MIN_POSITIVE),
        ] {
            if !(value >= least && value.is_finite()) {
                return Err(Error::new(format!("`intervention.{field}` is {value}, but has to be {}", if least > 0.0 { "above 0" } else { "0 or more" })));
            }
        }
        Ok(Box::new(config))
    }
}

impl Intervention for PrefVecConfig {
    fn needs(&self) -> Needs {
        let logprobs = match (self.lambda_dpo > 0.0, self.lambda_nll > 0.0) {
            (true, _) => Completions::Both,
            (false, true) => Completions::Chosen,
            (false, false) => Completions::None,
        };
        Needs { logprobs, reference_logprobs: logprobs > Completions::None, states: States::Pooled, reference_states: true, ..Needs::default() }
    }

    fn loss(&mut self, pairs: &Pairs, _: StepInfo) -> Result<Loss> {
        // Each term per tap and pair: [along, orth, angle, a⁺, a⁻], every one [b].
        let terms = pairs.mean_over_taps(|tap| {
            let (p, r) = (&tap.policy, tap.reference()?);
            let d = &r.chosen - &r.rejected;
            let s = norm(&d).unsqueeze(-1) + EPS;
            let v = &d / &s;
            let (m_cho, m_rej) = ((&p.chosen - &r.chosen) / &s, (&p.rejected - &r.rejected) / &s);
            let (a_cho, a_rej) = (dot(&m_cho, &v), dot(&m_rej, &v));
            let along = ((self.tau - &a_cho).relu() + (self.tau - &a_rej).relu()) * (0.5 / self.tau);
            let orth = (norm(&(&m_cho - a_cho.unsqueeze(-1) * &v)) + norm(&(&m_rej - a_rej.unsqueeze(-1) * &v))) * 0.5;
            let angle = 1.0 - Tensor::cosine_similarity(&(&p.chosen - &p.rejected), &d, -1, EPS);
            Ok(Tensor::stack(&[along, orth, angle, a_cho, a_rej], 0))
        })?;
        let [along, orth, angle, a_cho, a_rej] = [0, 1, 2, 3, 4].map(|i| terms.get(i));
        let mut value = (&along + &orth * self.beta_orth + &angle * self.lambda_angle).mean(None::<Kind>);
        let mut metrics =
            vec![("prefvec/along", along), ("prefvec/orth", orth), ("prefvec/angle", angle), ("prefvec/chosen", a_cho), ("prefvec/rejected", a_rej)];
        if self.lambda_nll > 0.0 {
            let worse = (pairs.reference()?.chosen.mean() - pairs.policy()?.chosen.mean()).relu();
            value += worse.mean(None::<Kind>) * self.lambda_nll;
            metrics.push(("prefvec/nll", worse));
        }
        let mut ratios = None;
        if self.lambda_dpo > 0.0 {
            let sides = pairs.log_ratios()?;
            value -= ((&sides.chosen - &sides.rejected) * self.beta).log_sigmoid().mean(None::<Kind>) * self.lambda_dpo;
            ratios = Some(sides);
        }
        let loss = metrics.iter().fold(Loss::new(value), |loss, (name, t)| loss.metric(name, t));
        Ok(match ratios {
            Some(sides) => log_rewards(loss, &sides, self.beta),
            None => loss,
        })
    }
}

/// ⟨a, b⟩ over h: `[b h]` → `[b]`.
fn dot(a: &Tensor, b: &Tensor) -> Tensor {
    (a * b).sum_dim_intlist(-1, false, None::<Kind>)
}

/// ‖a‖ over h: `[b h]` → `[b]`; its gradient at 0 is 0.
fn norm(a: &Tensor) -> Tensor {
    a.norm_scalaropt_dim(2.0, -1, false)
}

register!(intervention: PrefVec);
