//! Computes the values that a method requests in its `Needs`, and then the method's loss.

#[cfg(test)]
mod tests;

use tch::{Device, Kind, Tensor};

use super::directions::ModuleDirections;
use super::operations::{Count, GradientPlan, Operations, Work};
use super::phases::{Phase, PhaseClock};
use super::reference::{Reference, ReferenceValues};
use super::taps::Taps;
use crate::api::{
    Completions, Directions, Intervention, Logprobs, Loss, Needs, OutputGrad, Pairs, PerSide,
    Pooling, SequenceNll, Side, Sides, Site, States, StepInfo, TapStates, TokenLogprobs,
};
use crate::batch::{BatchSpec, PairBatch, Sharing};
use crate::error::{Error, Result};
use crate::ffi::{HookErrors, register_hook};
use crate::model::pass::Request;
use crate::model::{Adapted, Detail, FinalStates, Model, PassSeed, SavedBlocks, TokenStats};
use crate::reference::Quantity;
use crate::text::TokenPair;
use crate::world::{World, checksum};

/// The training objective of a method on a model.
pub struct Objective {
    intervention: Box<dyn Intervention>,
    needs: Needs,
    taps: Taps,
    reference: Reference,
    /// Which sequences of a batch may share rows.
    sharing: Sharing,
    directions: ModuleDirections,
    /// True if the backward pass runs each block again instead of keeping its activations.
    checkpointing: bool,
    hook_errors: HookErrors,
    with_metrics: bool,
    clock: PhaseClock,
}

/// The properties of a training pass over a micro-batch.
#[derive(Clone, Copy, Debug)]
pub struct TrainPass {
    /// The weight of each pair in the optimiser step.
    pub weight: f64,
    /// The seed of the random numbers, such as dropout masks.
    pub seed: PassSeed,
}

/// The loss of a batch and its metrics.
#[derive(Debug)]
pub struct Evaluated {
    /// The loss and the metrics that the method returned.
    pub loss: Loss,
    /// Metrics of every method that uses log-probabilities. They have the same names as in TRL.
    /// Empty after [`Objective::set_metrics`] with `false`.
    pub metrics: Vec<(String, Tensor)>,
    /// The training pass, its step, and the blocks that its backward pass runs again; `None` if
    /// there are none.
    saved: Option<(TrainPass, StepInfo, SavedBlocks)>,
}

impl TrainPass {
    /// A pass over the only micro-batch of a step, whose pairs have the given weight.
    pub fn of_weight(weight: f64) -> Self {
        Self { weight, seed: PassSeed::default() }
    }
}

impl Objective {
    /// Creates the objective of `intervention`. The method reads states at `taps`, compares the
    /// policy with `reference`, and trains `adapted`.
    ///
    /// # Errors
    /// Fails if the method's `Needs` contradict each other.
    pub fn new(
        intervention: Box<dyn Intervention>,
        taps: Taps,
        reference: Reference,
        adapted: &Adapted,
    ) -> Result<Self> {
        let needs = intervention.needs();
        needs.check()?;
        let directions = ModuleDirections::new(&needs, adapted);
        let sharing = match needs.output_grads {
            true => Sharing::WithinPair,
            false => Sharing::for_adapted(Some(adapted)),
        };
        Ok(Self {
            intervention,
            needs,
            taps,
            reference,
            sharing,
            directions,
            checkpointing: false,
            hook_errors: HookErrors::default(),
            with_metrics: true,
            clock: PhaseClock::default(),
        })
    }

    /// The needs of the method.
    pub fn needs(&self) -> &Needs {
        &self.needs
    }

    /// The method.
    pub fn intervention(&mut self) -> &mut dyn Intervention {
        self.intervention.as_mut()
    }

    /// The taps, with their transforms.
    pub fn taps(&self) -> &Taps {
        &self.taps
    }

    /// The reference and its kept outputs.
    pub fn reference(&mut self) -> &mut Reference {
        &mut self.reference
    }

    /// Sets which sequences of a batch may share rows.
    pub(crate) fn set_sharing(&mut self, sharing: Sharing) {
        self.sharing = sharing;
    }

    /// Selects whether the next losses include [`Evaluated::metrics`]. By default, they do.
    pub fn set_metrics(&mut self, with_metrics: bool) {
        self.with_metrics = with_metrics;
    }

    /// Chooses between activation checkpointing and keeping the activations of all blocks, which
    /// needs more memory and less time. The gradients are the same.
    ///
    /// # Errors
    /// Fails if several modules of `adapted` share a trained tensor, because its gradient would
    /// be added up in another order.
    pub fn set_checkpointing(&mut self, on: bool, adapted: &Adapted) -> Result<()> {
        if on && let Some(name) = adapted.shared_by_modules() {
            return Err(Error::new(format!(
                "`train.checkpointing` does not support this adapter, because several modules \
                    share its trained tensor `{name}`"
            ))
            .hint("set `train.checkpointing=false`, and lower `train.batch` to save memory"));
        }
        self.checkpointing = on;
        Ok(())
    }

    /// True if the backward pass runs each block again.
    pub fn checkpointing(&self) -> bool {
        self.checkpointing
    }

    /// The clock that measures the phases of each step. It is off by default.
    pub fn clock(&self) -> &PhaseClock {
        &self.clock
    }

    /// Replaces the clock.
    pub fn set_clock(&mut self, clock: PhaseClock) {
        self.clock = clock;
    }

    /// Builds a batch with the sequences of `pairs` that the method needs.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn batch(&self, pairs: &[&TokenPair], model: &Model) -> Result<PairBatch> {
        let needs = &self.needs;
        let mut states = needs.states_of();
        if needs.directions != Directions::None {
            states = Completions::Both;
        } else if needs.sequence_nll {
            states = states.or(Completions::Chosen);
        }
        states = states.or(needs.sequence_logprobs);
        PairBatch::of(
            pairs,
            BatchSpec { logprobs: needs.logprobs, states, sharing: self.sharing },
            model,
        )
    }

    /// The outputs of the reference that are kept for the method.
    pub fn reference_quantities(&self) -> Vec<Quantity> {
        Reference::quantities(&self.needs, &self.taps)
    }

    /// Computes the outputs of the reference that are kept for the pairs of some blocks, or reads
    /// them from the cache. Each rank prepares one of the blocks, and then has the outputs of all
    /// blocks. The steps do not compute them again.
    ///
    /// # Errors
    /// Fails if memory runs out, or if another rank has ended.
    pub fn prepare(&mut self, model: &Model, round: &[&[&TokenPair]]) -> Result<()> {
        let clock = self.clock.clone();
        let world = model.world();
        clock.measure(Phase::Reference, || {
            match round.get(world.rank()) {
                Some(block) => self.reference.prepare(model, block, &self.needs, &self.taps)?,
                // The other ranks need this one to gather the weights. They send the same values.
                None if model.is_sharded() => {
                    self.reference.prepare(model, round[0], &self.needs, &self.taps)?;
                }
                None => {}
            }
            self.reference.exchange(world, round, &self.needs, &self.taps)
        })
    }

    /// Counts the products that [`prepare`](Self::prepare) computes if the block is not cached.
    ///
    /// # Errors
    /// Fails if the model does not have a site, or if memory runs out.
    pub fn preparation_work(&self, model: &Model, block: &[&TokenPair]) -> Result<Operations> {
        let quantities = self.reference_quantities();
        let batch = PairBatch::of(block, self.reference.block_spec(), model)?;
        let mut count = Count::new(model, &batch);
        let sites: Vec<Site> = quantities.iter().filter_map(Quantity::site).cloned().collect();
        let scored = batch.predicted.ids.size()[0];
        let hidden = quantities.contains(&Quantity::Logprobs);
        count.forward(model.depth(&sites, hidden)?);
        if hidden {
            count.head(scored, 1);
        }
        Ok(count.finish(scored).operations)
    }

    /// Calls `work` with `method` in place of the current method. The state of the current method
    /// does not change. Both methods must have the same configuration.
    ///
    /// # Errors
    /// Fails if `work` does.
    pub fn with_method<T>(
        &mut self,
        method: Box<dyn Intervention>,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let own = std::mem::replace(&mut self.intervention, method);
        let result = work(self);
        self.intervention = own;
        result
    }

    /// Computes the loss of a batch and records its autograd graph. With
    /// [checkpointing](Self::set_checkpointing), the graph ends after the last block; call
    /// [`backward`](Self::backward) to get the gradients.
    ///
    /// # Errors
    /// Fails if the method or libtorch returns an error, or if the loss does not depend on any
    /// trained parameter.
    pub fn loss(
        &mut self,
        model: &Model,
        adapted: &Adapted,
        batch: &PairBatch,
        step: StepInfo,
        pass: TrainPass,
    ) -> Result<Evaluated> {
        let clock = self.clock.clone();
        let evaluated = clock
            .measure(Phase::Forward, || self.evaluate(model, adapted, batch, step, Some(pass)))?;
        if !evaluated.loss.value.requires_grad() {
            return Err(Error::new("the method's loss has no gradient")
                .hint("compute the loss from the policy's log-probabilities or states"));
        }
        Ok(evaluated)
    }

    /// Adds the gradients of a loss to the trained tensors. `loss` is computed from the value of
    /// `evaluated`, which [`loss`](Self::loss) returned for this batch.
    ///
    /// # Errors
    /// Fails if a gradient hook, an adapter or libtorch fails.
    pub fn backward(
        &self,
        model: &Model,
        adapted: &Adapted,
        batch: &PairBatch,
        evaluated: Evaluated,
        loss: &Tensor,
    ) -> Result<()> {
        loss.f_backward()?;
        if let Some((pass, step, saved)) = evaluated.saved {
            drop(evaluated.loss);
            let sites: Vec<Site> = self.policy_sites(true).cloned().collect();
            self.with_policy_request(adapted, batch, &sites, step, Some(pass), |request| {
                model.backward(saved, &batch.stream, request)
            })?;
        }
        self.hook_errors.check()
    }

    /// Computes the loss of a batch without an autograd graph, dropout or gradient hooks.
    ///
    /// # Errors
    /// Fails if the method or libtorch returns an error.
    pub fn loss_without_gradient(
        &mut self,
        model: &Model,
        adapted: &Adapted,
        batch: &PairBatch,
        step: StepInfo,
    ) -> Result<Evaluated> {
        let _guard = tch::no_grad_guard();
        self.evaluate(model, adapted, batch, step, None)
    }

    /// Computes the loss of a batch. `pass` is `None` if no gradient is needed.
    fn evaluate(
        &mut self,
        model: &Model,
        adapted: &Adapted,
        batch: &PairBatch,
        step: StepInfo,
        pass: Option<TrainPass>,
    ) -> Result<Evaluated> {
        let weight = pass.map(|pass| pass.weight);
        let clock = self.clock.clone();
        let observed = clock.measure(Phase::Reference, || {
            let modules = match pass {
                Some(_) => self.directions.sites(Directions::Reference),
                None => &[],
            };
            self.reference.observe(model, batch, &self.needs, &self.taps, modules)
        })?;
        let sites: Vec<Site> = self.policy_sites(pass.is_some()).cloned().collect();
        if let Some(weight) = weight {
            self.directions.read(Directions::Reference, &observed.at_modules, batch, weight)?;
        }
        let mut reached =
            self.with_policy_request(adapted, batch, &sites, step, pass, |request| {
                model.forward(&batch.stream, request)
            })?;
        let at_modules = reached.states.split_off(self.taps.sites.len());
        if let Some(weight) = weight {
            self.directions.read(Directions::Policy, &at_modules, batch, weight)?;
        }

        let mut metrics = Vec::new();
        let policy = match &reached.hidden {
            Some(hidden) if self.needs.logprobs.any() => {
                let detail = Detail { stats: self.with_metrics, collision: self.needs.collision };
                let scores = clock.measure(Phase::Head, || {
                    model.score_tokens(hidden, &batch.predicted, detail, observed.hidden.as_ref())
                })?;
                if let Some(stats) = &scores.stats {
                    metrics = clock
                        .measure(Phase::Logging, || self.metrics(batch, &scores.logprobs, stats))?;
                }
                Some(self.logprobs(
                    batch,
                    &scores.logprobs,
                    scores.log_collision.as_ref(),
                    scores.kl.as_ref(),
                )?)
            }
            _ => None,
        };
        let reference = if self.needs.reference_logprobs {
            let kept = clock.measure(Phase::Reference, || {
                self.reference.logprobs(batch, self.needs.logprobs, model)
            })?;
            Some(self.logprobs(batch, &kept, None, None)?)
        } else {
            None
        };
        let taps = (0..self.taps.sites.len())
            .map(|tap| self.tap_states(tap, &reached.states, &observed, batch, model))
            .collect::<Result<_>>()?;
        let mut pairs = Pairs::new(batch.len(), taps, policy, reference);
        if let (true, Some(hidden), Some(reference)) =
            (self.needs.sequence_nll, &reached.hidden, observed.own_logprobs)
        {
            let rows = batch.rows(Pooling::All, Side::Chosen)?;
            let own = batch.own_tokens(&rows)?;
            let own = clock
                .measure(Phase::Head, || model.score_tokens(hidden, &own, Detail::NONE, None))?
                .logprobs;
            pairs = pairs.with_sequence_nll(SequenceNll {
                policy: -own,
                reference: -reference,
                owner: rows.owner.shallow_clone(),
            });
        }
        if let (true, Some(hidden)) = (self.needs.sequence_logprobs.any(), &reached.hidden) {
            let logprobs =
                clock.measure(Phase::Head, || self.sequence_logprobs(hidden, batch, model))?;
            pairs = pairs.with_sequence_logprobs(logprobs);
        }
        if let Some(pass) = pass {
            pass.seed.start("loss");
        }
        let loss = self.intervention.loss(&pairs, step)?;
        if loss.value.numel() != 1 {
            return Err(Error::new(format!(
                "the method's loss has the shape {:?}, but must be a single number",
                loss.value.size()
            )));
        }
        // The method's metrics replace built-in metrics with the same name.
        metrics.retain(|(name, _)| loss.metrics.iter().all(|(own, _)| own != name));
        Ok(Evaluated {
            loss,
            metrics,
            saved: pass.zip(reached.saved).map(|(pass, saved)| (pass, step, saved)),
        })
    }

    /// Calls `work` with the request of the policy's pass over a batch. `pass` is `None` if no
    /// gradient is needed.
    fn with_policy_request<T>(
        &self,
        adapted: &Adapted,
        batch: &PairBatch,
        sites: &[Site],
        step: StepInfo,
        pass: Option<TrainPass>,
        work: impl FnOnce(Request<'_>) -> Result<T>,
    ) -> Result<T> {
        let hook = |site: &Site, y: Tensor| {
            if let (true, Some(pass)) = (self.needs.output_grads, pass) {
                self.hook(site, &y, batch, step, pass.weight)?;
            }
            Ok(y)
        };
        work(Request {
            adapted: Some(adapted),
            train: pass.map(|pass| pass.seed),
            sites,
            hidden: self.needs.logprobs.any() || self.needs.sequence_nll,
            checkpointing: self.checkpointing && pass.is_some(),
            intercept: Some(&hook),
            ..Request::default()
        })
    }

    /// Counts the products in [`loss`](Self::loss) and the backward pass on `batch`. Outputs of
    /// the reference that are already kept need no products. `plan` must belong to the same
    /// adapter.
    ///
    /// # Errors
    /// Fails if the model does not have a site, or if memory runs out.
    pub fn work(
        &self,
        model: &Model,
        adapted: &Adapted,
        batch: &PairBatch,
        plan: &GradientPlan,
    ) -> Result<Work> {
        let needs = &self.needs;
        let hidden = needs.logprobs.any() || needs.sequence_nll;
        let mut count = Count::new(model, batch);
        let modules = self.directions.sites(Directions::Reference);
        let due = self.reference.due(batch, needs, &self.taps, modules);
        if let Some(due) = &due {
            count.forward(model.depth(&due.sites, due.hidden)?);
            if due.new && needs.reference_logprobs {
                count.head(batch.predicted.ids.size()[0], 1);
            }
        }
        let sites: Vec<Site> = self.policy_sites(true).cloned().collect();
        let blocks = model.depth(&sites, hidden)?;
        count.forward(blocks);
        count.adapter(adapted, if self.checkpointing { 4 } else { 3 });
        if self.checkpointing {
            count.recomputation(plan, blocks);
        }
        count.backward(plan, blocks, if hidden { None } else { Some(&sites) });
        // The head computes the gradient of its input together with the logits. The divergence
        // from the reference needs the logits of both models, and two gradients.
        let scored = batch.predicted.ids.size()[0];
        if needs.logprobs.any() {
            count.head(scored, if needs.reference_kl { 4 } else { 2 });
        }
        if needs.sequence_nll {
            let own = batch.own_tokens(&*batch.rows(Pooling::All, Side::Chosen)?)?.ids.size()[0];
            count.head(own, 2 + i64::from(due.is_some()));
        }
        for side in needs.sequence_logprobs.sides() {
            count.head(batch.sequence_tokens(side)?.predicted.ids.size()[0], 2);
        }
        Ok(count.finish(scored))
    }

    /// The sites to read in the policy's pass: first the taps, then the sites of the method's
    /// directions, which are only needed in training.
    fn policy_sites(&self, train: bool) -> impl Iterator<Item = &Site> {
        let directions = if train { self.directions.sites(Directions::Policy) } else { &[] };
        self.taps.sites.iter().chain(directions)
    }

    /// Multiplies the gradients of all trained parameters by `factor`.
    ///
    /// # Errors
    /// Fails if libtorch returns an error.
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

    /// Runs the passes of a micro-batch without any effect, because the other ranks need this one
    /// to gather the weights of a sharded model. Computes no gradients if `seed` is `None`.
    ///
    /// # Errors
    /// Fails in the same cases as [`loss`](Self::loss).
    pub fn assist(
        &mut self,
        model: &Model,
        adapted: &Adapted,
        batch: &PairBatch,
        step: StepInfo,
        seed: Option<PassSeed>,
    ) -> Result<()> {
        let Some(seed) = seed else {
            return self.loss_without_gradient(model, adapted, batch, step).map(drop);
        };
        let directions = self.directions.take_sums();
        let before: Vec<(Tensor, Option<Tensor>)> = self
            .trained(adapted)
            .map(|tensor| {
                let grad = tensor.grad();
                (tensor, grad.defined().then(|| grad.copy()))
            })
            .collect();
        let evaluated = self.loss(model, adapted, batch, step, TrainPass { weight: 1.0, seed })?;
        let loss = evaluated.loss.value.shallow_clone();
        self.backward(model, adapted, batch, evaluated, &loss)?;
        // A factor of 0 would not be enough, because a hook may divide by the norm of a gradient.
        for (tensor, grad) in before {
            let mut now = tensor.grad();
            match grad {
                Some(grad) => now.f_copy_(&grad)?,
                None if now.defined() => drop(now.f_zero_()?),
                None => continue,
            };
        }
        self.directions.restore_sums(directions);
        Ok(())
    }

    /// A number that depends on all bits of the trained tensors.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn checksum(&self, adapted: &Adapted) -> Result<i64> {
        checksum(self.trained(adapted))
    }

    fn trained(&self, adapted: &Adapted) -> impl Iterator<Item = Tensor> {
        let all = adapted.parameters().into_iter().chain(self.taps.parameters());
        all.map(|(_, tensor)| tensor).filter(Tensor::requires_grad)
    }

    /// Adds the gradients of all ranks, in one operation. A parameter that has no gradient on any
    /// rank gets none.
    ///
    /// # Errors
    /// Fails if another rank has ended.
    pub fn reduce_gradients(&mut self, adapted: &Adapted, model: &Model) -> Result<()> {
        let world = model.world();
        if world.size() == 1 {
            return Ok(());
        }
        let parameters: Vec<Tensor> = self.trained(adapted).collect();
        let sums = sums_of_gradients(&parameters, world)?;
        for (parameter, sum) in parameters.iter().zip(sums) {
            let Some(sum) = sum else { continue };
            if !parameter.grad().defined() {
                // A backward pass is the only way to create a gradient.
                (parameter.f_sum(parameter.kind())? * 0.0).f_backward()?;
            }
            let _guard = tch::no_grad_guard();
            parameter.grad().f_copy_(&sum)?;
        }
        self.directions.reduce(world, model.device())
    }

    /// Lets the method modify the gradients of the trained parameters. Must be called once per
    /// optimiser step, after the last backward pass.
    ///
    /// # Errors
    /// Fails if the method returns an error.
    pub fn map_gradients(&mut self, adapted: &Adapted, step: StepInfo) -> Result<()> {
        if self.needs.parameter_grads {
            self.directions.map_gradients(self.intervention.as_ref(), adapted, step)?;
        }
        self.directions.reset();
        Ok(())
    }

    /// Registers a hook on the output `y` of an adapted module. The hook lets the method modify the
    /// gradient of `y`.
    fn hook(
        &self,
        site: &Site,
        y: &Tensor,
        batch: &PairBatch,
        step: StepInfo,
        weight: f64,
    ) -> Result<()> {
        let direction = self.directions.of_batch(site)?;
        let mut map = self.intervention.output_grad(OutputGrad {
            site: site.clone(),
            direction,
            owner: batch.row_owner()?,
            weight,
            step,
        })?;
        let clock = self.clock.clone();
        let timed = move |grad: &Tensor| clock.measure(Phase::Hooks, || map(grad));
        register_hook(y, Box::new(timed), &self.hook_errors)
    }

    /// Returns the states of the policy and the reference at a tap. If the method only uses chosen
    /// or only rejected completions, the states of the others are missing.
    fn tap_states(
        &self,
        tap: usize,
        policy: &[Tensor],
        observed: &ReferenceValues,
        batch: &PairBatch,
        model: &Model,
    ) -> Result<TapStates> {
        let (taps, needs) = (&self.taps, &self.needs);
        let pooled =
            |states: &[Tensor]| per_side(needs, |side| taps.pooled(tap, states, batch, side));
        let raw = |states: &[Tensor]| {
            per_side(needs, |side| batch.pool(&states[tap], taps.pooling, side))
        };
        let tokens =
            |states: &[Tensor]| per_side(needs, |side| taps.tokens(tap, states, batch, side));
        // If the reference did not run on this batch, use its kept states.
        let live = (!observed.states.is_empty()).then_some(&observed.states[..]);
        let kept = |side| self.reference.pooled(tap, batch, side, model);
        let of_reference = |of: &dyn Fn() -> Result<PerSide>| {
            if needs.reference_states { of().map(Some) } else { Ok(None) }
        };

        let reference = of_reference(&|| match live {
            Some(states) => pooled(states),
            None => per_side(needs, |side| taps.of_pooled(tap, &kept(side)?)),
        })?;
        let mut states = TapStates::new(taps.sites[tap].clone(), pooled(policy)?, reference);
        if needs.raw_states {
            let reference = of_reference(&|| match live {
                Some(states) => raw(states),
                None => per_side(needs, kept),
            })?;
            states = states.with_raw(raw(policy)?, reference);
        }
        if needs.states == States::PerToken {
            let reference =
                if needs.reference_states { Some(tokens(&observed.states)?) } else { None };
            states = states.with_tokens(tokens(policy)?, reference);
        }
        Ok(states)
    }

    /// Returns the policy's log-probabilities of whole sequences. `hidden` has its final hidden
    /// states, `[n hidden]`.
    fn sequence_logprobs(
        &self,
        hidden: &FinalStates,
        batch: &PairBatch,
        model: &Model,
    ) -> Result<Logprobs> {
        let of = |side| -> Result<_> {
            if !self.needs.sequence_logprobs.has(side) {
                return Ok(None);
            }
            let tokens = batch.sequence_tokens(side)?;
            let scores = model.score_tokens(hidden, &tokens.predicted, Detail::NONE, None)?;
            Ok(Some(TokenLogprobs::new(scores.logprobs, tokens.owner, tokens.counts)))
        };
        Ok(Logprobs::of_sides(Sides::try_of(of)?))
    }

    fn logprobs(
        &self,
        batch: &PairBatch,
        logps: &Tensor,
        collision: Option<&Tensor>,
        kl: Option<&Tensor>,
    ) -> Result<Logprobs> {
        let of = |side| -> Result<_> {
            if !self.needs.logprobs.has(side) {
                return Ok(None);
            }
            let mut tokens = batch.tokens_of(logps, side)?;
            let rest = |values: Option<&Tensor>| -> Result<_> {
                Ok(values.map(|v| batch.tokens_of(v, side)).transpose()?.map(|t| t.per_token))
            };
            (tokens.log_collision, tokens.kl) = (rest(collision)?, rest(kl)?);
            Ok(Some(tokens))
        };
        Ok(Logprobs::of_sides(Sides::try_of(of)?))
    }

    /// Computes the metrics `logps/*`, `logits/*`, `entropy` and `mean_token_accuracy`, as in TRL.
    /// A completion of several pairs is counted once per pair.
    fn metrics(
        &self,
        batch: &PairBatch,
        logps: &Tensor,
        stats: &TokenStats,
    ) -> Result<Vec<(String, Tensor)>> {
        let _guard = tch::no_grad_guard();
        let logps = logps.f_detach()?;
        let mut metrics = Vec::new();
        let mut entropies = Vec::new();
        for side in self.needs.logprobs.sides() {
            let name = side.name();
            metrics.push((
                format!("logps/{name}"),
                batch.tokens_of(&logps, side)?.sum().f_mean(Kind::Float)?,
            ));
            metrics.push((
                format!("logits/{name}"),
                batch.tokens_of(&stats.mean_logit, side)?.per_token.f_mean(Kind::Float)?,
            ));
            entropies.push(batch.tokens_of(&stats.entropy, side)?.per_token);
        }
        metrics.push(("entropy".to_owned(), Tensor::f_cat(&entropies, 0)?.f_mean(Kind::Float)?));
        if self.needs.logprobs.has(Side::Chosen) {
            metrics.push((
                "mean_token_accuracy".to_owned(),
                batch.tokens_of(&stats.correct, Side::Chosen)?.per_token.f_mean(Kind::Float)?,
            ));
        }
        Ok(metrics)
    }
}

/// Calls `of` for each side whose states the method uses.
fn per_side<T>(needs: &Needs, mut of: impl FnMut(Side) -> Result<T>) -> Result<PerSide<T>> {
    Ok(match needs.only {
        Some(side) => PerSide::One(side, of(side)?),
        None => PerSide::Both(Sides::try_of(of)?),
    })
}

/// Adds the gradients of all ranks. Returns `None` for a parameter without a gradient on any rank.
fn sums_of_gradients(parameters: &[Tensor], world: &World) -> Result<Vec<Option<Tensor>>> {
    let _guard = tch::no_grad_guard();
    let Some(first) = parameters.first() else { return Ok(Vec::new()) };
    let kind = match parameters.iter().any(|p| p.kind() == Kind::Double) {
        true => Kind::Double,
        false => Kind::Float,
    };
    // The flags say which parameters have a gradient.
    let mut parts = Vec::with_capacity(parameters.len() + 1);
    let mut flags = Vec::with_capacity(parameters.len());
    for parameter in parameters {
        let grad = parameter.grad();
        flags.push(f32::from(u8::from(grad.defined())));
        parts.push(match grad.defined() {
            true => grad.f_to_kind(kind)?.f_reshape([-1])?,
            false => Tensor::f_zeros([parameter.numel() as i64], (kind, parameter.device()))?,
        });
    }
    parts.push(Tensor::from_slice(&flags).f_to_device(first.device())?.f_to_kind(kind)?);
    let flat = Tensor::f_cat(&parts, 0)?;
    world.sum(&flat)?;
    let mut sizes: Vec<i64> = parameters.iter().map(|p| p.numel() as i64).collect();
    sizes.push(flags.len() as i64);
    let mut sums = flat.f_split_with_sizes(sizes, 0)?;
    let flags = sums.pop().ok_or_else(|| Error::internal("no gradients"))?;
    let flags = Vec::<f64>::try_from(flags.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?)?;
    let of = |((sum, flag), parameter): ((Tensor, f64), &Tensor)| -> Result<Option<Tensor>> {
        Ok(if flag > 0.0 { Some(sum.f_reshape(parameter.size())?) } else { None })
    };
    sums.into_iter().zip(flags).zip(parameters).map(of).collect()
}
