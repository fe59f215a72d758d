//! The first half of a block, in which each token attends to earlier ones.
//!
//! Architectures differ in how they compute queries, keys and values from the residual stream. The
//! rest is shared.

use tch::Tensor;

use super::attention::Scores;
use super::block::BlockCx;
use super::linear::Linear;
use super::norm::Norm;
use super::settings::Sizes;
use super::weights::Weights;
use crate::error::Result;

/// Self-attention, including the projections from the residual stream and back to it.
#[derive(Debug)]
pub struct SelfAttention {
    /// The projections to queries, keys and values.
    pub qkv: Projections,
    /// Norms that are applied to queries and keys before they are rotated.
    pub qk_norm: QkNorm,
    /// The projection from all heads back to the residual stream.
    pub output: Linear,
    /// How scores are computed from the products of queries and keys.
    pub scores: Scores,
    /// Width of a head.
    pub head_dim: i64,
}

/// The projections to queries, keys and values.
#[derive(Debug)]
pub enum Projections {
    /// Separate modules for queries, keys and values.
    Separate(Box<[Linear; 3]>),
    /// One fused module with three parts.
    Fused(Linear),
}

/// Norms of queries and keys (Henry et al. 2020, Dehghani et al. 2023).
#[derive(Debug)]
pub enum QkNorm {
    /// No norms.
    Off,
    /// A norm over each head separately, one for queries and one for keys.
    PerHead([Norm; 2]),
    /// A norm over all heads together, one for queries and one for keys.
    AllHeads([Norm; 2]),
}

impl SelfAttention {
    /// Builds Llama's attention from the modules `q_proj`, `k_proj`, `v_proj` and `o_proj` in
    /// `weights`. `bias[0]` is true if the first three modules have biases, and `bias[1]` is true
    /// if `o_proj` has a bias.
    ///
    /// # Errors
    /// Fails if a tensor is missing or has the wrong shape.
    pub fn separate(weights: &Weights<'_>, sizes: &Sizes, bias: [bool; 2]) -> Result<Self> {
        let hidden = sizes.hidden_size;
        let linear = |name, outputs| weights.linear(name, hidden, outputs, bias[0]);
        let qkv = [
            linear("q_proj", sizes.q_width())?,
            linear("k_proj", sizes.kv_width())?,
            linear("v_proj", sizes.kv_width())?,
        ];
        let qkv = Projections::Separate(Box::new(qkv));
        Ok(Self::new(qkv, weights.linear("o_proj", sizes.q_width(), hidden, bias[1])?, sizes))
    }

    /// Creates attention with the given projections and without norms of queries and keys. Scores
    /// are multiplied by 1/√d, where d is the width of a head.
    pub fn new(qkv: Projections, output: Linear, sizes: &Sizes) -> Self {
        Self {
            qkv,
            qk_norm: QkNorm::Off,
            output,
            scores: Scores::scaled_by(sizes.scale()),
            head_dim: sizes.head_dim(),
        }
    }

    /// Applies attention to x `[n hidden]`. Returns `[n hidden]`.
    ///
    /// # Errors
    /// Fails if an adapter fails, or if memory runs out.
    pub fn forward(&self, x: &Tensor, cx: &BlockCx<'_>) -> Result<Tensor> {
        let [q, k, v] = self.project(x, cx)?;
        let (q, k) = (cx.rotate(q)?, cx.rotate(k)?);
        cx.linear(&self.output, &cx.attend(&q, k, v, self.scores)?)
    }

    /// Computes queries `[n heads d]`, keys and values `[n kv_heads d]` from x `[n hidden]`, before
    /// rotation.
    fn project(&self, x: &Tensor, cx: &BlockCx<'_>) -> Result<[Tensor; 3]> {
        let (d, apart) = (self.head_dim, |t: &Tensor, dim| t.f_unflatten(dim, [-1, self.head_dim]));
        let [q, k, v] = match &self.qkv {
            Projections::Separate(qkv) => {
                let [q, k, v] = qkv.as_ref();
                [
                    apart(&cx.linear(q, x)?, 1)?,
                    apart(&cx.linear(k, x)?, 1)?,
                    apart(&cx.linear(v, x)?, 1)?,
                ]
            }
            Projections::Fused(qkv) => {
                let [q, k, v] = qkv.split(&cx.linear(qkv, x)?)?;
                [
                    apart(&q, 2)?.f_flatten(1, 2)?,
                    apart(&k, 2)?.f_flatten(1, 2)?,
                    apart(&v, 2)?.f_flatten(1, 2)?,
                ]
            }
        };
        let of_all = |norm: &Norm, t: Tensor| -> Result<Tensor> {
            Ok(cx.norm(norm, &t.f_flatten(1, 2)?)?.f_unflatten(1, [-1, d])?)
        };
        match &self.qk_norm {
            QkNorm::Off => Ok([q, k, v]),
            QkNorm::PerHead([of_q, of_k]) => Ok([cx.norm(of_q, &q)?, cx.norm(of_k, &k)?, v]),
            QkNorm::AllHeads([of_q, of_k]) => Ok([of_all(of_q, q)?, of_all(of_k, k)?, v]),
        }
    }

    /// Calls `visit` with each linear module, in the order of execution.
    pub fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a Linear)) {
        match &self.qkv {
            Projections::Separate(qkv) => qkv.iter().for_each(&mut *visit),
            Projections::Fused(qkv) => visit(qkv),
        }
        visit(&self.output);
    }
}

impl Projections {
    /// Marks `module` as fused. Its output contains the queries of all heads, then all keys, then
    /// all values.
    pub fn fused_by_kind(module: Linear, sizes: &Sizes) -> Self {
        Self::Fused(module.fused(
            1,
            &[
                ("q_proj", sizes.q_width()),
                ("k_proj", sizes.kv_width()),
                ("v_proj", sizes.kv_width()),
            ],
        ))
    }

    /// Marks `module` as fused. Its output contains the query, key and value of the first head,
    /// followed by the query, key and value of the second head, and so on.
    pub fn fused_by_head(module: Linear, sizes: &Sizes) -> Self {
        let d = sizes.head_dim();
        Self::Fused(
            module.fused(sizes.num_attention_heads, &[("q_proj", d), ("k_proj", d), ("v_proj", d)]),
        )
    }
}
