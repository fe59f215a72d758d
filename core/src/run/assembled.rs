//! Assembles the adapter, objective and optimiser that train a model, both for runs and for
//! conformance checks.

use std::rc::Rc;

use tch::Tensor;

use super::adapter::AdapterChoice;
use crate::api::{Intervention, Needs, Site, Statistics};
use crate::config::{ReferenceModel, TrainConfig};
use crate::error::Result;
use crate::guard::faults;
use crate::model::edits::Edits;
use crate::model::{Adapted, Model};
use crate::reference::{FitSites, ReferenceCache};
use crate::text::TokenPair;
use crate::train::{AdamW, Group, Objective, Reference, Taps, leave_flat_start};

/// The adapter, objective and optimiser of a run, ready for the first step.
pub struct Assembled {
    /// The adapter that is trained.
    pub adapted: Adapted,
    /// The adapter that training started from; `None` if training started from the base model.
    pub initial: Option<Rc<Adapted>>,
    /// The objective, with its taps, their transforms and the reference.
    pub objective: Objective,
    /// The optimiser for all trained parameters.
    pub optimiser: AdamW,
    /// True if the policy equals the reference until its first update.
    pub starts_at_reference: bool,
    /// Standard deviation of the noise that was added to the adapter; `None` if no noise was added.
    /// Noise is added if the loss has zero gradient at the adapter's initial values.
    pub noise: Option<f64>,
    /// The statistics of the training data; `None` if the method computes none, or has not computed
    /// them yet.
    pub statistics: Option<Statistics>,
}

/// The inputs to [`Assembled::new`], other than the model and the training configuration.
pub struct Parts<'a> {
    /// The training objective.
    pub intervention: Box<dyn Intervention>,
    /// The taps and their transforms.
    pub taps: Taps,
    /// The adapter.
    pub adapter: &'a AdapterChoice,
    /// The cache of the reference's values.
    pub cache: ReferenceCache,
    /// True if noise is added to the adapter when the loss has zero gradient at the adapter's
    /// initial values.
    pub leaves_flat_start: bool,
}

impl Assembled {
    /// Assembles the adapter, objective and optimiser for `model`.
    ///
    /// # Errors
    /// Fails if the needs that the method declares contradict each other, if the adapter does not
    /// fit the model, or if a plugin returns an error.
    pub fn new(model: &Model, parts: Parts<'_>, train: &TrainConfig) -> Result<Self> {
        let Parts { intervention, taps, adapter, cache, leaves_flat_start } = parts;
        let needs = intervention.needs();
        let blocks = depth(&needs, &taps.sites, model)?;
        let adapted = adapter.attach(model, blocks, train.seed)?;
        let initial = if adapter.values.is_some() {
            Some(Rc::new(adapter.attach(model, blocks, train.seed)?))
        } else {
            None
        };
        let reference = initial.clone().filter(|_| train.reference == ReferenceModel::Start);
        // True if the policy initially equals the reference.
        let at_reference = if initial.is_some() {
            reference.is_some()
        } else {
            adapter.adapter.starts_as_identity()
        };
        let noise = if at_reference && leaves_flat_start {
            leave_flat_start(&needs, &adapted, train)?
        } else {
            None
        };
        let optimiser = optimiser(&adapted, &taps, train);
        let mut objective =
            Objective::new(intervention, taps, Reference::new(reference, cache), &adapted)?;
        objective.set_checkpointing(train.checkpointing, &adapted)?;
        faults::check()?;
        let starts_at_reference = at_reference && noise.is_none();
        Ok(Self {
            adapted,
            initial,
            objective,
            optimiser,
            starts_at_reference,
            noise,
            statistics: None,
        })
    }

    /// Passes the statistics of the training data to the method, and adds its edits of the residual
    /// stream to the adapter. Every run does this once before its first step.
    ///
    /// # Errors
    /// Fails if the method rejects the statistics, or if an edit does not fit the model.
    pub fn install(&mut self, statistics: Option<Statistics>, model: &Model) -> Result<()> {
        let method = self.objective.intervention();
        if let Some(statistics) = &statistics {
            method.set_statistics(statistics)?;
        }
        let edits = Edits::new(method.edits()?, model.info(), model.kind(), model.device())?;
        self.adapted.set_edits(edits);
        self.statistics = statistics;
        Ok(())
    }

    /// Computes the statistics of the base model from a few pairs and [installs](Self::install)
    /// them. For places that imitate the steps of a run. `sites` is `None` if the method computes
    /// no statistics.
    ///
    /// # Errors
    /// Fails in the same cases as `install`, or if memory runs out.
    pub fn install_from(
        &mut self,
        pairs: &[&TokenPair],
        sites: Option<&FitSites>,
        model: &Model,
        seed: u64,
    ) -> Result<()> {
        let statistics = match sites {
            Some(sites) => {
                let states = sites.states(model, None, pairs, seed)?;
                Some(self.objective.intervention().fit(&states)?)
            }
            None => None,
        };
        self.install(statistics, model)
    }

    /// All trained parameters of the adapter and the transforms, by name.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let scoped =
            |scope: &'static str| move |(name, t): (String, Tensor)| (format!("{scope}.{name}"), t);
        let of_adapter = self.adapted.parameters().into_iter().map(scoped("adapter"));
        of_adapter
            .chain(self.objective.taps().parameters().into_iter().map(scoped("transform")))
            .collect()
    }
}

/// Number of blocks that a training step must run. This depends on the sites that are read, and on
/// the other values that the method needs.
fn depth(needs: &Needs, sites: &[Site], model: &Model) -> Result<usize> {
    // A method that is only evaluated reads no states. It still needs every block, because the
    // adapter must be attached to all blocks.
    model.depth(sites, needs.logprobs.any() || needs.sequence_nll || needs.evaluate_only)
}

/// Creates the optimiser for the adapter. If `train.transform` is true, it also trains the
/// transforms.
fn optimiser(adapted: &Adapted, taps: &Taps, train: &TrainConfig) -> AdamW {
    let mut groups = vec![Group { parameters: adapted.parameters(), scale: 1.0 }];
    let transform = taps.parameters();
    if train.transform {
        groups.push(Group {
            parameters: transform,
            scale: train.transform_lr.map_or(1.0, |lr| lr / train.lr),
        });
    } else {
        for (_, tensor) in transform {
            let _ = tensor.set_requires_grad(false);
        }
    }
    AdamW::new(groups, train)
}
