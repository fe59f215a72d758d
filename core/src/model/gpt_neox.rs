//! The GPT-NeoX architecture: attention and MLP read the stream side by side and add to it together; heads are turned in
//! part, and norms and projections have biases.
//!
//! Reference: Black et al. 2022 (GPT-NeoX-20B) §2.1, and `modeling_gpt_neox.py` of transformers; the Pythia models are of
//! this architecture. With `use_parallel_residual` off the halves follow each other.

use serde::Deserialize;
use serde_json::Value;
use tch::Tensor;

use super::activation::Activation;
use super::decoder::{Decoder, Layer, Sight, View};
use super::linear::Linear;
use super::mlp::Mlp;
use super::module::{Module, PreNorm};
use super::norm::{LayerNorm, Norm};
use super::pass::Pass;
use super::rope::{Rope, RopeParameters, Spelling};
use super::self_attention::{Fused, SelfAttention};
use super::settings::{self, Sizes};
use super::vocabulary::Vocabulary;
use super::weights::Weights;
use crate::error::{Error, Result};

const SPELLING: Spelling = Spelling { theta: "rotary_emb_base", partial: "rotary_pct", usual_partial: 0.25, ..Spelling::USUAL };

#[derive(Deserialize)]
struct Config {
    #[serde(default = "eps")]
    layer_norm_eps: f64,
    #[serde(default = "gelu")]
    hidden_act: String,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default = "yes")]
    attention_bias: bool,
    #[serde(default = "yes")]
    use_parallel_residual: bool,
}

fn eps() -> f64 {
    1e-5
}

fn gelu() -> String {
    "gelu".to_owned()
}

fn yes() -> bool {
    true
}

/// The model of a configuration and its weights.
///
/// # Errors
/// A configuration that does not fit together or is not honoured, and a tensor that is missing or of another shape.
pub fn build(config: &Value, weights: &mut Weights) -> Result<Decoder> {
    let sizes = Sizes::read(config)?;
    if sizes.kv_heads() != sizes.num_attention_heads || sizes.q_width() != sizes.hidden_size {
        return Err(Error::new("the model's config.json groups or narrows GPT-NeoX's heads, which have a key and a value each and fill the hidden size"));
    }
    let sight = Sight { window: None, rope: Rope::new(sizes.head_dim(), &RopeParameters::partial(config, &SPELLING)?)? };
    let config: Config = settings::read(config)?;
    let activation = Activation::named("hidden_act", &config.hidden_act)?;
    let (hidden, inner, eps) = (sizes.hidden_size, sizes.intermediate_size, config.layer_norm_eps);
    // transformers reads the head from disk under either name.
    let head = if !weights.has("embed_out.weight") && weights.has("lm_head.weight") { "lm_head" } else { "embed_out" };
    let vocabulary = Vocabulary::new(weights, ["gpt_neox.embed_in", head], [sizes.vocab_size, hidden], config.tie_word_embeddings)?;
    let layer = |i: usize| -> Result<Layer> {
        let at = format!("gpt_neox.layers.{i}");
        // Masks that old checkpoints saved.
        weights.forget(&format!("{at}.attention.bias"));
        weights.forget(&format!("{at}.attention.masked_bias"));
        let halves = PreNorm {
            input_layernorm: LayerNorm::new(weights, &format!("{at}.input_layernorm"), hidden, eps)?,
            attention: SelfAttention {
                projections: Fused::by_head(weights, &format!("{at}.attention.query_key_value"), &sizes, config.attention_bias)?,
                output: weights.linear(&format!("{at}.attention.dense"), hidden, hidden, config.attention_bias)?,
                scale: sizes.scale(),
                cap: None,
            },
            post_attention_layernorm: LayerNorm::new(weights, &format!("{at}.post_attention_layernorm"), hidden, eps)?,
            mlp: Mlp {
                inward: weights.linear(&format!("{at}.mlp.dense_h_to_4h"), hidden, inner, true)?,
                outward: weights.linear(&format!("{at}.mlp.dense_4h_to_h"), inner, hidden, true)?,
                activation,
            },
        };
        Ok((0, if config.use_parallel_residual { Box::new(Parallel(halves)) } else { Box::new(halves) }))
    };
    let layers = (0..sizes.num_hidden_layers).map(layer).collect::<Result<_>>()?;
    let norm = LayerNorm::new(weights, "gpt_neox.final_layer_norm", hidden, eps)?;
    Ok(Decoder::new("gpt_neox", &sizes, vocabulary, vec![sight], layers, norm))
}

type Halves = PreNorm<LayerNorm, SelfAttention<Fused>, Mlp>;

/// Both halves read what the block is given: Wang and Komatsuzaki 2021 (GPT-J).
#[derive(Debug)]
struct Parallel(Halves);

impl Module for Parallel {
    fn forward(&self, h: &Tensor, view: &View, pass: &mut Pass<'_>) -> Result<Tensor> {
        let mixed = self.0.attention.forward(&self.0.input_layernorm.forward(h)?, view, pass)?;
        let mlp = self.0.mlp.forward(&self.0.post_attention_layernorm.forward(h)?, view, pass)?;
        Ok(mlp.f_add(&mixed)?.f_add(h)?)
    }

    fn linears(&self) -> Vec<&Linear> {
        self.0.linears()
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        self.0.linears_mut()
    }
}
