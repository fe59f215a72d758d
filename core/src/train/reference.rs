//! Outputs of the reference model, for methods that compare them with the policy's outputs. Small
//! outputs are computed once per pair and kept on the host.
//!
//! A run computes them before its first step, in blocks that do not depend on its batches
//! ([`Reference::prepare`]). Outputs of other pairs are computed with the first batch that contains
//! them.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use tch::{Kind, Tensor};

use super::taps::Taps;
use crate::api::{Completions, Needs, Pooling, Side, Site, States};
use crate::batch::{BatchSpec, PairBatch};
use crate::error::{Error, Result};
use crate::model::pass::Request;
use crate::model::{Adapted, Detail, FinalStates, Model};
use crate::reference::{Quantity, ReferenceCache, Usage, Values, block_spec};
use crate::text::TokenPair;
use crate::world::World;

/// The kept outputs of a pair, which are the outputs number `pair` of the batch or block that they
/// were computed with. Outputs that the method does not need are missing.
#[derive(Clone, Debug)]
struct KeptPair {
    pair: usize,
    logprobs: Option<Arc<Values>>,
    /// Pooled states at each tap, before the transform.
    taps: Rc<[Arc<Values>]>,
}

impl KeptPair {
    /// The outputs of all pairs of a batch or block, in their order.
    fn of_batch(
        logprobs: Option<Arc<Values>>,
        taps: Vec<Arc<Values>>,
    ) -> impl Iterator<Item = Self> {
        let taps: Rc<[Arc<Values>]> = taps.into();
        let kept = move |pair| Self { pair, logprobs: logprobs.clone(), taps: Rc::clone(&taps) };
        (0..).map(kept)
    }
}

/// The reference model and its kept outputs. The keys of the map are the indices of the pairs.
#[derive(Debug, Default)]
pub struct Reference {
    adapted: Option<Rc<Adapted>>,
    cache: ReferenceCache,
    kept: BTreeMap<usize, KeptPair>,
    /// Outputs that replace the kept ones while the policy equals the reference.
    of_equal_policy: Option<BTreeMap<usize, KeptPair>>,
}

/// The reference's outputs for one batch, except for kept outputs. Outputs that the method does
/// not need are empty.
#[derive(Debug, Default)]
pub struct ReferenceValues {
    /// States of all tokens at each tap, each `[n w]`. Empty if the pooled states are sufficient.
    pub states: Vec<Tensor>,
    /// States of all tokens at each input and output of an adapted module, each `[n w]`.
    pub at_modules: Vec<Tensor>,
    /// log p of each token in the chosen sequences, `[m]`, including the tokens of the prompts.
    pub own_logprobs: Option<Tensor>,
    /// Final hidden states, `[n hidden]`, if the method needs the divergence from the reference.
    pub hidden: Option<FinalStates>,
}

/// A pass of the reference over a batch that cannot be replaced by kept outputs.
pub(super) struct Due {
    /// True if the outputs of some pairs must be kept.
    pub new: bool,
    /// True if the method reads states that are too large to be kept.
    pub live: bool,
    /// True if the pass must reach the final hidden state.
    pub hidden: bool,
    /// Number of sites that belong to taps; they come first.
    pub taps: usize,
    /// The sites to read.
    pub sites: Vec<Site>,
}

impl Reference {
    /// Creates a reference: the base model with the adapter `adapted`, or without an adapter if
    /// `adapted` is `None`. `cache` is the cache of this reference.
    pub fn new(adapted: Option<Rc<Adapted>>, cache: ReferenceCache) -> Self {
        Self { adapted, cache, kept: BTreeMap::new(), of_equal_policy: None }
    }

    /// Sets whether the policy equals the reference, as before its first update. Until then, the
    /// reference runs on each batch of the policy, so that their outputs are bitwise equal. With
    /// the kept outputs, the difference would be a rounding error. Its direction is random, and a
    /// loss with the length of the difference would follow this direction.
    pub fn set_equals_policy(&mut self, equal: bool) {
        self.of_equal_policy = equal.then(BTreeMap::new);
    }

    /// The outputs that are kept for a method with these needs.
    pub(super) fn quantities(needs: &Needs, taps: &Taps) -> Vec<Quantity> {
        let logprobs = needs.reference_logprobs.then_some(Quantity::Logprobs);
        let keeps_states = needs.reference_states && !is_live(needs, taps);
        let states = |site: &Site| Quantity::State(site.clone(), taps.pooling);
        let sites = taps.sites.iter().filter(|_| keeps_states).map(states);
        logprobs.into_iter().chain(sites).collect()
    }

    /// Reads the kept outputs of all pairs of a block from the cache. Computes those that are not
    /// cached.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn prepare(
        &mut self,
        model: &Model,
        block: &[&TokenPair],
        needs: &Needs,
        taps: &Taps,
    ) -> Result<()> {
        let quantities = Self::quantities(needs, taps);
        if quantities.is_empty() {
            return Ok(());
        }
        let adapted = self.adapted.as_deref();
        let mut values = self.cache.values(model, adapted, block, &quantities)?;
        let logprobs = needs.reference_logprobs.then(|| values.remove(0));
        let indices = block.iter().map(|pair| pair.index);
        self.kept.extend(indices.zip(KeptPair::of_batch(logprobs, values)));
        Ok(())
    }

    /// Exchanges the kept outputs of a round of blocks. Block `i` was prepared by rank `i`.
    ///
    /// # Errors
    /// Fails if another rank has ended.
    pub fn exchange(
        &mut self,
        world: &World,
        round: &[&[&TokenPair]],
        needs: &Needs,
        taps: &Taps,
    ) -> Result<()> {
        let quantities = Self::quantities(needs, taps);
        if world.size() == 1 || quantities.is_empty() {
            return Ok(());
        }
        let mut bytes = Vec::new();
        if let Some(block) = round.get(world.rank()) {
            let kept = self.of(block[0].index)?;
            kept.logprobs
                .iter()
                .chain(kept.taps.iter())
                .for_each(|values| values.write(&mut bytes));
        }
        let all = world.gather_bytes(&bytes)?;
        for (rank, (block, bytes)) in round.iter().zip(&all).enumerate() {
            if rank == world.rank() {
                continue;
            }
            let mut bytes = &bytes[..];
            let mut values = quantities
                .iter()
                .map(|quantity| Values::read(&mut bytes, quantity, block).map(Arc::new))
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| Error::internal("a rank sent values of other pairs"))?;
            let logprobs = needs.reference_logprobs.then(|| values.remove(0));
            let indices = block.iter().map(|pair| pair.index);
            self.kept.extend(indices.zip(KeptPair::of_batch(logprobs, values)));
        }
        Ok(())
    }

    /// The numbers of pairs whose outputs were computed or found in the cache by
    /// [`prepare`](Self::prepare).
    pub fn usage(&self) -> Usage {
        self.cache.usage()
    }

    /// The layout of a block's batch.
    pub(super) fn block_spec(&self) -> BatchSpec {
        block_spec(self.adapted.as_deref())
    }

    /// Number of bytes of the kept outputs.
    pub fn bytes(&self) -> usize {
        let mut all = BTreeMap::new();
        for kept in self.kept.values() {
            for values in kept.logprobs.iter().chain(kept.taps.iter()) {
                all.insert(Arc::as_ptr(values), values.bytes());
            }
        }
        all.into_values().sum()
    }

    /// Runs the reference on the batch, unless everything that the method needs is kept.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn observe(
        &mut self,
        model: &Model,
        batch: &PairBatch,
        needs: &Needs,
        taps: &Taps,
        modules: &[Site],
    ) -> Result<ReferenceValues> {
        let Some(Due { new, live, hidden, taps: tapped, sites }) =
            self.due(batch, needs, taps, modules)
        else {
            return Ok(ReferenceValues::default());
        };
        let _guard = tch::no_grad_guard();
        let mut reached = model.forward(
            &batch.stream,
            Request {
                adapted: self.adapted.as_deref(),
                sites: &sites,
                hidden,
                ..Request::default()
            },
        )?;
        let at_modules = reached.states.split_off(tapped);
        if new {
            let logprobs = match &reached.hidden {
                Some(hidden) if needs.reference_logprobs => {
                    let scores =
                        model.score_tokens(hidden, &batch.predicted, Detail::NONE, None)?;
                    let values = Values::of_logprobs(batch, &scores.logprobs, needs.logprobs)?;
                    Some(Arc::new(values))
                }
                _ => None,
            };
            let states = if live { &[] } else { &reached.states[..] };
            let pooled = states
                .iter()
                .map(|state| Values::of_states(batch, state, taps.pooling, needs.states_of()))
                .map(|values| values.map(Arc::new))
                .collect::<Result<_>>()?;
            let outputs = batch.indices.iter().copied().zip(KeptPair::of_batch(logprobs, pooled));
            self.of_equal_policy.as_mut().unwrap_or(&mut self.kept).extend(outputs);
        }
        let own_logprobs = match (&reached.hidden, needs.sequence_nll) {
            (Some(hidden), true) => {
                let rows = batch.rows(Pooling::All, Side::Chosen)?;
                let own = batch.own_tokens(&rows)?;
                Some(model.score_tokens(hidden, &own, Detail::NONE, None)?.logprobs)
            }
            _ => None,
        };
        let states = if live { reached.states } else { Vec::new() };
        Ok(ReferenceValues {
            states,
            at_modules,
            own_logprobs,
            hidden: reached.hidden.filter(|_| needs.reference_kl),
        })
    }

    /// Returns the pass that [`observe`](Self::observe) would run on the batch. Returns `None` if
    /// everything that the method needs is kept.
    pub(super) fn due(
        &self,
        batch: &PairBatch,
        needs: &Needs,
        taps: &Taps,
        modules: &[Site],
    ) -> Option<Due> {
        let live = is_live(needs, taps);
        let keeps = needs.reference_logprobs || (needs.reference_states && !live);
        let is_kept = |i| self.of_equal_policy.is_none() && self.kept.contains_key(i);
        let new = keeps && !batch.indices.iter().all(is_kept);
        if !(new || live || !modules.is_empty() || needs.sequence_nll || needs.reference_kl) {
            return None;
        }
        let tap_sites: &[Site] = if needs.reference_states { &taps.sites } else { &[] };
        Some(Due {
            new,
            live,
            hidden: (new && needs.reference_logprobs) || needs.sequence_nll || needs.reference_kl,
            taps: tap_sites.len(),
            sites: tap_sites.iter().chain(modules).cloned().collect(),
        })
    }

    /// Removes all kept outputs, so that they are computed again.
    pub fn clear(&mut self) {
        self.kept.clear();
    }

    fn of(&self, index: usize) -> Result<&KeptPair> {
        self.of_equal_policy.as_ref().unwrap_or(&self.kept).get(&index).ok_or_else(|| {
            Error::internal(format!("the reference was not evaluated on pair {index}"))
        })
    }

    /// Returns the kept pooled states of one side at a tap, before the transform. The result has
    /// shape `[b w]`.
    ///
    /// # Errors
    /// Fails if the outputs of a pair in the batch are not kept.
    pub fn pooled(
        &self,
        tap: usize,
        batch: &PairBatch,
        side: Side,
        model: &Model,
    ) -> Result<Tensor> {
        let mut bytes = Vec::new();
        for index in &batch.indices {
            let kept = self.of(*index)?;
            let values = kept.taps.get(tap).ok_or_else(|| {
                Error::internal(format!("the reference's states at tap {tap} are not kept"))
            })?;
            bytes.extend_from_slice(values.row(kept.pair, side)?);
        }
        let width = bytes.len() / batch.len() / batch.kind().elt_size_in_bytes();
        let rows =
            Tensor::f_from_data_size(&bytes, &[batch.len() as i64, width as i64], batch.kind())?;
        Ok(rows.f_to_device(model.device())?)
    }

    /// Returns the kept log-probabilities of the scored tokens in the batch, in the same order as
    /// the policy's log-probabilities. `sides` are the scored sides of the batch. The result has
    /// shape `[m]`.
    ///
    /// # Errors
    /// Fails if the outputs of a pair in the batch are not kept.
    pub fn logprobs(&self, batch: &PairBatch, sides: Completions, model: &Model) -> Result<Tensor> {
        let n = batch.predicted.ids.size()[0];
        let mut all: Option<(Kind, Vec<u8>)> = None;
        for (i, index) in batch.indices.iter().enumerate() {
            let kept = self.of(*index)?;
            let values = kept
                .logprobs
                .as_ref()
                .ok_or_else(|| Error::internal("the reference's log-probabilities are not kept"))?;
            let (kind, size) = (values.kind(), values.kind().elt_size_in_bytes());
            let (_, all) = all.get_or_insert_with(|| (kind, vec![0; n as usize * size]));
            for side in sides.sides() {
                let row = values.row(kept.pair, side)?.chunks_exact(size);
                for (at, value) in batch.scored(i, side)?.iter().zip(row) {
                    let at = *at as usize * size;
                    all[at..at + size].copy_from_slice(value);
                }
            }
        }
        let (kind, bytes) = all.unwrap_or((batch.kind(), Vec::new()));
        Ok(Tensor::f_from_data_size(&bytes, &[n], kind)?.f_to_device(model.device())?)
    }
}

/// True if the method reads states of the reference that are too large to be kept.
fn is_live(needs: &Needs, taps: &Taps) -> bool {
    needs.reference_states && (needs.states == States::PerToken || !taps.pool_first())
}
