//! Models for speed measurements. They have the shapes of real models, but random weights.

use indexmap::IndexMap;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// The shape of a Llama model.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Name of the model's size.
    pub name: &'static str,
    /// Number of blocks.
    layers: i64,
    /// Width of the residual stream.
    hidden: i64,
    heads: i64,
    kv_heads: i64,
    /// Width of the MLP.
    mlp: i64,
    /// Number of tokens in the vocabulary.
    pub vocab: i64,
    /// True if the embedding is also the output head.
    tied: bool,
}

/// SmolLM2-135M.
pub const SMALL: Shape = Shape {
    name: "135M",
    layers: 30,
    hidden: 576,
    heads: 9,
    kv_heads: 3,
    mlp: 1536,
    vocab: 49_152,
    tied: true,
};
/// TinyLlama-1.1B.
pub const LARGE: Shape = Shape {
    name: "1.1B",
    layers: 22,
    hidden: 2048,
    heads: 32,
    kv_heads: 4,
    mlp: 5632,
    vocab: 32_000,
    tied: false,
};

impl Shape {
    /// The model's `config.json`.
    pub fn config(&self) -> Value {
        json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": self.vocab,
            "hidden_size": self.hidden, "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "rms_norm_eps": 1e-5,
            "rope_theta": 10_000.0, "max_position_embeddings": 2048, "hidden_act": "silu",
            "tie_word_embeddings": self.tied,
        })
    }

    /// Returns the name and the shape of each tensor.
    fn tensors(&self) -> Vec<(String, Vec<i64>)> {
        let kv = self.hidden / self.heads * self.kv_heads;
        let mut tensors = vec![
            ("model.embed_tokens.weight".to_owned(), vec![self.vocab, self.hidden]),
            ("model.norm.weight".to_owned(), vec![self.hidden]),
        ];
        if !self.tied {
            tensors.push(("lm_head.weight".to_owned(), vec![self.vocab, self.hidden]));
        }
        for block in 0..self.layers {
            let (h, mlp) = (self.hidden, self.mlp);
            let matrices = [
                ("self_attn.q_proj", h, h),
                ("self_attn.k_proj", kv, h),
                ("self_attn.v_proj", kv, h),
                ("self_attn.o_proj", h, h),
                ("mlp.gate_proj", mlp, h),
                ("mlp.up_proj", mlp, h),
                ("mlp.down_proj", h, mlp),
            ];
            tensors.extend(matrices.map(|(name, outputs, inputs)| {
                (format!("model.layers.{block}.{name}.weight"), vec![outputs, inputs])
            }));
            tensors.extend(
                ["input_layernorm", "post_attention_layernorm"]
                    .map(|name| (format!("model.layers.{block}.{name}.weight"), vec![h])),
            );
        }
        tensors
    }

    /// Number of weights.
    pub fn parameters(&self) -> i64 {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<i64>()).sum()
    }

    /// Creates random weights on `device`.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn weights(&self, kind: Kind, device: Device) -> Result<IndexMap<String, Tensor>> {
        tch::manual_seed(0);
        let tensor = |(name, shape): (String, Vec<i64>)| {
            let tensor = if shape.len() == 1 {
                Tensor::f_ones(&shape, (kind, device))?
            } else {
                Tensor::f_randn(&shape, (kind, device))?.f_mul_scalar_(0.02)?
            };
            Ok((name, tensor))
        };
        self.tensors().into_iter().map(tensor).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shapes_have_the_sizes_of_their_models() {
        assert_eq!((SMALL.parameters(), LARGE.parameters()), (134_515_008, 1_100_048_384));
    }
}
