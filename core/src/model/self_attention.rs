//! The first half of a block, which relates each token to those before it.
//!
//! Architectures differ in how queries, keys and values are made from the residual stream. The rest
//! is the same.

use tch::Tensor;

use super::attention::Scores;
use super::block::BlockCx;
use super::linear::Linear;
use super::norm::Norm;
use super::settings::Sizes;
use super::weights::Weights;
use crate::error::Result;

/// Attention, with the projections into its heads and back into the stream.
#[derive(Debug)]
pub struct SelfAttention {
    /// The projections to queries, keys and values.
    pub qkv: Projections,
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// From the heads' width back to the stream's.
    pub output: Linear,
    /// How scores are made from products of queries and keys.
    pub scores: Scores,
    /// Width of a head.
    pub head_dim: i64,
}

/// The projections to queries, keys and values.
#[derive(Debug)]
pub enum Projections {
    /// One module each for queries, keys and values.
    Separate(Box<[Linear; 3]>),
    /// One module with three parts.
    Fused(Linear),
}

/// Norms of queries and keys: Henry et al. 2020, Dehghani et al. 2023.
#[derive(Debug)]
pub enum QkNorm {
    /// None.
    Off,
    /// Of each head by itself: one for queries, one for keys.
    OfHeads([Norm; 2]),
    /// Of all heads together: one for queries, one for keys.
    OfAll([Norm; 2]),
}

impl SelfAttention {
    /// Llama's, with `q_proj`, `k_proj`, `v_proj` and `o_proj`. `bias` says whether the first three
    /// and the last have one.
    ///
    /// # Errors
    /// Fails if a tensor is missing or has another shape.
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

    /// Attention with these projections, whose scores are scaled by 1/√d.
    pub fn new(qkv: Projections, output: Linear, sizes: &Sizes) -> Self {
        Self {
            qkv,
            qk_norm: QkNorm::Off,
            output,
            scores: Scores::scaled_by(sizes.scale()),
            head_dim: sizes.head_dim(),
        }
    }

    /// y `[n hidden]` of x `[n hidden]`.
    ///
    /// # Errors
    /// Fails if an adapter does, or if memory runs out.
    pub fn forward(&self, x: &Tensor, cx: &BlockCx<'_>) -> Result<Tensor> {
        let [q, k, v] = self.project(x, cx)?;
        let (q, k) = (cx.rotate(q)?, cx.rotate(k)?);
        cx.linear(&self.output, &cx.attend(&q, k, v, self.scores)?)
    }

    /// Queries `[n heads d]`, keys and values `[n kv_heads d]` of x `[n hidden]`, not yet rotated.
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
            Ok(norm.forward(&t.f_flatten(1, 2)?)?.f_unflatten(1, [-1, d])?)
        };
        match &self.qk_norm {
            QkNorm::Off => Ok([q, k, v]),
            QkNorm::OfHeads([of_q, of_k]) => Ok([of_q.forward(&q)?, of_k.forward(&k)?, v]),
            QkNorm::OfAll([of_q, of_k]) => Ok([of_all(of_q, q)?, of_all(of_k, k)?, v]),
        }
    }

    /// Calls `visit` with each linear module, in the order in which they run.
    pub fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a Linear)) {
        match &self.qkv {
            Projections::Separate(qkv) => qkv.iter().for_each(&mut *visit),
            Projections::Fused(qkv) => visit(qkv),
        }
        visit(&self.output);
    }
}

impl Projections {
    /// Marks `module` as one for all, whose rows are all queries, then all keys, then all values.
    pub fn in_turn(module: Linear, sizes: &Sizes) -> Self {
        Self::Fused(module.fused(
            1,
            &[
                ("q_proj", sizes.q_width()),
                ("k_proj", sizes.kv_width()),
                ("v_proj", sizes.kv_width()),
            ],
        ))
    }

    /// Marks `module` as one for all, whose rows are the first head's query, key and value, then
    /// the second's, and so on.
    pub fn by_head(module: Linear, sizes: &Sizes) -> Self {
        let d = sizes.head_dim();
        Self::Fused(
            module.fused(sizes.num_attention_heads, &[("q_proj", d), ("k_proj", d), ("v_proj", d)]),
        )
    }
}
