//! From a batch to a loss: runs what the method's `Needs` ask for, and nothing more.

#[cfg(test)]
mod tests;

use tch::{Kind, Tensor};

use super::batch::{Holds, PairBatch};
use super::directions::Directed;
use super::reference::Reference;
use crate::api::{
    Around, Completions, Directions, Intervention, Logprobs, Loss, Needs, OutputGrad, Pairs, Pooling, SequenceNll, Sides, Site, States, StepInfo, TapStates,
    TokenSides, TokenStates, Transform,
};
use crate::error::{Error, Result};
use crate::ffi::{HookErrors, register_hook};
use crate::model::pass::Request;
use crate::model::{Adapted, Detail, Model, TokenStats};
use crate::text::TokenPair;

/// Where states are read, and what they go through before they are compared.
pub struct Taps {
    /// The places, in the order of a pass.
    pub sites: Vec<Site>,
    /// How tokens become one vector.
    pub pooling: Pooling,
    /// The maps; a shared one stands here once.
    pub transforms: Vec<Box<dyn Transform>>,
    /// Which of the maps each site goes through.
    pub transform_of: Vec<usize>,
}

impl Taps {
    /// Whether T may come after pooling, which is cheaper, and lets the reference be kept pooled.
    pub fn pool_first(&self) -> bool {
        self.pooling != Pooling::Original && self.transforms.iter().all(|t| t.linear())
    }

    fn transform(&self, tap: usize) -> &dyn Transform {
        self.transforms[self.transform_of[tap]].as_ref()
    }

    /// T of states that were pooled before.
    pub fn of_pooled(&self, tap: usize, pooled: &Tensor) -> Result<Tensor> {
        self.transform(tap).forward(pooled, &Around::default())
    }

    /// Pooled, transformed states of one side, from those of all taps `[n w]` over the batch's stream.
    pub fn pooled(&self, tap: usize, states: &[Tensor], batch: &PairBatch, rejected: bool) -> Result<Tensor> {
        if self.pool_first() {
            return self.of_pooled(tap, &batch.pool(&states[tap], self.pooling, rejected)?);
        }
        if self.pooling == Pooling::Original {
            let tokens = self.tokens(tap, states, batch, rejected)?;
            return Ok(tokens.pool_original(&tokens.states));
        }
        let rows = batch.rows(self.pooling, rejected)?;
        rows.mean(&self.transformed(tap, states, batch, |t| rows.gather(t), &rows.last)?)
    }

    /// Transformed states of every token of one side's sequences.
    pub fn tokens(&self, tap: usize, states: &[Tensor], batch: &PairBatch, rejected: bool) -> Result<TokenStates> {
        let rows = batch.rows(Pooling::All, rejected)?;
        let transformed = self.transformed(tap, states, batch, |t| rows.gather(t), &rows.last)?;
        Ok(TokenStates {
            attended: rows.completion.ones_like(),
            owner: rows.owner.shallow_clone(),
            completion: rows.completion.shallow_clone(),
            states: transformed,
            sequences: batch.len() as i64,
        })
    }

    fn transformed(&self, tap: usize, states: &[Tensor], batch: &PairBatch, gather: impl Fn(&Tensor) -> Result<Tensor>, last: &Tensor) -> Result<Tensor> {
        let picked = |i: usize| -> Result<Tensor> { Ok(gather(&states[i])?.f_to_kind(batch.kind())?) };
        let h = picked(tap)?;
        let before = tap.checked_sub(1).filter(|i| states[*i].size()[1] == h.size()[1]);
        let around = Around { previous: before.map(picked).transpose()?, last: Some(last.shallow_clone()) };
        self.transform(tap).forward(&h, &around)
    }

    /// The transforms' trainable tensors, as `number.key`.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        self.transforms.iter().enumerate().flat_map(|(i, t)| t.parameters().into_iter().map(move |p| (format!("{i}.{}", p.key), p.tensor))).collect()
    }
}

/// A training objective over a model.
pub struct Objective {
    intervention: Box<dyn Intervention>,
    needs: Needs,
    taps: Taps,
    reference: Reference,
    directed: Directed,
    hook_errors: HookErrors,
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
    /// Of a method that reads its states, where it needs any, at `taps`.
    pub fn new(intervention: Box<dyn Intervention>, taps: Taps) -> Self {
        let needs = intervention.needs();
        Self { intervention, needs, taps, reference: Reference::default(), directed: Directed::default(), hook_errors: HookErrors::default() }
    }

    /// What the method needs.
    pub fn needs(&self) -> &Needs {
        &self.needs
    }

    /// The method itself.
    pub fn intervention(&mut self) -> &mut dyn Intervention {
        self.intervention.as_mut()
    }

    /// The taps, with their transforms.
    pub fn taps(&self) -> &Taps {
        &self.taps
    }

    /// Takes another reference than the base model.
    pub fn compare_with(&mut self, reference: Reference) {
        self.reference = reference;
    }

    /// What is kept of the reference, for a checkpoint.
    pub fn reference(&mut self) -> &mut Reference {
        &mut self.reference
    }

    /// How many blocks of the model a step runs.
    ///
    /// # Errors
    /// A site that the model does not have.
    pub fn depth(&self, model: &Model) -> Result<usize> {
        // A method that trains nothing says nothing of depth: its adapter is that of the whole model.
        model.depth(&self.taps.sites, self.needs.logprobs > Completions::None || self.needs.sequence_nll || self.needs.evaluate_only)
    }

    /// Learns what the adapter changes, where the method works on its gradients.
    pub fn adapted(&mut self, adapted: &Adapted) {
        self.directed = Directed::new(&self.needs, adapted);
    }

    /// The batch of these pairs that the method needs.
    ///
    /// # Errors
    /// Where the device runs out of memory.
    pub fn batch(&self, pairs: &[&TokenPair], model: &Model) -> Result<PairBatch> {
        let both = self.needs.states > States::None || self.needs.directions != Directions::None;
        let holds = Holds { logprobs: self.needs.logprobs, rejected: both, apart: self.needs.output_grads };
        PairBatch::of(pairs, holds, model)
    }

    /// The loss of a batch, with its graph. `weight` is what one of its pairs counts in the optimiser step.
    ///
    /// # Errors
    /// What the method or libtorch says.
    pub fn loss(&mut self, model: &Model, adapted: &Adapted, batch: &PairBatch, step: StepInfo, weight: f64) -> Result<Evaluated> {
        let seen = self.reference.observe(model, batch, &self.needs, &self.taps, self.directed.sites(Directions::Reference))?;
        self.directed.directions(Directions::Reference, &seen.directed, batch, weight)?;

        let hidden = self.needs.logprobs > Completions::None || self.needs.sequence_nll;
        let policy_directed = self.directed.sites(Directions::Policy);
        let sites: Vec<Site> = self.taps.sites.iter().chain(policy_directed).cloned().collect();
        let hook = |site: &Site, y: Tensor| {
            if self.needs.output_grads {
                self.hook(site, &y, batch, weight)?;
            }
            Ok(y)
        };
        let mut reached = model
            .forward(&batch.stream, Request { adapted: Some(adapted), train: true, sites: &sites, hidden, intercept: Some(&hook), ..Request::default() })?;
        let at_modules = reached.states.split_off(self.taps.sites.len());
        self.directed.directions(Directions::Policy, &at_modules, batch, weight)?;

        let mut metrics = Vec::new();
        let policy = match &reached.hidden {
            Some(hidden) if self.needs.logprobs > Completions::None => {
                let detail = if self.needs.collision { Detail::MetricsAndCollision } else { Detail::Metrics };
                let (logps, stats) = model.logprobs(hidden, &batch.predicted, detail)?;
                if let Some(stats) = &stats {
                    metrics = self.metrics(batch, &logps, stats)?;
                }
                Some(self.logprobs(batch, &logps, stats.and_then(|s| s.log_collision).as_ref())?)
            }
            _ => None,
        };
        let reference = if self.needs.reference_logprobs { Some(self.logprobs(batch, &self.reference.logprobs(batch, model)?, None)?) } else { None };
        let taps = (0..self.taps.sites.len()).map(|tap| self.tap_states(tap, &reached.states, &seen.states, batch)).collect::<Result<_>>()?;
        let mut pairs = Pairs::new(batch.len(), taps, policy, reference);
        if let (true, Some(hidden), Some(reference)) = (self.needs.sequence_nll, &reached.hidden, seen.own_logprobs) {
            let rows = batch.rows(Pooling::All, false)?;
            let own = model.logprobs(hidden, &batch.own_tokens(&rows)?, Detail::None)?.0;
            pairs = pairs.with_sequence_nll(SequenceNll {
                policy: -own,
                reference: -reference,
                attended: rows.completion.ones_like(),
                owner: rows.owner.shallow_clone(),
            });
        }
        let loss = self.intervention.loss(&pairs, step)?;
        if loss.value.numel() != 1 {
            return Err(Error::new(format!("the method's loss has the shape {:?}, but has to be one number", loss.value.size())));
        }
        if !loss.value.requires_grad() {
            return Err(Error::new("the method's loss has no gradient").hint("it has to depend on the policy's log-probabilities or states"));
        }
        // A method that computes one of the engine's numbers in its own way means its own.
        metrics.retain(|(name, _)| loss.metrics.iter().all(|(own, _)| own != name));
        Ok(Evaluated { loss, metrics })
    }

    /// What hooks met in the backward pass that has just run.
    ///
    /// # Errors
    /// The first error of a hook.
    pub fn after_backward(&self) -> Result<()> {
        self.hook_errors.check()
    }

    /// Multiplies the gradients of everything that is trained by `factor`.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn scale_gradients(&self, adapted: &Adapted, factor: f64) -> Result<()> {
        let _guard = tch::no_grad_guard();
        for (_, tensor) in adapted.parameters().into_iter().chain(self.taps.parameters()) {
            let mut grad = tensor.grad();
            if grad.defined() {
                let _ = grad.f_mul_scalar_(factor)?;
            }
        }
        Ok(())
    }

    /// Once an optimiser step, after its last backward pass: the method's own stage over the parameters' gradients.
    ///
    /// # Errors
    /// What the method says.
    pub fn map_gradients(&mut self, adapted: &Adapted) -> Result<()> {
        if self.needs.parameter_grads {
            self.directed.map_gradients(self.intervention.as_ref(), adapted)?;
        }
        self.directed.reset();
        Ok(())
    }

    /// Places the method's map of the gradient at an adapted output.
    fn hook(&self, site: &Site, y: &Tensor, batch: &PairBatch, weight: f64) -> Result<()> {
        let direction = self.directed.of_batch(site)?;
        let map = self.intervention.output_grad(OutputGrad { site: site.clone(), direction, owner: batch.row_owner()?, weight })?;
        register_hook(y, map, &self.hook_errors)
    }

    fn tap_states(&self, tap: usize, policy: &[Tensor], live: &[Tensor], batch: &PairBatch) -> Result<TapStates> {
        let taps = &self.taps;
        let sides = |states: &[Tensor]| -> Result<Sides> {
            Ok(Sides { chosen: taps.pooled(tap, states, batch, false)?, rejected: taps.pooled(tap, states, batch, true)? })
        };
        let raw = |states: &[Tensor]| -> Result<Sides> {
            Ok(Sides { chosen: batch.pool(&states[tap], taps.pooling, false)?, rejected: batch.pool(&states[tap], taps.pooling, true)? })
        };
        // Where nothing was read at this step, the reference is what was kept.
        let kept = |transformed: bool| -> Result<Sides> {
            let [chosen, rejected] = self.reference.pooled(tap, batch)?;
            if !transformed {
                return Ok(Sides { chosen, rejected });
            }
            Ok(Sides { chosen: taps.of_pooled(tap, &chosen)?, rejected: taps.of_pooled(tap, &rejected)? })
        };
        let reference = match (self.needs.reference_states, live.is_empty()) {
            (false, _) => None,
            (true, true) => Some(kept(true)?),
            (true, false) => Some(sides(live)?),
        };
        let mut states = TapStates::new(taps.sites[tap].clone(), sides(policy)?, reference);
        if self.needs.raw_states {
            let reference = match (self.needs.reference_states, live.is_empty()) {
                (false, _) => None,
                (true, true) => Some(kept(false)?),
                (true, false) => Some(raw(live)?),
            };
            states = states.with_raw(raw(policy)?, reference);
        }
        if self.needs.states == States::PerToken {
            let tokens = |states: &[Tensor]| -> Result<TokenSides> {
                Ok(TokenSides { chosen: taps.tokens(tap, states, batch, false)?, rejected: taps.tokens(tap, states, batch, true)? })
            };
            let reference = if self.needs.reference_states { Some(tokens(live)?) } else { None };
            states = states.with_tokens(tokens(policy)?, reference);
        }
        Ok(states)
    }

    fn logprobs(&self, batch: &PairBatch, logps: &Tensor, collision: Option<&Tensor>) -> Result<Logprobs> {
        let side = |rejected| -> Result<_> {
            let mut tokens = batch.tokens_of(logps, rejected)?;
            tokens.log_collision = collision.map(|c| batch.tokens_of(c, rejected)).transpose()?.map(|t| t.per_token);
            Ok(tokens)
        };
        Ok(Logprobs::new(side(false)?, if self.needs.logprobs == Completions::Both { Some(side(true)?) } else { None }))
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
