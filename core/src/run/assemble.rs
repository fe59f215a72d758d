//! The second phase of a run: the model with everything that trains it. An assembled run is complete once it exists.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use tch::{Kind, Tensor};

use super::adapter::AdapterChoice;
use super::checkpoint;
use super::plan::Plan;
use crate::api::{Init, Intervention, Needs, Site, States, Tap, Transform, TransformCx};
use crate::config::{ReferenceModel, TrainConfig};
use crate::error::{Context, Result};
use crate::fingerprint;
use crate::model::{Adapted, Model};
use crate::plugin::faults;
use crate::train::{AdamW, Group, Objective, Reference, Taps, leave_flat_start};

/// Everything that trains a model, ready for the first step.
pub struct Assembled {
    /// The adapter that is trained.
    pub adapted: Adapted,
    /// The adapter that training started from; `None` if it started from the base model.
    pub initial: Option<Rc<Adapted>>,
    /// The objective, with its taps, their transforms and the reference.
    pub objective: Objective,
    /// The optimiser of all trained parameters.
    pub optimiser: AdamW,
    /// Standard deviation of the noise that moved the adapter off a flat start; `None` if it was not moved.
    pub noise: Option<f64>,
}

/// What an assembled run is made of, besides the model.
pub struct Parts<'a> {
    /// The training objective.
    pub intervention: Box<dyn Intervention>,
    /// The taps and their transforms.
    pub taps: Taps,
    /// The adapter.
    pub adapter: &'a AdapterChoice,
    /// The names of the pairs in a checkpoint, by index.
    pub names: BTreeMap<usize, String>,
    /// True to move the adapter off a start where the loss is flat.
    pub leaves_flat_start: bool,
}

impl Assembled {
    /// Puts the parts together on `model`.
    ///
    /// # Errors
    /// Fails if the method's needs contradict each other, if the adapter does not fit the model, or if a plugin failed.
    pub fn new(model: &Model, parts: Parts<'_>, train: &TrainConfig) -> Result<Self> {
        let Parts { intervention, taps, adapter, names, leaves_flat_start } = parts;
        let needs = intervention.needs();
        let blocks = depth(&needs, &taps.sites, model)?;
        let adapted = adapter.attach(model, blocks, train.seed)?;
        let initial = if adapter.values.is_some() { Some(Rc::new(adapter.attach(model, blocks, train.seed)?)) } else { None };
        let reference = initial.clone().filter(|_| train.reference == ReferenceModel::Start);
        // Whether training starts at the reference itself.
        let at_reference = if initial.is_some() { reference.is_some() } else { adapter.adapter.starts_as_identity() };
        let noise = if at_reference && leaves_flat_start { leave_flat_start(&needs, &adapted, train)? } else { None };
        let optimiser = optimiser(&adapted, &taps, train);
        let objective = Objective::new(intervention, taps, Reference::new(reference, names), &adapted)?;
        faults::check()?;
        Ok(Self { adapted, initial, objective, optimiser, noise })
    }

    /// All trained parameters: those of the adapter, and those of the transforms.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let scoped = |scope: &'static str| move |(name, t): (String, Tensor)| (format!("{scope}.{name}"), t);
        let of_adapter = self.adapted.parameters().into_iter().map(scoped("adapter"));
        of_adapter.chain(self.objective.taps().parameters().into_iter().map(scoped("transform"))).collect()
    }
}

/// Assembles the planned run. If it is resumed, it is as its checkpoint left it.
///
/// # Errors
/// Fails if the checkpoint does not fit, or as [`Assembled::new`] does.
pub fn assemble(plan: &mut Plan<'_>) -> Result<Assembled> {
    let (intervention, taps) = plan.take_method()?;
    let (train, model) = (&plan.experiment.train, &plan.session.model);
    let parts =
        Parts { intervention, taps, adapter: &plan.adapter, names: fingerprint::pair_names(&plan.pairs.pairs), leaves_flat_start: plan.checkpoint.is_none() };
    let mut run = Assembled::new(model, parts, train)?;
    if let Some(resumed) = &plan.checkpoint {
        checkpoint::restore(&plan.folder, resumed.step, &mut run, model.device(), &plan.fingerprints)
            .within(|| format!("cannot resume the run in `{}`", plan.folder.display()))?;
    }
    Ok(run)
}

/// Number of blocks that a step runs for a method with these needs that reads states at `sites`.
fn depth(needs: &Needs, sites: &[Site], model: &Model) -> Result<usize> {
    // A method that trains nothing reads nothing, and its adapter is one of the whole model.
    model.depth(sites, needs.logprobs.any() || needs.sequence_nll || needs.evaluate_only)
}

/// The sites of `tap`, each with a transform that `build` makes, or with one for all sites of the same width. There are none if
/// the method does not need states.
///
/// # Errors
/// Fails if the model does not have a site, or if `build` fails.
pub fn taps(
    tap: &dyn Tap,
    needs: &Needs,
    model: &Model,
    train: &TrainConfig,
    build: impl Fn(&TransformCx<'_>, &mut Init) -> Result<Box<dyn Transform>>,
) -> Result<Taps> {
    let kind = if model.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    let (embedding, unembedding) = model.embeddings();
    let (mut transforms, mut transform_of, mut by_width) = (Vec::new(), Vec::new(), HashMap::new());
    let sites = if needs.states == States::None { Vec::new() } else { tap.sites(model.info())? };
    for site in &sites {
        let width = model.info().width(site)?;
        if let Some(shared) = by_width.get(&width).filter(|_| train.share_transform) {
            transform_of.push(*shared);
            continue;
        }
        let number = transforms.len();
        let cx = TransformCx { model: model.info(), site, width, embedding, unembedding };
        let mut init = Init::new(train.seed, &format!("transform.{number}"), kind, model.device());
        transforms.push(build(&cx, &mut init)?);
        transform_of.push(number);
        by_width.insert(width, number);
    }
    Ok(Taps { sites, pooling: tap.pooling(), token_pooling: tap.token_pooling(), transforms, transform_of })
}

/// The optimiser of the adapter and, unless `train.transform` is false, of the transforms.
fn optimiser(adapted: &Adapted, taps: &Taps, train: &TrainConfig) -> AdamW {
    let mut groups = vec![Group { parameters: adapted.parameters(), scale: 1.0 }];
    let transform = taps.parameters();
    if train.transform {
        groups.push(Group { parameters: transform, scale: train.transform_lr.map_or(1.0, |lr| lr / train.lr) });
    } else {
        for (_, tensor) in transform {
            let _ = tensor.set_requires_grad(false);
        }
    }
    AdamW::new(groups, train)
}
