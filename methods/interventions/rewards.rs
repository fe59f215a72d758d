//! TRL's reward metrics, for methods that compare the policy with the reference.

use reprpo_plugin::prelude::*;

/// Adds the metrics `rewards/chosen|rejected|accuracies|margins` to a loss. `ratios` are the
/// log-ratios Δ⁺ and Δ⁻, each `[b]`.
///
/// A reward is β·Δ. The accuracy is the fraction of pairs whose chosen reward is strictly greater
/// than the rejected one.
pub fn log_rewards(loss: Loss, ratios: &Sides, beta: f64) -> Loss {
    let (chosen, rejected) = (ratios.chosen.detach() * beta, ratios.rejected.detach() * beta);
    let accuracies = chosen.gt_tensor(&rejected).to_kind(Kind::Float);
    loss.metric("rewards/chosen", &chosen)
        .metric("rewards/rejected", &rejected)
        .metric("rewards/accuracies", &accuracies)
        .metric("rewards/margins", &(&chosen - &rejected))
}
