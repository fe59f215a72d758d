//! Computes the outputs of the reference model. Small outputs are computed once per pair and
//! cached.

use std::collections::BTreeMap;
use std::rc::Rc;

use indexmap::IndexMap;
use tch::{Device, Tensor};

use super::taps::Taps;
use crate::api::{Needs, Pooling, Side, Sides, Site, States};
use crate::batch::PairBatch;
use crate::error::{Error, Result};
use crate::model::pass::Request;
use crate::model::{Adapted, Detail, Model};

/// The cached outputs for one pair, a few kilobytes in total. Outputs that the method does not need
/// are empty tensors.
#[derive(Debug)]
struct KeptPair {
    /// Log-probabilities of the tokens of each completion. Each tensor is `[m]`.
    logprobs: Sides,
    /// Pooled states at each tap, before the transform. Each tensor is `[w]`.
    taps: Vec<Sides>,
}

impl KeptPair {
    /// The tensors in the order in which a checkpoint numbers them.
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.logprobs)
            .chain(&self.taps)
            .flat_map(|sides| sides.as_ref().into_iter().map(|(_, value)| value))
    }

    /// Restores the outputs from the tensors of a checkpoint. Returns `None` if the number of
    /// tensors is zero or odd.
    fn of_tensors(tensors: Vec<Tensor>) -> Option<Self> {
        let mut sides = Vec::new();
        let mut tensors = tensors.into_iter();
        while let Some(chosen) = tensors.next() {
            sides.push(Sides { chosen, rejected: tensors.next()? });
        }
        let mut sides = sides.into_iter();
        Some(Self { logprobs: sides.next()?, taps: sides.collect() })
    }
}

/// The reference model and its cached outputs. The keys of the maps are the indices of the pairs.
#[derive(Debug, Default)]
pub struct Reference {
    adapted: Option<Rc<Adapted>>,
    kept: BTreeMap<usize, KeptPair>,
    /// Names of the pairs in checkpoints. A name is a digest of the pair's tokens.
    names: BTreeMap<usize, String>,
}

/// The reference's outputs for one batch, except for cached outputs. Outputs that the method does
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
    pub hidden: Option<Tensor>,
}

/// A forward pass of the reference over a batch with outputs that are not cached.
pub(super) struct Due {
    /// True if the outputs of some pairs must be added to the cache.
    pub new: bool,
    /// True if the method reads states that are too large for the cache.
    pub live: bool,
    /// True if the pass must reach the final hidden state.
    pub hidden: bool,
    /// Number of sites that belong to taps. The sites of taps come first.
    pub taps: usize,
    /// The sites to read.
    pub sites: Vec<Site>,
}

impl Reference {
    /// Creates a reference from the base model and the adapter `adapted`, if any. `names` maps the
    /// index of each pair to the pair's name in checkpoints.
    pub fn new(adapted: Option<Rc<Adapted>>, names: BTreeMap<usize, String>) -> Self {
        Self { adapted, kept: BTreeMap::new(), names }
    }

    /// Runs the reference on the batch, unless everything that the method needs is cached.
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
            self.keep(
                model,
                batch,
                needs,
                if live { &[] } else { &reached.states },
                reached.hidden.as_ref(),
                taps.pooling,
            )?;
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
    /// everything that the method needs is cached.
    pub(super) fn due(
        &self,
        batch: &PairBatch,
        needs: &Needs,
        taps: &Taps,
        modules: &[Site],
    ) -> Option<Due> {
        let live =
            needs.reference_states && (needs.states == States::PerToken || !taps.pool_first());
        let keeps = needs.reference_logprobs || (needs.reference_states && !live);
        let new = keeps && !batch.indices.iter().all(|i| self.kept.contains_key(i));
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

    /// Removes all cached outputs, so that they are computed again.
    pub fn clear(&mut self) {
        self.kept.clear();
    }

    fn keep(
        &mut self,
        model: &Model,
        batch: &PairBatch,
        needs: &Needs,
        states: &[Tensor],
        hidden: Option<&Tensor>,
        pooling: Pooling,
    ) -> Result<()> {
        let logps = match hidden {
            Some(hidden) if needs.reference_logprobs => {
                Some(model.score_tokens(hidden, &batch.predicted, Detail::NONE, None)?.logprobs)
            }
            _ => None,
        };
        let of_side = |state: &Tensor, side| {
            if needs.states_of().has(side) {
                batch.pool(state, pooling, side).map(Some)
            } else {
                Ok(None)
            }
        };
        let pooled = states
            .iter()
            .map(|state| Sides::try_of(|side| of_side(state, side)))
            .collect::<Result<Vec<_>>>()?;
        let nothing = || Tensor::from_slice::<f32>(&[]).to_device(model.device());
        for (i, index) in batch.indices.iter().enumerate() {
            // A view would keep the tensor of the whole batch in memory, so copy the row.
            let row = |pooled: Option<&Tensor>| -> Result<Tensor> {
                Ok(pooled
                    .map(|t| t.f_get(i as i64))
                    .transpose()?
                    .map_or_else(nothing, |t| t.copy()))
            };
            let logprobs = Sides::try_of(|side| -> Result<Tensor> {
                let Some(all) = logps.as_ref().filter(|_| needs.logprobs.has(side)) else {
                    return Ok(nothing());
                };
                Ok(all.f_index_select(0, &batch.scored(i, side)?)?)
            })?;
            let taps = pooled
                .iter()
                .map(|sides| sides.as_ref().try_map(|t| row(t.as_ref())))
                .collect::<Result<_>>()?;
            self.kept.insert(*index, KeptPair { logprobs, taps });
        }
        Ok(())
    }

    fn of(&self, index: usize) -> Result<&KeptPair> {
        self.kept.get(&index).ok_or_else(|| {
            Error::internal(format!("the reference was not evaluated on pair {index}"))
        })
    }

    /// Returns the cached pooled states of one side at a tap, before the transform. The result has
    /// shape `[b w]`.
    ///
    /// # Errors
    /// Fails if a pair in the batch is not cached.
    pub fn pooled(&self, tap: usize, batch: &PairBatch, side: Side) -> Result<Tensor> {
        let row = |index: &usize| {
            let states = self.of(*index)?.taps.get(tap).ok_or_else(|| {
                Error::internal(format!("the reference's states at tap {tap} are not cached"))
            })?;
            Ok(states.get(side))
        };
        let rows = batch.indices.iter().map(row).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_stack(&rows, 0)?)
    }

    /// Returns the cached log-probabilities of the scored tokens in the batch, in the same order as
    /// the policy's log-probabilities. The result has shape `[m]`.
    ///
    /// # Errors
    /// Fails if a pair in the batch is not cached.
    pub fn logprobs(&self, batch: &PairBatch, model: &Model) -> Result<Tensor> {
        let mut all =
            Tensor::f_zeros([batch.predicted.ids.size()[0]], (batch.kind(), model.device()))?;
        for (i, index) in batch.indices.iter().enumerate() {
            for (side, values) in
                self.of(*index)?.logprobs.as_ref().into_iter().filter(|(_, v)| v.numel() > 0)
            {
                let _ = all.f_index_copy_(0, &batch.scored(i, side)?, values)?;
            }
        }
        Ok(all)
    }

    /// Returns everything in the cache, for a checkpoint. The tensors are named `PAIR.NUMBER`,
    /// where PAIR is the name of the pair. Checkpoints include the cache because recomputing an
    /// output in a different batch could change its last bits.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let of = |(name, kept): (&String, &KeptPair)| {
            kept.tensors()
                .enumerate()
                .map(|(k, t)| (format!("{name}.{k}"), t.shallow_clone()))
                .collect::<Vec<_>>()
        };
        self.kept
            .iter()
            .filter_map(|(i, kept)| Some((self.names.get(i)?, kept)))
            .flat_map(of)
            .collect()
    }

    /// Restores the tensors that [`state`](Self::state) returned. Ignores pairs that are not part
    /// of this run.
    ///
    /// # Errors
    /// Fails if a name does not have the form `PAIR.NUMBER`, if a tensor is missing, or if memory
    /// runs out.
    pub fn restore(&mut self, state: IndexMap<String, Tensor>, device: Device) -> Result<()> {
        let rows: BTreeMap<&str, usize> =
            self.names.iter().map(|(index, name)| (name.as_str(), *index)).collect();
        let mut sorted = BTreeMap::<usize, BTreeMap<usize, Tensor>>::new();
        for (name, tensor) in state {
            let place =
                name.split_once('.').and_then(|(pair, k)| Some((pair, k.parse::<usize>().ok()?)));
            let (pair, k) = place.ok_or_else(|| {
                Error::new(format!(
                    "the reference outputs in the checkpoint include the unexpected name `{name}`"
                ))
            })?;
            if let Some(index) = rows.get(pair) {
                sorted.entry(*index).or_default().insert(k, tensor.f_to_device(device)?);
            }
        }
        let kept = |(index, tensors): (usize, BTreeMap<usize, Tensor>)| {
            let kept = KeptPair::of_tensors(tensors.into_values().collect());
            Ok((
                index,
                kept.ok_or_else(|| {
                    Error::new(format!(
                        "the checkpoint does not contain all reference outputs of pair {index}"
                    ))
                })?,
            ))
        };
        self.kept = sorted.into_iter().map(kept).collect::<Result<_>>()?;
        Ok(())
    }
}
