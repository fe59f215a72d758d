//! TRL's reward metrics.

use reprpo_plugin::prelude::*;

/// Adds the metrics `rewards/chosen|rejected|accuracies|margins` to a loss.
///
/// A reward is β times the value of its side, each `[b]`: the log-ratio Δ, or the log-probability
/// if the method has no reference. The accuracy is the fraction of pairs whose chosen reward is
/// strictly greater than the rejected one.
pub fn log_rewards(loss: Loss, values: &Sides, beta: f64) -> Loss {
    let (chosen, rejected) = (values.chosen.detach() * beta, values.rejected.detach() * beta);
    let accuracies = chosen.gt_tensor(&rejected).to_kind(Kind::Float);
    loss.metric("rewards/chosen", &chosen)
        .metric("rewards/rejected", &rejected)
        .metric("rewards/accuracies", &accuracies)
        .metric("rewards/margins", &(&chosen - &rejected))
}
