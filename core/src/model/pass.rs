//! One run through the model: which adapter is on, what is read on the way, and how far it goes.

use std::cell::RefCell;

use tch::Tensor;

use super::adapted::Adapted;
use super::block::{Block, BlockCx, Intercept, Wanted};
use super::cache::Cache;
use super::layer_kind::View;
use super::stream::Stream;
use crate::api::{ModelInfo, PromptPlaces, Site};
use crate::error::{Error, Result};

/// A request to a pass.
#[derive(Default)]
pub struct Request<'a> {
    /// The adapter; `None`: the base model.
    pub adapted: Option<&'a Adapted>,
    /// True in training, where dropout is on.
    pub train: bool,
    /// Places to read.
    pub sites: &'a [Site],
    /// True if the last hidden state is wanted, for log-probabilities.
    pub hidden: bool,
    /// Called at the outputs of what the adapter changes.
    pub intercept: Option<Intercept<'a>>,
    /// Keys and values of the tokens before the stream. Those of the stream are added to it.
    pub cache: Option<&'a RefCell<Cache>>,
}

/// The result of a pass.
#[derive(Debug)]
pub struct Reached {
    /// The state at each requested site `[n width]`, in the order of the request.
    pub states: Vec<Tensor>,
    /// The last hidden state after the final norm `[n hidden]`, if the request asked for it.
    pub hidden: Option<Tensor>,
}

/// A pass in progress. It runs the blocks, and decides everything that happens around one.
pub struct Pass<'a> {
    request: Request<'a>,
    /// The sites within each block that is run.
    within: Vec<Vec<Wanted<'a>>>,
    /// The sites between blocks.
    between: Vec<Wanted<'a>>,
    found: Vec<Option<Tensor>>,
    hidden: Option<Tensor>,
    places: Option<PromptPlaces>,
    layers: usize,
    tokens: usize,
}

impl<'a> Pass<'a> {
    /// A pass over `stream` that runs the first `blocks` blocks of a model.
    ///
    /// # Errors
    /// Fails if the model does not have a site, or if memory runs out.
    pub fn new(
        request: Request<'a>,
        stream: &Stream,
        blocks: usize,
        info: &ModelInfo,
    ) -> Result<Self> {
        let (mut within, mut between) = (vec![Vec::new(); blocks], Vec::new());
        for (index, site) in request.sites.iter().enumerate() {
            let wanted = Wanted { index, site };
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

    /// How many blocks to run.
    pub fn blocks(&self) -> usize {
        self.within.len()
    }

    /// The residual stream `[n hidden]` after block `k`, from the one before it.
    ///
    /// # Errors
    /// Fails if an adapter does, or if memory runs out.
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

    /// True if the final norm must run: for the head, or because the last hidden state is read.
    pub fn wants_norm(&self) -> bool {
        self.request.hidden
            || self.between.iter().any(|w| *w.site.whole() == Site::Residual(self.layers))
    }

    /// Ends the pass after the blocks it was asked for, at the residual stream `h` `[n hidden]`,
    /// which has passed the final norm if all blocks have run.
    ///
    /// # Errors
    /// Fails if a requested site was not reached.
    pub fn finish(mut self, h: &Tensor) -> Result<Reached> {
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
        Ok(Reached { states: states.collect::<Result<_>>()?, hidden: self.hidden })
    }

    fn report(&mut self, site: &Site, h: &Tensor) -> Result<()> {
        for wanted in self.between.iter().filter(|w| w.site.whole() == site) {
            self.found[wanted.index] = Some(wanted.site.columns_of(h)?);
        }
        Ok(())
    }
}
