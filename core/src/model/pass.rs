//! One run through the model: which adapter is on, what is read on the way, and how far it goes.

use std::cell::RefCell;
use std::collections::HashMap;

use tch::Tensor;

use super::adapted::Adapted;
use super::cache::Cache;
use super::linear::{Linear, Place};
use super::stream::Stream;
use crate::api::{Frozen, PromptPlaces, Site};
use crate::error::{Error, Result};

/// Sees the output `[n out]` of every adapted module, part and block on its way, and gives what the pass goes on with.
pub type Intercept<'a> = &'a dyn Fn(&Site, Tensor) -> Result<Tensor>;

/// What a pass is asked for.
#[derive(Default)]
pub struct Request<'a> {
    /// The adapter; `None`: the base model.
    pub adapted: Option<&'a Adapted>,
    /// Whether dropout is on.
    pub train: bool,
    /// Places to read.
    pub sites: &'a [Site],
    /// Whether the last hidden state is wanted, for log-probabilities.
    pub hidden: bool,
    /// Called at the outputs of what the adapter changes.
    pub intercept: Option<Intercept<'a>>,
    /// Keys and values of the tokens before the stream, which gets those of the stream as well.
    pub cache: Option<&'a RefCell<Cache>>,
}

/// What a pass brings back.
#[derive(Debug)]
pub struct Reached {
    /// One tensor a requested site, in the order of the request, `[n width]`.
    pub states: Vec<Tensor>,
    /// The last hidden state after the final norm `[n hidden]`, where it was asked for.
    pub hidden: Option<Tensor>,
}

/// A pass under way. An architecture sends every linear module and every state of the residual stream through it.
pub struct Pass<'a> {
    request: Request<'a>,
    /// Where each site's state is put; a site may be asked for more than once.
    wanted: HashMap<&'a Site, Vec<usize>>,
    found: Vec<Option<Tensor>>,
    hidden: Option<Tensor>,
    places: Option<PromptPlaces>,
    blocks: usize,
    layers: usize,
    /// Attentions so far, which is the layer of the next in a cache.
    attentions: usize,
}

impl<'a> Pass<'a> {
    /// A pass that runs the first `blocks` of `layers` blocks over `stream`.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn new(request: Request<'a>, stream: &Stream, blocks: usize, layers: usize) -> Result<Self> {
        let mut wanted = HashMap::<_, Vec<_>>::new();
        for (i, site) in request.sites.iter().enumerate() {
            wanted.entry(site).or_default().push(i);
        }
        let found = request.sites.iter().map(|_| None).collect();
        let places = if request.adapted.is_some_and(Adapted::changes_blocks) { Some(stream.prompt_places()?) } else { None };
        Ok(Self { request, wanted, found, hidden: None, places, blocks, layers, attentions: 0 })
    }

    /// How many blocks to run.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Whether the final norm has to run: for the head, or because the last hidden state is read.
    pub fn wants_norm(&self) -> bool {
        self.request.hidden || self.wanted.contains_key(&Site::Residual(self.layers))
    }

    fn report(&mut self, site: &Site, h: &Tensor) {
        for i in self.wanted.get(site).into_iter().flatten() {
            self.found[*i] = Some(h.shallow_clone());
        }
    }

    /// Reports the residual stream `[n hidden]` as hidden state `k` in transformers' count.
    pub fn residual(&mut self, k: usize, h: &Tensor) {
        self.report(&Site::Residual(k), h);
    }

    /// The output `[n hidden]` of block `k` as the next one is to read it, through its adapter where one is on.
    ///
    /// # Errors
    /// What the adapter says.
    pub fn block(&mut self, k: usize, h: Tensor) -> Result<Tensor> {
        let site = Site::Block(k);
        let Some((adapter, places)) = self.request.adapted.and_then(|a| a.block(k)).zip(self.places.as_ref()) else {
            self.report(&site, &h);
            return Ok(h);
        };
        let h = self.intercepted(&site, adapter.forward(&h, places)?)?;
        self.report(&site, &h);
        Ok(h)
    }

    /// Reports the state after the final norm.
    pub fn finish(&mut self, h: &Tensor) {
        self.residual(self.layers, h);
        if self.request.hidden {
            self.hidden = Some(h.shallow_clone());
        }
    }

    /// y of x `[n in]` at a linear module, through its adapter, or those of its parts, where there are any.
    ///
    /// # Errors
    /// What the adapter says.
    pub fn linear(&mut self, linear: &Linear, x: &Tensor) -> Result<Tensor> {
        let adapts = |place: &Place| self.request.adapted.is_some_and(|a| a.get(&place.name).is_some());
        let y = if linear.parts.iter().any(|part| adapts(&part.place)) {
            let parts = linear.parts.iter().map(|part| self.through(&part.place, &linear.frozen.part(part.rows)?, x));
            linear.join(&parts.collect::<Result<Vec<_>>>()?)?
        } else {
            self.through(&linear.place, &linear.frozen, x)?
        };
        self.report(&linear.place.input, x);
        self.report(&linear.place.output, &y);
        for part in &linear.parts {
            self.report(&part.place.input, x);
            if self.wanted.contains_key(&part.place.output) {
                self.report(&part.place.output, &part.rows.of(&y, 1)?);
            }
        }
        Ok(y)
    }

    /// y of x at a module or a part, through the adapter that it has itself.
    fn through(&self, place: &Place, frozen: &Frozen, x: &Tensor) -> Result<Tensor> {
        match self.request.adapted.and_then(|a| a.get(&place.name)) {
            Some(adapter) => self.intercepted(&place.output, adapter.forward(x, frozen, self.request.train)?),
            None => frozen.forward(x),
        }
    }

    /// Keys and values `[n kv_heads d]` of the stream at its next attention, with those that a cache holds before them.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn remember(&mut self, k: Tensor, v: Tensor) -> Result<(Tensor, Tensor)> {
        let Some(cache) = self.request.cache else { return Ok((k, v)) };
        self.attentions += 1;
        cache.borrow_mut().extend(self.attentions - 1, &k, &v)
    }

    fn intercepted(&self, site: &Site, y: Tensor) -> Result<Tensor> {
        match self.request.intercept {
            Some(intercept) => intercept(site, y),
            None => Ok(y),
        }
    }

    /// What was asked for.
    ///
    /// # Errors
    /// A site that the pass did not come by.
    pub fn reached(self) -> Result<Reached> {
        let states = self
            .found
            .into_iter()
            .zip(self.request.sites)
            .map(|(t, site)| t.ok_or_else(|| Error::internal(format!("the pass did not reach `{site}`"))))
            .collect::<Result<_>>()?;
        Ok(Reached { states, hidden: self.hidden })
    }
}
