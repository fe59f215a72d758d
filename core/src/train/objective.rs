//! From a batch to a loss: runs what the method's `Needs` ask for, and nothing more.

use std::collections::HashMap;

use tch::{Kind, Tensor};

use super::batch::{Holds, PairBatch};
use crate::api::{Completions, Intervention, Logprobs, Loss, Needs, Pairs, Pooling, Sides, Site, StepInfo, TapStates, Transform};
use crate::error::{Error, Result};
use crate::model::pass::Request;
use crate::model::{Adapted, Model, TokenStats};
use crate::text::TokenPair;

/// The reference's view of one pair: kilobytes, kept so that the reference runs once a pair and not once a step.
#[derive(Debug)]
struct Kept {
    /// Log-probabilities of the completion's tokens `[m]`, chosen and rejected.
    logprobs: Option<[Tensor; 2]>,
    /// Pooled states before the transform, one `[w]` a tap, chosen and rejected.
    states: Vec<[Tensor; 2]>,
}

/// A training objective over a model.
pub struct Objective {
    intervention: Box<dyn Intervention>,
    needs: Needs,
    sites: Vec<Site>,
    pooling: Pooling,
    /// One a site; shared ones stand in the list once and are pointed to.
    transforms: Vec<Box<dyn Transform>>,
    transform_of: Vec<usize>,
    kept: HashMap<usize, Kept>,
}

/// A batch's loss and what to log of it.
#[derive(Debug)]
pub struct Evaluated {
    /// The method's loss and metrics.
    pub loss: Loss,
    /// What the engine logs of every method with log-probabilities, in TRL's names.
    pub metrics: Vec<(String, Tensor)>,
}

impl Objective {
    /// `transform_of` says which of `transforms` each of `sites` goes through.
    pub fn new(intervention: Box<dyn Intervention>, sites: Vec<Site>, pooling: Pooling, transforms: Vec<Box<dyn Transform>>, transform_of: Vec<usize>) -> Self {
        let needs = intervention.needs();
        Self { intervention, needs, sites, pooling, transforms, transform_of, kept: HashMap::new() }
    }

    /// How many blocks of the model a step runs.
    ///
    /// # Errors
    /// A site that the model does not have.
    pub fn depth(&self, model: &Model) -> Result<usize> {
        model.depth(&self.sites, self.needs.logprobs > Completions::None)
    }

    /// The transforms' trainable tensors, as `number.key`.
    pub fn transform_parameters(&self) -> Vec<(String, Tensor)> {
        self.transforms.iter().enumerate().flat_map(|(i, t)| t.parameters().into_iter().map(move |p| (format!("{i}.{}", p.key), p.tensor))).collect()
    }

    /// The batch of these pairs that the method needs.
    ///
    /// # Errors
    /// Where the device runs out of memory.
    pub fn batch(&self, pairs: &[&TokenPair], model: &Model) -> Result<PairBatch> {
        let holds = Holds { logprobs: self.needs.logprobs, rejected: self.needs.states };
        PairBatch::new(pairs, holds, model.kind(), model.device())
    }

    /// The loss of a batch, with its graph.
    ///
    /// # Errors
    /// What the method or libtorch says.
    pub fn loss(&mut self, model: &Model, adapted: &Adapted, batch: &PairBatch, step: StepInfo) -> Result<Evaluated> {
        self.keep_reference(model, batch)?;
        let hidden = self.needs.logprobs > Completions::None;
        let reached = model.forward(&batch.stream, Request { adapted: Some(adapted), train: true, sites: &self.sites, hidden })?;
        let mut metrics = Vec::new();
        let policy = match &reached.hidden {
            Some(hidden) => {
                let (logps, stats) = model.logprobs(hidden, &batch.predicted, true)?;
                if let Some(stats) = stats {
                    metrics = self.metrics(batch, &logps, &stats)?;
                }
                Some(self.logprobs(batch, &logps)?)
            }
            None => None,
        };
        let mut taps = Vec::with_capacity(self.sites.len());
        for (i, site) in self.sites.iter().enumerate() {
            let transform = &self.transforms[self.transform_of[i]];
            let policy = self.policy_states(transform.as_ref(), &reached.states[i], batch)?;
            let reference = if self.needs.reference_states { Some(self.reference_states(transform.as_ref(), i, model, batch)?) } else { None };
            taps.push(TapStates::new(site.clone(), policy, reference));
        }
        let reference = if self.needs.reference_logprobs { Some(self.reference_logprobs(batch, model)?) } else { None };
        let loss = self.intervention.loss(&Pairs::new(batch.len(), taps, policy, reference), step)?;
        if loss.value.numel() != 1 {
            return Err(Error::internal(format!("the method's loss is {:?}, but has to be one number", loss.value.size())));
        }
        if !loss.value.requires_grad() {
            return Err(Error::internal("the method's loss has no gradient").hint("it has to depend on the policy's log-probabilities or states"));
        }
        Ok(Evaluated { loss, metrics })
    }

    fn logprobs(&self, batch: &PairBatch, logps: &Tensor) -> Result<Logprobs> {
        let rejected = if self.needs.logprobs == Completions::Both { Some(batch.tokens_of(logps, true)?) } else { None };
        Ok(Logprobs::new(batch.tokens_of(logps, false)?, rejected))
    }

    /// A linear T and the mean over tokens may change places, which is cheaper.
    fn policy_states(&self, transform: &dyn Transform, states: &Tensor, batch: &PairBatch) -> Result<Sides> {
        let pooled = |rejected| -> Result<Tensor> {
            if transform.linear() {
                transform.forward(&batch.pool(states, self.pooling, rejected)?)
            } else {
                batch.pool(&transform.forward(states)?, self.pooling, rejected)
            }
        };
        Ok(Sides { chosen: pooled(false)?, rejected: pooled(true)? })
    }

    fn reference_states(&self, transform: &dyn Transform, tap: usize, model: &Model, batch: &PairBatch) -> Result<Sides> {
        if !transform.linear() {
            // What is kept is pooled before T, which would be wrong here: the reference runs again.
            let reached = {
                let _guard = tch::no_grad_guard();
                model.forward(&batch.stream, Request { sites: &self.sites[tap..=tap], ..Request::default() })?
            };
            return self.policy_states(transform, &reached.states[0], batch);
        }
        let side = |s: usize| -> Result<Tensor> {
            let rows: Vec<&Tensor> = batch.indices.iter().filter_map(|i| Some(&self.kept.get(i)?.states[tap][s])).collect();
            transform.forward(&Tensor::f_stack(&rows, 0)?)
        };
        Ok(Sides { chosen: side(0)?, rejected: side(1)? })
    }

    fn reference_logprobs(&self, batch: &PairBatch, model: &Model) -> Result<Logprobs> {
        // Laid out as the scored tokens of the batch, so that both models are read alike.
        let kind = if model.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let all = Tensor::f_zeros([batch.predicted.ids.size()[0]], (kind, model.device()))?;
        for (i, index) in batch.indices.iter().enumerate() {
            let Some(logprobs) = self.kept.get(index).and_then(|k| k.logprobs.as_ref()) else { continue };
            for (side, values) in logprobs.iter().enumerate().filter(|(_, v)| v.numel() > 0) {
                let scored = batch.scored(i, side == 1);
                all.f_narrow(0, scored.start as i64, scored.len() as i64)?.f_copy_(values)?;
            }
        }
        self.logprobs(batch, &all)
    }

    /// Runs the base model on the batch where a pair of it has not been seen before.
    fn keep_reference(&mut self, model: &Model, batch: &PairBatch) -> Result<()> {
        if !(self.needs.reference_logprobs || self.needs.reference_states) || batch.indices.iter().all(|i| self.kept.contains_key(i)) {
            return Ok(());
        }
        let _guard = tch::no_grad_guard();
        let linear = self.transforms.iter().all(|t| t.linear());
        let sites: &[Site] = if self.needs.reference_states && linear { &self.sites } else { &[] };
        let reached = model.forward(&batch.stream, Request { sites, hidden: self.needs.reference_logprobs, ..Request::default() })?;
        let logps = match &reached.hidden {
            Some(hidden) => Some(model.logprobs(hidden, &batch.predicted, false)?.0),
            None => None,
        };
        let pooled =
            reached.states.iter().map(|s| Ok([batch.pool(s, self.pooling, false)?, batch.pool(s, self.pooling, true)?])).collect::<Result<Vec<_>>>()?;
        for (i, index) in batch.indices.iter().enumerate() {
            // A copy, so that a row does not keep its batch's tensor alive.
            let row = |t: &Tensor| -> Result<Tensor> { Ok(t.f_get(i as i64)?.copy()) };
            let states = pooled.iter().map(|[c, r]| Ok([row(c)?, row(r)?])).collect::<Result<Vec<_>>>()?;
            let logprobs = match &logps {
                Some(all) => {
                    let part = |rejected| -> Result<Tensor> {
                        let scored = if rejected && self.needs.logprobs != Completions::Both { 0..0 } else { batch.scored(i, rejected) };
                        Ok(all.f_narrow(0, scored.start as i64, scored.len() as i64)?.copy())
                    };
                    Some([part(false)?, part(true)?])
                }
                None => None,
            };
            self.kept.insert(*index, Kept { logprobs, states });
        }
        Ok(())
    }

    /// TRL's `logps/*`, `logits/*`, `entropy` and `mean_token_accuracy`, pairs that share a completion counting each.
    fn metrics(&self, batch: &PairBatch, logps: &Tensor, stats: &TokenStats) -> Result<Vec<(String, Tensor)>> {
        let _guard = tch::no_grad_guard();
        let logps = logps.f_detach()?;
        let mut metrics = Vec::new();
        let mut entropies = Vec::new();
        let sides: &[(bool, &str)] = if self.needs.logprobs == Completions::Both { &[(false, "chosen"), (true, "rejected")] } else { &[(false, "chosen")] };
        for (rejected, name) in sides {
            metrics.push((format!("logps/{name}"), batch.tokens_of(&logps, *rejected)?.sum().f_mean(Kind::Float)?));
            metrics.push((format!("logits/{name}"), batch.tokens_of(&stats.mean_logit, *rejected)?.per_token.f_mean(Kind::Float)?));
            entropies.push(batch.tokens_of(&stats.entropy, *rejected)?.per_token);
        }
        metrics.push(("entropy".to_owned(), Tensor::f_cat(&entropies, 0)?.f_mean(Kind::Float)?));
        metrics.push(("mean_token_accuracy".to_owned(), batch.tokens_of(&stats.correct, false)?.per_token.f_mean(Kind::Float)?));
        Ok(metrics)
    }
}
