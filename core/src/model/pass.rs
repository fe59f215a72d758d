//! A forward pass through the model. It runs only the blocks that are needed, applies an adapter,
//! and records the states at the requested sites.

use std::cell::RefCell;

use tch::Tensor;

use super::adapted::Adapted;
use super::block::{Block, BlockCx, Intercept, RequestedSite};
use super::cache::Cache;
use super::checkpointing::{BlockRun, SavedBlock, SavedBlocks, gradient};
use super::head::FinalStates;
use super::layer_kind::View;
use super::pass_seed::PassSeed;
use super::replacements::Replacements;
use super::stream::Stream;
use crate::api::{ModelInfo, PromptPlaces, Site};
use crate::error::{Error, Result};
use crate::ffi;

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
    /// True to keep only the inputs of the blocks for the backward pass. The caller must then call
    /// [`Model::backward`](super::Model::backward), which runs the blocks again.
    pub checkpointing: bool,
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
    pub hidden: Option<FinalStates>,
    /// The blocks that must run again in the backward pass, if the request has
    /// [`checkpointing`](Request::checkpointing).
    pub saved: Option<SavedBlocks>,
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
    saved: Option<SavedBlocks>,
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
        let saved = request.checkpointing.then(SavedBlocks::default);
        Ok(Self {
            request,
            within,
            between,
            found,
            hidden: None,
            saved,
            places,
            layers: info.layers,
            tokens: stream.layout.tokens(),
        })
    }

    /// The tensors that the adapter of this pass replaces.
    pub fn replacements(&self) -> Option<&'a Replacements> {
        self.request.adapted.map(|adapted| &*adapted.replacements)
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
        let mut run = self.run(k, block, h, view)?;
        if let Some(saved) = &mut self.saved
            && run.requires_grad()
        {
            // The graph of the block is dropped together with the outputs that are not detached.
            let (block, detached) = SavedBlock::detach(k, h, &run)?;
            saved.blocks.push(block);
            run = detached;
        }
        self.keep(run.states);
        Ok(run.h)
    }

    /// Runs a block again and continues the backward pass through it. `above` is the gradient of
    /// its output, including the part that comes from the loss directly; `None` if the block above
    /// did not compute it. Returns the gradient of its input.
    ///
    /// # Errors
    /// Fails if an adapter fails, or if memory runs out.
    pub fn backward(
        &self,
        saved: &SavedBlock,
        above: Option<Tensor>,
        block: &dyn Block,
        view: &View,
    ) -> Result<Option<Tensor>> {
        let at_output = above.or_else(|| saved.output_gradient());
        if at_output.is_none() && !saved.has_state_gradients() {
            return Ok(None);
        }
        let requires_grad = saved.input.requires_grad();
        let h = saved.input.f_detach()?.set_requires_grad(requires_grad);
        let run = self.run(saved.block, block, &h, view)?;
        ffi::backward(&saved.roots(&run, &h, at_output))?;
        Ok(gradient(&h))
    }

    /// Reads the residual stream `h` before block `k`, and runs the block with its adapters.
    fn run(&self, k: usize, block: &dyn Block, h: &Tensor, view: &View) -> Result<BlockRun> {
        let mut states = Vec::new();
        if let Some(before) = k.checked_sub(1) {
            states.extend(self.between(&Site::Block(before), h)?);
        }
        states.extend(self.between(&Site::Residual(k), h)?);
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
        states.extend(cx.states.into_inner());
        let found = adapted.and_then(|a| Some((a, a.block(k)?)));
        let h = match found.zip(self.places.as_ref()) {
            Some(((adapted, adapter), places)) => {
                let site = Site::Block(k);
                if let Some(seed) = train {
                    seed.start(&site.to_string());
                }
                let h = adapted.blend(|| Ok(h.shallow_clone()), || adapter.forward(&h, places))?;
                match intercept {
                    Some(intercept) => intercept(&site, h)?,
                    None => h,
                }
            }
            None => h,
        };
        let h = match adapted {
            Some(adapted) => adapted.edited(k, h, train.is_some())?,
            None => h,
        };
        Ok(BlockRun { h, states })
    }

    /// Reads the output `h` of the last block, before the final norm.
    ///
    /// # Errors
    /// Fails if a site has columns that the residual stream lacks.
    pub fn after_blocks(&mut self, h: &Tensor) -> Result<()> {
        if let Some(last) = self.blocks().checked_sub(1) {
            let states = self.between(&Site::Block(last), h)?;
            self.keep(states);
        }
        Ok(())
    }

    /// True if the final norm must run, for the final hidden state or for a requested site.
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
        let states = self.between(&Site::Residual(self.blocks()), h)?;
        self.keep(states);
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
        let states = states.collect::<Result<_>>()?;
        let hidden = self.hidden.map(FinalStates::of_base);
        Ok(PassOutput { states, hidden, saved: self.saved })
    }

    /// The states at the requested sites whose whole site is `site`, where the residual stream is
    /// `h`, each with the index of its site.
    fn between(&self, site: &Site, h: &Tensor) -> Result<Vec<(usize, Tensor)>> {
        let wanted = self.between.iter().filter(|wanted| wanted.site.whole() == site);
        wanted.map(|wanted| Ok((wanted.index, wanted.site.columns_of(h)?))).collect()
    }

    fn keep(&mut self, states: Vec<(usize, Tensor)>) {
        for (index, state) in states {
            self.found[index] = Some(state);
        }
    }
}
