//! What TRL logs of every method that compares the policy with the reference.

use reprpo_plugin::prelude::*;

/// `rewards/chosen|rejected|accuracies|margins` of the log-ratios Δ⁺ and Δ⁻ `[b]`: β·Δ, and the
/// share of pairs whose chosen one is strictly the larger.
pub fn log_rewards(loss: Loss, ratios: &Sides, beta: f64) -> Loss {
    let (chosen, rejected) = (ratios.chosen.detach() * beta, ratios.rejected.detach() * beta);
    let accuracies = chosen.gt_tensor(&rejected).to_kind(Kind::Float);
    loss.metric("rewards/chosen", &chosen)
        .metric("rewards/rejected", &rejected)
        .metric("rewards/accuracies", &accuracies)
        .metric("rewards/margins", &(&chosen - &rejected))
}
