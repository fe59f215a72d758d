//! The original project's pooling, which leaves out tokens whose states have an unusually large
//! norm.

use reprpo_plugin::prelude::*;

/// Standard deviations above the mean norm beyond which a token is an outlier.
pub const DEVIATIONS: f64 = 1.0;

/// Averages the states of prompt and completion, without tokens whose states have an unusually
/// large norm.
pub struct WithoutOutliers;

impl TokenPooling for WithoutOutliers {
    fn pool(&self, tokens: &TokenStates) -> Result<Tensor> {
        Ok(pool(tokens, &tokens.states, None, Some(DEVIATIONS)))
    }
}

/// Pools `x`, of shape `[m w]` with one row per token, to shape `[b w]`.
///
/// The result is the mean over the tokens that are not outliers. The norm of an outlier exceeds the
/// mean norm of its sequence by more than `deviations` (unbiased) standard deviations. `None` means
/// that there are no outliers.
///
/// `attended` has the shape `[m]`. A token with the value false counts towards the mean and the
/// standard deviation of the norms, but not towards the result.
pub fn pool(
    tokens: &TokenStates,
    x: &Tensor,
    attended: Option<&Tensor>,
    deviations: Option<f64>,
) -> Tensor {
    let usual = match deviations {
        Some(deviations) => usual(tokens, x, deviations),
        None => tokens.owner.ones_like().to_kind(Kind::Bool),
    };
    let keep = attended
        .map_or_else(|| usual.shallow_clone(), |attended| usual.logical_and(attended))
        .to_kind(x.kind());
    tokens.sum_by_sequence(&(x * keep.unsqueeze(-1))) / tokens.sum_by_sequence(&keep).unsqueeze(-1)
}

/// Returns false for the outliers, `[m]`.
fn usual(tokens: &TokenStates, x: &Tensor, deviations: f64) -> Tensor {
    let norms = x.norm_scalaropt_dim(2.0, -1, false);
    let count = tokens.sum_by_sequence(&norms.ones_like());
    let mean = tokens.sum_by_sequence(&norms) / &count;
    let off = &norms - mean.index_select(0, &tokens.owner);
    let std = (tokens.sum_by_sequence(&off.square()) / (&count - 1.0)).sqrt();
    // The standard deviation of one token is NaN. Replacing NaN with 0 keeps the token.
    let limit = mean + std.nan_to_num(0.0, 0.0, 0.0) * deviations;
    norms.le_tensor(&limit.index_select(0, &tokens.owner))
}
