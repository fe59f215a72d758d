//! One block of a decoder, and what it computes with.
//!
//! A block only computes. Which of its values are read, adapted, hooked or cached is decided by the
//! [`Pass`] that runs it. A block may therefore run twice: what a run records stays in its
//! [`BlockCx`] until the pass takes it.
//!
//! [`Pass`]: super::pass::Pass

use std::cell::RefCell;

use tch::Tensor;

use super::adapted::Adapted;
use super::attention::Scores;
use super::cache::Cache;
use super::layer_kind::View;
use super::linear::{Linear, Place};
use crate::api::{Frozen, Site};
use crate::error::Result;

/// Called with the output `[n out]` of each adapted module, part and block. The pass continues with
/// what it returns.
pub type Intercept<'a> = &'a dyn Fn(&Site, Tensor) -> Result<Tensor>;

/// A site that a pass reads.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Its place in the request.
    pub index: usize,
    /// The site.
    pub site: &'a Site,
}

/// A block, and the index of its kind among the decoder's.
pub type Layer = (usize, Box<dyn Block>);

/// One block of a decoder.
pub trait Block: std::fmt::Debug + Send {
    /// The residual stream `[n hidden]` after the block, from the one before it.
    ///
    /// # Errors
    /// Fails if an adapter does, or if memory runs out.
    fn forward(&self, h: &Tensor, cx: &BlockCx<'_>) -> Result<Tensor>;

    /// Calls `visit` with each linear module, in the order in which they run.
    fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a Linear));
}

/// Everything that one run of one block computes with besides the block's own weights.
pub struct BlockCx<'a> {
    /// The masks and rotations of its kind of layer.
    pub view: &'a View,
    /// The adapter; `None`: the base model.
    pub adapted: Option<&'a Adapted>,
    /// True in training, where dropout is on.
    pub train: bool,
    /// Called at the outputs of adapted modules and parts.
    pub intercept: Option<Intercept<'a>>,
    /// Keys and values of the tokens before the stream, and the block's slot among them.
    pub cache: Option<(&'a RefCell<Cache>, usize)>,
    /// The sites within the block that the pass reads.
    pub wanted: &'a [Wanted<'a>],
    /// The states at these sites, each with its place in the request.
    pub states: RefCell<Vec<(usize, Tensor)>>,
}

impl BlockCx<'_> {
    /// y `[n out]` of x `[n in]` at a linear module, through its adapter or those of its parts.
    ///
    /// # Errors
    /// Fails if an adapter does, or if memory runs out.
    pub fn linear(&self, linear: &Linear, x: &Tensor) -> Result<Tensor> {
        let frozen = linear.frozen();
        let adapts = |place: &Place| self.adapted.is_some_and(|a| a.get(&place.name).is_some());
        let y = if linear.parts.iter().any(|part| adapts(&part.place)) {
            let parts = linear
                .parts
                .iter()
                .map(|part| self.through(&part.place, &frozen.part(part.rows)?, x));
            linear.join(&parts.collect::<Result<Vec<_>>>()?)?
        } else {
            self.through(&linear.place, &frozen, x)?
        };
        self.record(&linear.place.input, || Ok(x.shallow_clone()))?;
        self.record(&linear.place.output, || Ok(y.shallow_clone()))?;
        for part in &linear.parts {
            self.record(&part.place.input, || Ok(x.shallow_clone()))?;
            self.record(&part.place.output, || part.rows.of(&y, 1))?;
        }
        Ok(y)
    }

    /// y of x at a module or a part, through its own adapter.
    fn through(&self, place: &Place, frozen: &Frozen, x: &Tensor) -> Result<Tensor> {
        let Some(adapter) = self.adapted.and_then(|a| a.get(&place.name)) else {
            return frozen.forward(x);
        };
        let y = adapter.forward(x, frozen, self.train)?;
        match self.intercept {
            Some(intercept) => intercept(&place.output, y),
            None => Ok(y),
        }
    }

    /// Queries or keys `[n heads d]`, rotated by their positions if this kind of layer rotates
    /// them.
    ///
    /// # Errors
    /// Fails if shapes do not fit, or if memory runs out.
    pub fn rotate(&self, x: Tensor) -> Result<Tensor> {
        match &self.view.tables {
            Some(tables) => tables.rotate(&x),
            None => Ok(x),
        }
    }

    /// Attention `[n heads·d]` of queries `[n heads d]` over keys and values `[n kv_heads d]` of
    /// the stream and those in the cache.
    ///
    /// # Errors
    /// Fails if shapes do not fit, or if memory runs out.
    pub fn attend(&self, q: &Tensor, k: Tensor, v: Tensor, scores: Scores) -> Result<Tensor> {
        let (k, v) = match self.cache {
            Some((cache, slot)) => cache.borrow_mut().extended(slot, &k, &v)?,
            None => (k, v),
        };
        self.view.attention.attend(q, &k, &v, scores)
    }

    /// Records a state `[n width]` if the pass reads it.
    fn record(&self, site: &Site, state: impl Fn() -> Result<Tensor>) -> Result<()> {
        for wanted in self.wanted.iter().filter(|w| w.site.whole() == site) {
            self.states.borrow_mut().push((wanted.index, wanted.site.columns_of(&state()?)?));
        }
        Ok(())
    }
}
