//! A forward pass through the model. It runs only the blocks that are needed, applies an adapter,
//! and records the states at the requested sites.

use std::cell::RefCell;

use tch::Tensor;

use super::adapted::Adapted;
use super::block::{Block, BlockCx, Intercept, RequestedSite};
use super::cache::Cache;
use super::layer_kind::View;
use super::pass_seed::PassSeed;
use super::stream::Stream;
use crate::api::{ModelInfo, PromptPlaces, Site};
use crate::error::{Error, Result};

/// Options of a forward pass, including which values it returns.
#[derive(Default)]
pub struct Request<'a> {
    /// The adapter to apply; `None` to run the base model.
    pub adapted: Option<&'a Adapted>,
    /// The seed of the random numbers of a training pass, such as dropout masks. `None` outside of
    /// training, which disables dropout.
    pub train: Option<PassSeed>,
    /// Sites whose states are returned.
    pub sites: &'a [Site],
    /// True if the final hidden state must be returned, for example to compute log-probabilities.
    pub hidden: bool,
    /// Called with the output of each adapted module, part and block; see `Intercept`.
    pub intercept: Option<Intercept<'a>>,
    /// Keys and values of the tokens before the stream. The pass appends the keys and values of the
    /// stream to this cache.
    pub cache: Option<&'a RefCell<Cache>>,
}

/// The result of a pass.
#[derive(Debug)]
pub struct PassOutput {
    /// The state at each requested site, `[n width]`, in the order of the request.
    pub states: Vec<Tensor>,
    /// The hidden state after the final norm, `[n hidden]`, if it was requested.
    pub hidden: Option<Tensor>,
}

/// A pass in progress. It runs the blocks, applies block adapters, collects the states at the
/// requested sites, and passes the cache to each block.
pub struct Pass<'a> {
    request: Request<'a>,
    /// For each block to run, the requested sites inside it.
    within: Vec<Vec<RequestedSite<'a>>>,
    /// The requested sites on the residual stream, between blocks.
    between: Vec<RequestedSite<'a>>,
    found: Vec<Option<Tensor>>,
    hidden: Option<Tensor>,
    places: Option<PromptPlaces>,
    layers: usize,
    tokens: usize,
}

impl<'a> Pass<'a> {
    /// Prepares a pass over `stream` that runs the first `blocks` blocks of the model.
    ///
    /// # Errors
    /// Fails if the model does not have a requested site, or if memory runs out.
    pub fn new(
        request: Request<'a>,
        stream: &Stream,
        blocks: usize,
        info: &ModelInfo,
    ) -> Result<Self> {
        let (mut within, mut between) = (vec![Vec::new(); blocks], Vec::new());
        for (index, site) in request.sites.iter().enumerate() {
            let wanted = RequestedSite { index, site };
            match (site.whole(), info.block(site)?) {
                (Site::Input(_) | Site::Output(_), Some(block)) => within[block].push(wanted),
                _ => between.push(wanted),
            }
        }
        let found = request.sites.iter().map(|_| None).collect();
        let places = if request.adapted.is_some_and(Adapted::changes_blocks) {
            Some(stream.prompt_places()?)
        } else {
            None
        };
        Ok(Self {
            request,
            within,
            between,
            found,
            hidden: None,
            places,
            layers: info.layers,
            tokens: stream.layout.tokens(),
        })
    }

    /// The number of blocks to run.
    pub fn blocks(&self) -> usize {
        self.within.len()
    }

    /// Runs block `k` on the residual stream `h` `[n hidden]`, and returns the residual stream
    /// after it.
    ///
    /// # Errors
    /// Fails if an adapter fails, or if memory runs out.
    pub fn block(
        &mut self,
        k: usize,
        block: &dyn Block,
        h: &Tensor,
        view: &View,
    ) -> Result<Tensor> {
        self.report(&Site::Residual(k), h)?;
        let Request { adapted, train, intercept, cache, .. } = self.request;
        let cache = cache.map(|cache| (cache, k));
        let cx = BlockCx {
            view,
            adapted,
            train,
            intercept,
            cache,
            wanted: &self.within[k],
            states: RefCell::default(),
        };
        let h = block.forward(h, &cx)?;
        for (index, state) in cx.states.into_inner() {
            self.found[index] = Some(state);
        }
        let site = Site::Block(k);
        let h = match adapted.and_then(|a| a.block(k)).zip(self.places.as_ref()) {
            Some((adapter, places)) => {
                let h = adapter.forward(&h, places)?;
                if let Some(intercept) = intercept { intercept(&site, h)? } else { h }
            }
            None => h,
        };
        self.report(&site, &h)?;
        Ok(h)
    }

    /// True if the final norm must run, either for the output head or because its output is a
    /// requested site.
    pub fn wants_norm(&self) -> bool {
        self.request.hidden
            || self.between.iter().any(|w| *w.site.whole() == Site::Residual(self.layers))
    }

    /// Ends the pass. `h` `[n hidden]` is the residual stream after the last block to run, or the
    /// output of the final norm if the norm also ran.
    ///
    /// # Errors
    /// Fails if a requested site was not reached.
    pub fn finish(mut self, h: &Tensor) -> Result<PassOutput> {
        self.report(&Site::Residual(self.blocks()), h)?;
        if self.request.hidden {
            self.hidden = Some(h.shallow_clone());
        }
        if let Some(cache) = self.request.cache {
            cache.borrow_mut().advance(self.tokens);
        }
        let reached = self.found.into_iter().zip(self.request.sites);
        let states = reached.map(|(t, site)| {
            t.ok_or_else(|| Error::internal(format!("the pass did not reach `{site}`")))
        });
        Ok(PassOutput { states: states.collect::<Result<_>>()?, hidden: self.hidden })
    }

    fn report(&mut self, site: &Site, h: &Tensor) -> Result<()> {
        for wanted in self.between.iter().filter(|w| w.site.whole() == site) {
            self.found[wanted.index] = Some(wanted.site.columns_of(h)?);
        }
        Ok(())
    }
}
