//! One run through the model: which adapter is on, what is read on the way, and how far it goes.

use std::collections::HashMap;

use tch::Tensor;

use super::adapted::Adapted;
use crate::api::{Frozen, Site};
use crate::error::{Error, Result};

/// A linear module of the frozen model, which knows its own name.
#[derive(Debug)]
pub struct Linear {
    /// Its name in PyTorch's state dict without `.weight`.
    pub name: String,
    /// Its weights.
    pub frozen: Frozen,
}

/// What a pass is asked for.
#[derive(Debug, Default)]
pub struct Request<'a> {
    /// The adapter; `None`: the base model.
    pub adapted: Option<&'a Adapted>,
    /// Whether dropout is on.
    pub train: bool,
    /// Places to read.
    pub sites: &'a [Site],
    /// Whether the last hidden state is wanted, for log-probabilities.
    pub hidden: bool,
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
#[derive(Debug)]
pub struct Pass<'a> {
    request: Request<'a>,
    inputs: HashMap<&'a str, usize>,
    outputs: HashMap<&'a str, usize>,
    residuals: HashMap<usize, usize>,
    found: Vec<Option<Tensor>>,
    hidden: Option<Tensor>,
    blocks: usize,
    layers: usize,
}

impl<'a> Pass<'a> {
    /// A pass that runs the first `blocks` of `layers` blocks.
    pub fn new(request: Request<'a>, blocks: usize, layers: usize) -> Self {
        let (mut inputs, mut outputs, mut residuals) = (HashMap::new(), HashMap::new(), HashMap::new());
        for (i, site) in request.sites.iter().enumerate() {
            match site {
                Site::Input(name) => drop(inputs.insert(name.as_str(), i)),
                Site::Output(name) => drop(outputs.insert(name.as_str(), i)),
                Site::Residual(k) => drop(residuals.insert(*k, i)),
            }
        }
        let found = request.sites.iter().map(|_| None).collect();
        Self { request, inputs, outputs, residuals, found, hidden: None, blocks, layers }
    }

    /// How many blocks to run.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Whether the final norm has to run: for the head, or because the last hidden state is read.
    pub fn wants_norm(&self) -> bool {
        self.request.hidden || self.residuals.contains_key(&self.layers)
    }

    /// Reports the residual stream `[n hidden]` as hidden state `k` in transformers' count.
    pub fn residual(&mut self, k: usize, h: &Tensor) {
        if let Some(i) = self.residuals.get(&k) {
            self.found[*i] = Some(h.shallow_clone());
        }
    }

    /// Reports the state after the final norm.
    pub fn finish(&mut self, h: &Tensor) {
        self.residual(self.layers, h);
        if self.request.hidden {
            self.hidden = Some(h.shallow_clone());
        }
    }

    /// y of x `[n in]` at a linear module, through its adapter where one is on.
    ///
    /// # Errors
    /// What the adapter says.
    pub fn linear(&mut self, linear: &Linear, x: &Tensor) -> Result<Tensor> {
        if let Some(i) = self.inputs.get(linear.name.as_str()) {
            self.found[*i] = Some(x.shallow_clone());
        }
        let y = match self.request.adapted.and_then(|a| a.get(&linear.name)) {
            Some(adapter) => adapter.forward(x, &linear.frozen, self.request.train)?,
            None => linear.frozen.forward(x)?,
        };
        if let Some(i) = self.outputs.get(linear.name.as_str()) {
            self.found[*i] = Some(y.shallow_clone());
        }
        Ok(y)
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
