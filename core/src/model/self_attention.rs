//! The first half of a block: each token and what came before it.
//!
//! Architectures differ in how queries, keys and values come out of the stream; what is done with them is one place.

use tch::Tensor;

use super::decoder::View;
use super::linear::Linear;
use super::module::Module;
use super::norm::Norm;
use super::pass::Pass;
use super::settings::Sizes;
use super::weights::Weights;
use crate::error::Result;

/// Queries, keys and values of a stream.
pub trait Projections: std::fmt::Debug + Send {
    /// Queries `[n heads d]`, keys and values `[n kv_heads d]` of x `[n hidden]`, not yet turned by their positions.
    ///
    /// # Errors
    /// What libtorch or an adapter says.
    fn project(&self, x: &Tensor, pass: &mut Pass<'_>) -> Result<[Tensor; 3]>;

    /// Its linear modules, in the order in which they run.
    fn linears(&self) -> Vec<&Linear>;

    /// The same, to exchange their weights.
    fn linears_mut(&mut self) -> Vec<&mut Linear>;
}

/// Attention with rotary positions, and the projection back into the stream.
#[derive(Debug)]
pub struct SelfAttention<P> {
    /// Where queries, keys and values come from.
    pub projections: P,
    /// From the heads' width back to the stream's.
    pub output: Linear,
    /// What products of queries and keys are multiplied by.
    pub scale: f64,
    /// c of c·tanh(score / c), where scores are capped.
    pub cap: Option<f64>,
}

impl<P: Projections> Module for SelfAttention<P> {
    fn forward(&self, x: &Tensor, view: &View, pass: &mut Pass<'_>) -> Result<Tensor> {
        let [q, k, v] = self.projections.project(x, pass)?;
        let (q, k) = (view.tables.rotate(&q)?, view.tables.rotate(&k)?);
        let (k, v) = pass.remember(k, v)?;
        pass.linear(&self.output, &view.attention.attend(&q, &k, &v, self.scale, self.cap)?)
    }

    fn linears(&self) -> Vec<&Linear> {
        let mut linears = self.projections.linears();
        linears.push(&self.output);
        linears
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut linears = self.projections.linears_mut();
        linears.push(&mut self.output);
        linears
    }
}

/// One module each for queries, keys and values.
#[derive(Debug)]
pub struct Separate {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    head_dim: i64,
}

impl Separate {
    /// That of `at.q_proj` and so on.
    ///
    /// # Errors
    /// Where a tensor is missing or of another shape.
    pub fn new(weights: &mut Weights, at: &str, sizes: &Sizes, bias: bool) -> Result<Self> {
        let mut linear = |name: &str, outputs| weights.linear(&format!("{at}.{name}"), sizes.hidden_size, outputs, bias);
        Ok(Self {
            q_proj: linear("q_proj", sizes.q_width())?,
            k_proj: linear("k_proj", sizes.kv_width())?,
            v_proj: linear("v_proj", sizes.kv_width())?,
            head_dim: sizes.head_dim(),
        })
    }
}

impl Projections for Separate {
    fn project(&self, x: &Tensor, pass: &mut Pass<'_>) -> Result<[Tensor; 3]> {
        let mut heads = |linear: &Linear| -> Result<Tensor> { Ok(pass.linear(linear, x)?.f_unflatten(1, [-1, self.head_dim])?) };
        Ok([heads(&self.q_proj)?, heads(&self.k_proj)?, heads(&self.v_proj)?])
    }

    fn linears(&self) -> Vec<&Linear> {
        vec![&self.q_proj, &self.k_proj, &self.v_proj]
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        vec![&mut self.q_proj, &mut self.k_proj, &mut self.v_proj]
    }
}

/// Queries and keys that a norm of each head follows: Henry et al. 2020, Dehghani et al. 2023.
#[derive(Debug)]
pub struct Normed<N> {
    /// Where they come from.
    pub separate: Separate,
    /// Of each head of queries.
    pub q_norm: N,
    /// Of each head of keys.
    pub k_norm: N,
}

impl<N: Norm> Projections for Normed<N> {
    fn project(&self, x: &Tensor, pass: &mut Pass<'_>) -> Result<[Tensor; 3]> {
        let [q, k, v] = self.separate.project(x, pass)?;
        Ok([self.q_norm.forward(&q)?, self.k_norm.forward(&k)?, v])
    }

    fn linears(&self) -> Vec<&Linear> {
        self.separate.linears()
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        self.separate.linears_mut()
    }
}

/// One module for all.
#[derive(Debug)]
pub struct Fused {
    module: Linear,
    head_dim: i64,
}

impl Fused {
    /// That of `name`, whose rows are those of all queries, then of all keys, then of all values.
    ///
    /// # Errors
    /// Where a tensor is missing or of another shape.
    pub fn in_turn(weights: &mut Weights, name: &str, sizes: &Sizes, bias: bool) -> Result<Self> {
        Self::new(weights, name, sizes, bias, 1, [sizes.q_width(), sizes.kv_width(), sizes.kv_width()])
    }

    /// That of `name`, whose rows are those of the first head's query, key and value, then of the second's, and so on.
    ///
    /// # Errors
    /// Where a tensor is missing or of another shape.
    pub fn by_head(weights: &mut Weights, name: &str, sizes: &Sizes, bias: bool) -> Result<Self> {
        Self::new(weights, name, sizes, bias, sizes.num_attention_heads, [sizes.head_dim(); 3])
    }

    fn new(weights: &mut Weights, name: &str, sizes: &Sizes, bias: bool, groups: i64, [q, k, v]: [i64; 3]) -> Result<Self> {
        let module = weights.linear(name, sizes.hidden_size, groups * (q + k + v), bias)?;
        Ok(Self { module: module.fused(groups, &[("q_proj", q), ("k_proj", k), ("v_proj", v)]), head_dim: sizes.head_dim() })
    }
}

impl Projections for Fused {
    fn project(&self, x: &Tensor, pass: &mut Pass<'_>) -> Result<[Tensor; 3]> {
        let [q, k, v] = self.module.split(&pass.linear(&self.module, x)?)?;
        let heads = |t: Tensor| -> Result<Tensor> { Ok(t.f_unflatten(2, [-1, self.head_dim])?.f_flatten(1, 2)?) };
        Ok([heads(q)?, heads(k)?, heads(v)?])
    }

    fn linears(&self) -> Vec<&Linear> {
        vec![&self.module]
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        vec![&mut self.module]
    }
}
