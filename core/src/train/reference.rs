//! The reference's view of the pairs: run once a pair where what is needed of it is small, and kept.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use tch::{Device, Tensor};

use super::batch::PairBatch;
use super::objective::Taps;
use crate::api::{Completions, Needs, Pooling, Site, States};
use crate::error::{Error, Result};
use crate::model::pass::Request;
use crate::model::{Adapted, Detail, Model};

/// What is kept of one pair, kilobytes: log-probabilities of the completions' tokens `[m]`, chosen and rejected, then
/// each tap's pooled states before the transform `[w]`, chosen and rejected. Empty tensors stand for what is not needed.
type Kept = Vec<Tensor>;

/// The model that the policy is compared with, and the kept views by row of the data set.
#[derive(Debug, Default)]
pub struct Reference {
    adapted: Option<Adapted>,
    kept: BTreeMap<usize, Kept>,
    /// The name of each pair in a checkpoint, by its index. It is made from the pair's tokens.
    names: BTreeMap<usize, String>,
}

/// What was read of the reference at one step, over the stream of its batch; empty where nothing had to be.
#[derive(Debug, Default)]
pub struct Seen {
    /// States at the taps `[n w]`, where they cannot be kept.
    pub states: Vec<Tensor>,
    /// States at the adapted modules `[n w]`.
    pub directed: Vec<Tensor>,
    /// log p of each position's own token in the chosen sequences `[m]`.
    pub own_logprobs: Option<Tensor>,
}

impl Reference {
    /// The base model with this adapter, which is not the one that is trained; without one, the base model alone.
    pub fn with(adapted: Option<Adapted>) -> Self {
        Self { adapted, ..Self::default() }
    }

    /// Runs the reference on the batch where something is needed that is not kept of every pair.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn observe(&mut self, model: &Model, batch: &PairBatch, needs: &Needs, taps: &Taps, directed: &[Site]) -> Result<Seen> {
        let live = needs.reference_states && (needs.states == States::PerToken || !taps.pool_first());
        let keeps = needs.reference_logprobs || (needs.reference_states && !live);
        let new = keeps && !batch.indices.iter().all(|i| self.kept.contains_key(i));
        if !(new || live || !directed.is_empty() || needs.sequence_nll) {
            return Ok(Seen::default());
        }
        let _guard = tch::no_grad_guard();
        let tap_sites: &[Site] = if needs.reference_states { &taps.sites } else { &[] };
        let sites: Vec<Site> = tap_sites.iter().chain(directed).cloned().collect();
        let hidden = (new && needs.reference_logprobs) || needs.sequence_nll;
        let mut reached = model.forward(&batch.stream, Request { adapted: self.adapted.as_ref(), sites: &sites, hidden, ..Request::default() })?;
        let at_modules = reached.states.split_off(tap_sites.len());
        if new {
            self.keep(model, batch, needs, if live { &[] } else { &reached.states }, reached.hidden.as_ref(), taps.pooling)?;
        }
        let own_logprobs = match (&reached.hidden, needs.sequence_nll) {
            (Some(hidden), true) => {
                let rows = batch.rows(Pooling::All, false)?;
                Some(model.logprobs(hidden, &batch.own_tokens(&rows)?, Detail::None)?.0)
            }
            _ => None,
        };
        Ok(Seen { states: if live { reached.states } else { Vec::new() }, directed: at_modules, own_logprobs })
    }

    fn keep(&mut self, model: &Model, batch: &PairBatch, needs: &Needs, states: &[Tensor], hidden: Option<&Tensor>, pooling: Pooling) -> Result<()> {
        let logps = match hidden {
            Some(hidden) if needs.reference_logprobs => Some(model.logprobs(hidden, &batch.predicted, Detail::None)?.0),
            _ => None,
        };
        let pooled = states.iter().map(|s| Ok([batch.pool(s, pooling, false)?, batch.pool(s, pooling, true)?])).collect::<Result<Vec<_>>>()?;
        let nothing = || Tensor::from_slice::<f32>(&[]).to_device(model.device());
        for (i, index) in batch.indices.iter().enumerate() {
            // A copy, so that a row does not keep its batch's tensor alive.
            let row = |t: &Tensor| -> Result<Tensor> { Ok(t.f_get(i as i64)?.copy()) };
            let part = |rejected: bool| -> Result<Tensor> {
                let Some(all) = logps.as_ref().filter(|_| !rejected || needs.logprobs == Completions::Both) else { return Ok(nothing()) };
                let scored = batch.scored(i, rejected);
                Ok(all.f_narrow(0, scored.start as i64, scored.len() as i64)?.copy())
            };
            let mut kept = vec![part(false)?, part(true)?];
            for states in pooled.iter().flatten() {
                kept.push(row(states)?);
            }
            self.kept.insert(*index, kept);
        }
        Ok(())
    }

    fn of(&self, index: usize) -> Result<&[Tensor]> {
        self.kept.get(&index).map(Vec::as_slice).ok_or_else(|| Error::internal(format!("the reference has not seen pair {index}")))
    }

    /// What is kept of a tap, `[b w]` chosen and rejected, before the transform.
    ///
    /// # Errors
    /// A pair that was not observed.
    pub fn pooled(&self, tap: usize, batch: &PairBatch) -> Result<[Tensor; 2]> {
        let side = |s: usize| -> Result<Tensor> {
            let rows = batch.indices.iter().map(|i| Ok(&self.of(*i)?[2 + 2 * tap + s])).collect::<Result<Vec<_>>>()?;
            Ok(Tensor::f_stack(&rows, 0)?)
        };
        Ok([side(0)?, side(1)?])
    }

    /// The kept log-probabilities laid out as the scored tokens of the batch `[m]`, so that both models are read alike.
    ///
    /// # Errors
    /// A pair that was not observed.
    pub fn logprobs(&self, batch: &PairBatch, model: &Model) -> Result<Tensor> {
        let all = Tensor::f_zeros([batch.predicted.ids.size()[0]], (batch.kind(), model.device()))?;
        for (i, index) in batch.indices.iter().enumerate() {
            for (side, values) in self.of(*index)?[..2].iter().enumerate().filter(|(_, v)| v.numel() > 0) {
                let scored = batch.scored(i, side == 1);
                all.f_narrow(0, scored.start as i64, scored.len() as i64)?.f_copy_(values)?;
            }
        }
        Ok(all)
    }

    /// Sets the name of each pair in a checkpoint, by its index.
    pub fn name_pairs(&mut self, names: BTreeMap<usize, String>) {
        self.names = names;
    }

    /// Everything that is kept, for a checkpoint, as `pair.number` with the pair's name. If it were computed again it could
    /// differ in the last bit, because that depends on the other pairs of the batch.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let of = |(name, kept): (&String, &Kept)| kept.iter().enumerate().map(|(k, t)| (format!("{name}.{k}"), t.shallow_clone())).collect::<Vec<_>>();
        self.kept.iter().filter_map(|(i, kept)| Some((self.names.get(i)?, kept))).flat_map(of).collect()
    }

    /// Goes back to what [`state`](Self::state) gave. Values of pairs that this run does not have are left out.
    ///
    /// # Errors
    /// Fails if a name is not of the form that it gives, or if memory runs out.
    pub fn restore(&mut self, state: IndexMap<String, Tensor>, device: Device) -> Result<()> {
        let rows: BTreeMap<&str, usize> = self.names.iter().map(|(index, name)| (name.as_str(), *index)).collect();
        let mut sorted = BTreeMap::new();
        for (name, tensor) in state {
            let place = name.split_once('.').and_then(|(pair, k)| Some((pair, k.parse::<usize>().ok()?)));
            let (pair, k) = place.ok_or_else(|| Error::new(format!("the checkpoint's reference holds `{name}`, which is not of a pair")))?;
            if let Some(index) = rows.get(pair) {
                sorted.insert((*index, k), tensor.f_to_device(device)?);
            }
        }
        self.kept.clear();
        for ((index, _), tensor) in sorted {
            self.kept.entry(index).or_default().push(tensor);
        }
        Ok(())
    }
}
