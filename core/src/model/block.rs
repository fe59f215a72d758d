//! The interface of a decoder block, and the context that a block runs in.
//!
//! A block only contains the computation. The [`Pass`] that runs the block decides which values are
//! read, adapted, intercepted or cached. Recorded states stay in the [`BlockCx`] until the pass
//! collects them, so a block can be run more than once.
//!
//! [`Pass`]: super::pass::Pass

use std::cell::RefCell;

use tch::Tensor;

use super::adapted::Adapted;
use super::attention::Scores;
use super::cache::Cache;
use super::layer_kind::View;
use super::linear::{Linear, Place};
use super::norm::Norm;
use super::pass_seed::PassSeed;
use crate::api::{Frozen, Site};
use crate::error::Result;

/// A callback that can change the output of an adapted module, module part or block. It receives
/// the output, of shape `[n out]`, and returns the new output.
pub type Intercept<'a> = &'a dyn Fn(&Site, Tensor) -> Result<Tensor>;

/// A site whose state the caller of a forward pass requested.
#[derive(Clone, Copy, Debug)]
pub struct RequestedSite<'a> {
    /// Index of the site in the list of requested sites.
    pub index: usize,
    /// The site.
    pub site: &'a Site,
}

/// The index of a block's [`LayerKind`](super::layer_kind::LayerKind) in the decoder's list of
/// layer kinds, and the block itself.
pub type Layer = (usize, Box<dyn Block>);

/// A decoder block, for example attention and an MLP with their norms.
pub trait Block: std::fmt::Debug + Send {
    /// Applies the block to the residual stream `h`, and returns the updated residual stream. Both
    /// have the shape `[n hidden]`.
    ///
    /// # Errors
    /// Fails if an adapter fails, or if memory runs out.
    fn forward(&self, h: &Tensor, cx: &BlockCx<'_>) -> Result<Tensor>;

    /// Calls `visit` with each linear module, in execution order.
    fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a Linear));
}

/// The context in which a block runs: all inputs except the residual stream and the block's
/// weights.
pub struct BlockCx<'a> {
    /// The masks and rotary tables for this kind of layer.
    pub view: &'a View,
    /// The adapter to apply; `None` to run the base model.
    pub adapted: Option<&'a Adapted>,
    /// The seed of the random numbers of a training pass. `None` outside of training, which
    /// disables dropout.
    pub train: Option<PassSeed>,
    /// Callback that may replace the outputs of adapted modules and module parts.
    pub intercept: Option<Intercept<'a>>,
    /// The cache with the keys and values of earlier tokens, and the index of the block.
    pub cache: Option<(&'a RefCell<Cache>, usize)>,
    /// The requested sites inside this block.
    pub wanted: &'a [RequestedSite<'a>],
    /// The states recorded so far, each with the [index](RequestedSite::index) of its site.
    pub states: RefCell<Vec<(usize, Tensor)>>,
}

impl BlockCx<'_> {
    /// Applies a linear module to `x`, including the adapters of the module or of its parts. `x`
    /// has the shape `[n in]`, and the result has the shape `[n out]`.
    ///
    /// # Errors
    /// Fails if an adapter fails, or if memory runs out.
    pub fn linear(&self, linear: &Linear, x: &Tensor) -> Result<Tensor> {
        let own = linear.frozen();
        let replaced = self.adapted.and_then(|a| a.replacements.linear(&linear.place.name, &own));
        let frozen = replaced.as_ref().unwrap_or(&own);
        let adapts = |place: &Place| self.adapted.is_some_and(|a| a.get(&place.name).is_some());
        let y = if linear.parts.iter().any(|part| adapts(&part.place)) {
            let parts = linear
                .parts
                .iter()
                .map(|part| self.through(&part.place, &frozen.part(part.rows)?, x));
            linear.join(&parts.collect::<Result<Vec<_>>>()?)?
        } else {
            self.through(&linear.place, frozen, x)?
        };
        self.record(&linear.place.input, || Ok(x.shallow_clone()))?;
        self.record(&linear.place.output, || Ok(y.shallow_clone()))?;
        for part in &linear.parts {
            self.record(&part.place.input, || Ok(x.shallow_clone()))?;
            self.record(&part.place.output, || part.rows.of(&y, 1))?;
        }
        Ok(y)
    }

    /// Applies a linear module or a part of a fused module to `x`, including an adapter if there is
    /// one.
    fn through(&self, place: &Place, frozen: &Frozen, x: &Tensor) -> Result<Tensor> {
        let found = self.adapted.and_then(|a| Some((a, a.get(&place.name)?)));
        let Some((adapted, adapter)) = found else { return frozen.forward(x) };
        if let Some(seed) = self.train {
            seed.start(&place.name);
        }
        let y = adapted
            .blend(|| frozen.forward(x), || adapter.forward(x, frozen, self.train.is_some()))?;
        match self.intercept {
            Some(intercept) => intercept(&place.output, y),
            None => Ok(y),
        }
    }

    /// Applies a norm to `x`, of shape `[... width]`, with the tensors that the adapter replaces.
    ///
    /// # Errors
    /// Fails if shapes do not match, or if memory runs out.
    pub fn norm(&self, norm: &Norm, x: &Tensor) -> Result<Tensor> {
        norm.forward(x, self.adapted.and_then(|a| a.replacements.module(norm.name())))
    }

    /// Applies rotary positions to the queries or keys `x`, of shape `[n heads d]`. Returns `x`
    /// unchanged if this kind of layer does not use rotary positions.
    ///
    /// # Errors
    /// Fails if shapes do not match, or if memory runs out.
    pub fn rotate(&self, x: Tensor) -> Result<Tensor> {
        match &self.view.tables {
            Some(tables) => tables.rotate(&x),
            None => Ok(x),
        }
    }

    /// Computes attention over the keys and values of the cached and the new tokens. `k` and `v`
    /// belong to the new tokens. If there is a cache, it is extended with `k` and `v`. The queries
    /// `q` have the shape `[n heads d]`, and `k` and `v` have the shape `[n kv_heads d]`. The
    /// result has the shape `[n heads·d]`.
    ///
    /// # Errors
    /// Fails if shapes do not match, or if memory runs out.
    pub fn attend(&self, q: &Tensor, k: Tensor, v: Tensor, scores: Scores) -> Result<Tensor> {
        let (k, v) = match self.cache {
            Some((cache, slot)) => cache.borrow_mut().extended(slot, &k, &v)?,
            None => (k, v),
        };
        self.view.attention.attend(q, &k, &v, scores)
    }

    /// Records the state at `site` if the caller requested it. The state has the shape `[n width]`.
    fn record(&self, site: &Site, state: impl Fn() -> Result<Tensor>) -> Result<()> {
        for wanted in self.wanted.iter().filter(|w| w.site.whole() == site) {
            self.states.borrow_mut().push((wanted.index, wanted.site.columns_of(&state()?)?));
        }
        Ok(())
    }
}
