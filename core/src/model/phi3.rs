//! The Phi-3 architecture: Llama's block, but with one fused module for queries, keys and values,
//! and another for the gate and up projections. Long contexts use LongRoPE. Some models have a
//! sliding window, or only rotate a part of each head.
//!
//! Reference: Abdin et al. 2024 (Phi-3) §2, and `modeling_phi3.py` of transformers. Phi-3.5-mini
//! and Phi-4 have this architecture.

use super::llama::Frame;
use super::prelude::*;
use super::settings;

#[derive(Deserialize)]
struct Config {
    #[serde(default = "silu")]
    hidden_act: String,
    sliding_window: Option<i64>,
}

/// Builds the model from its configuration and weights.
///
/// # Errors
/// Fails if the configuration is not supported, or if a tensor is missing or has the wrong shape.
pub fn build(config: &Value, weights: &Weights<'_>) -> Result<Decoder> {
    let config = &settings::with_defaults(
        config,
        &json!({ "original_max_position_embeddings": 4096, "max_position_embeddings": 4096 }),
    );
    let sizes = Sizes::read(config)?;
    let rope = RopeParameters::partial(config, &RopeFields::COMMON)?;
    // In the first Phi-3 releases, LongRoPE is called `su` or `yarn`.
    let rope =
        if ["su", "yarn"].contains(&rope.kind()) { rope.with_kind("longrope") } else { rope };
    let frame: Frame = settings::read(config)?;
    let config: Config = settings::read(config)?;
    // When the sequence outgrows the original context, cached keys must be recomputed. In
    // transformers, `prepare_inputs_for_generation` drops the cache.
    let rope = Some(Rope::new(sizes.head_dim(), &rope)?.recomputing());
    let kind = LayerKind { window: config.sliding_window.map(settings::window).transpose()?, rope };
    let activation = Activation::named("hidden_act", &config.hidden_act)?;
    frame.or_eps(1e-5).fill("phi3", weights, &sizes, vec![kind], |at, _| {
        let (attention, mlp, hidden, inner) =
            (at.at("self_attn"), at.at("mlp"), sizes.hidden_size, sizes.intermediate_size);
        let qkv = Projections::fused_by_kind(
            attention.linear("qkv_proj", hidden, sizes.q_width() + 2 * sizes.kv_width(), false)?,
            &sizes,
        );
        let gate_up = mlp
            .linear("gate_up_proj", hidden, 2 * inner, false)?
            .fused(1, &[("gate_proj", inner), ("up_proj", inner)]);
        let self_attn = SelfAttention::new(
            qkv,
            attention.linear("o_proj", sizes.q_width(), hidden, false)?,
            &sizes,
        );
        Ok((
            0,
            self_attn,
            Mlp {
                input: InputProjection::FusedGated(gate_up),
                output: mlp.linear("down_proj", inner, hidden, false)?,
                activation,
            },
        ))
    })
}
