//! The original project's pooling, which leaves out tokens of unusual length.

use reprpo_plugin::prelude::*;

/// The mean over prompt and completion without tokens of unusual length.
pub struct WithoutOutliers;

impl TokenPooling for WithoutOutliers {
    fn pool(&self, tokens: &TokenStates) -> Result<Tensor> {
        Ok(pool(tokens, &tokens.states, None))
    }
}

/// Pools `x` `[m w]`, one row for each token: the mean of the tokens whose norm is at most one
/// standard deviation (unbiased) above the mean norm of all, `[b w]`. Tokens that are not
/// `attended` `[m]` count in the norms, and not in the mean.
pub fn pool(tokens: &TokenStates, x: &Tensor, attended: Option<&Tensor>) -> Tensor {
    let norms = x.norm_scalaropt_dim(2.0, -1, false);
    let count = tokens.sum_by_sequence(&norms.ones_like());
    let mean = tokens.sum_by_sequence(&norms) / &count;
    let off = &norms - mean.index_select(0, &tokens.owner);
    let std = (tokens.sum_by_sequence(&off.square()) / (&count - 1.0)).sqrt();
    // A single token has no deviation, and is kept.
    let limit = (mean + std.nan_to_num(0.0, 0.0, 0.0)).index_select(0, &tokens.owner);
    let usual = norms.le_tensor(&limit);
    let keep = attended
        .map_or_else(|| usual.shallow_clone(), |attended| usual.logical_and(attended))
        .to_kind(x.kind());
    tokens.sum_by_sequence(&(x * keep.unsqueeze(-1))) / tokens.sum_by_sequence(&keep).unsqueeze(-1)
}
