//! The Phi-3 architecture: Llama's block with one module for queries, keys and values, and one for gate and up; long
//! contexts by LongRoPE, and in some models a window and heads that are turned in part.
//!
//! Reference: Abdin et al. 2024 (Phi-3) §2, and `modeling_phi3.py` of transformers; Phi-3.5-mini and Phi-4 are of this
//! architecture.

use serde::Deserialize;
use serde_json::Value;

use super::activation::Activation;
use super::decoder::{Decoder, Sight};
use super::llama::{Frame, silu};
use super::mlp::FusedGatedMlp;
use super::rope::{Rope, RopeParameters, Spelling};
use super::self_attention::{Fused, SelfAttention};
use super::settings::{self, Sizes};
use super::weights::Weights;
use crate::error::Result;

#[derive(Deserialize)]
struct Config {
    #[serde(default = "silu")]
    hidden_act: String,
    sliding_window: Option<i64>,
}

/// The model of a configuration and its weights.
///
/// # Errors
/// A configuration that does not fit together or is not honoured, and a tensor that is missing or of another shape.
pub fn build(config: &Value, weights: &mut Weights) -> Result<Decoder> {
    let config = &settings::with_defaults(config, &[("original_max_position_embeddings", 4096.into()), ("max_position_embeddings", 4096.into())]);
    let sizes = Sizes::read(config)?;
    let rope = RopeParameters::partial(config, &Spelling::USUAL)?;
    // What became LongRoPE went by other names in the first releases.
    let rope = if ["su", "yarn"].contains(&rope.kind()) { rope.with_kind("longrope") } else { rope };
    let frame: Frame = settings::read(config)?;
    let config: Config = settings::read(config)?;
    // `prepare_inputs_for_generation` drops the cache when the sequence outgrows the original
    // context.
    let rope = Rope::new(sizes.head_dim(), &rope)?.recomputing();
    let sight = Sight { window: config.sliding_window.map(settings::window).transpose()?, rope };
    let activation = Activation::named("hidden_act", &config.hidden_act)?;
    frame.or_eps(1e-5).fill("phi3", weights, &sizes, vec![sight], |weights, at, _| {
        let attention = SelfAttention {
            projections: Fused::in_turn(weights, &format!("{at}.self_attn.qkv_proj"), &sizes, false)?,
            output: weights.linear(&format!("{at}.self_attn.o_proj"), sizes.q_width(), sizes.hidden_size, false)?,
            scale: sizes.scale(),
            cap: None,
        };
        let mlp = FusedGatedMlp::new(weights, &format!("{at}.mlp"), [sizes.hidden_size, sizes.intermediate_size], activation)?;
        Ok((0, attention, mlp))
    })
}
