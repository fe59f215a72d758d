//! Builds a small model with the methods of a `Case`. The invariants are checked on this model.

use indexmap::IndexMap;
use tch::{Kind, Tensor};

use super::stand_ins::{self, Untransformed};
use super::{Case, fixture};
use crate::api::{Adapter, Init, ModelInfo, Pooling, Site, Tap, TransformCx};
use crate::config::TrainConfig;
use crate::error::Result;
use crate::model::{Adapted, Model};
use crate::reference::{FitSites, ReferenceCache};
use crate::run::AdapterChoice;
use crate::run::assembled::{Assembled, Parts};
use crate::train::{Objective, Taps};

/// The tap for interventions without a tap of their own. Its last site is after the final norm,
/// where the output of every block has an effect.
struct FirstAndLast;

impl Tap for FirstAndLast {
    fn sites(&self, model: &ModelInfo) -> Result<Vec<Site>> {
        Ok(vec![Site::Residual(1), Site::Residual(model.layers)])
    }

    fn pooling(&self) -> Pooling {
        Pooling::Completion
    }
}

/// A small model with the methods of one case. Each bench has its own copy of the model.
pub(crate) struct Bench {
    pub model: Model,
    /// All weights of the model by name. They share memory with the model.
    pub frozen: Vec<(String, Tensor)>,
    pub adapter: Box<dyn Adapter>,
    pub adapted: Adapted,
    pub objective: Objective,
    /// The sites whose states the method sees before the first step.
    pub fit_sites: Option<FitSites>,
}

impl Bench {
    /// Builds the case with the given seed. The saved adapters that the adapter is made of are
    /// replaced with stand-ins.
    pub fn new(case: &Case, seed: u64) -> Result<Self> {
        Self::build(case, seed, None)
    }

    /// Builds the case with an adapter that was loaded from a file with these values.
    pub fn loaded(case: &Case, seed: u64, values: IndexMap<String, Tensor>) -> Result<Self> {
        Self::build(case, seed, Some(values))
    }

    fn build(case: &Case, seed: u64, values: Option<IndexMap<String, Tensor>>) -> Result<Self> {
        let weights = fixture::weights(fixture::BLOCKS, Kind::Double);
        let frozen = weights.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
        let model = fixture::of_weights(fixture::BLOCKS, weights, Kind::Double)?;
        let intervention = case.intervention.entry.build(&case.intervention.json, model.info())?;
        let tap = intervention.tap().unwrap_or_else(|| Box::new(FirstAndLast));
        let train = TrainConfig { seed, ..TrainConfig::default() };
        let build = |cx: &TransformCx<'_>, init: &mut Init| match &case.transform {
            None => Ok(Box::new(Untransformed {}) as _),
            Some(method) => method.entry.build(&method.json, cx, init),
        };
        let needs = intervention.needs();
        let taps = Taps::build(tap.as_ref(), &needs, &model, &train, build)?;
        let adapter = AdapterChoice::of_new(case.adapter.entry, &case.adapter.json)?;
        let adapter = match values {
            Some(values) => adapter.with_values(values),
            None => {
                let sources = 0..adapter.adapter.sources().len();
                let stand_ins =
                    sources.map(|i| saved_stand_in(&model, i)).collect::<Result<_>>()?;
                adapter.with_sources(stand_ins)
            }
        };
        // The loss may be flat at the initial values. Checks that need a nonzero gradient call
        // `disturb` or `leave_flat_start`.
        let parts = Parts {
            intervention,
            taps,
            adapter: &adapter,
            cache: ReferenceCache::default(),
            leaves_flat_start: false,
        };
        let sites = match needs.fit {
            true => Some(FitSites::new(tap.as_ref(), model.info())?),
            false => None,
        };
        let mut assembled = Assembled::new(&model, parts, &train)?;
        let pairs = fixture::pairs();
        assembled.install_from(&pairs.iter().collect::<Vec<_>>(), sites.as_ref(), &model, seed)?;
        let Assembled { adapted, objective, .. } = assembled;
        let adapter = adapter.adapter;
        Ok(Self { model, frozen, adapter, adapted, objective, fit_sites: sites })
    }

    /// True if the method or the adapter cannot be trained.
    pub fn trains_nothing(&self) -> bool {
        self.objective.needs().evaluate_only || !self.adapter.is_trainable()
    }

    /// Returns all trained tensors of the adapter and the transforms by name.
    pub fn named(&self) -> Vec<(String, Tensor)> {
        let of_transforms = self
            .objective
            .taps()
            .parameters()
            .into_iter()
            .map(|(name, t)| (format!("transform.{name}"), t));
        self.adapted.parameters().into_iter().chain(of_transforms).collect()
    }

    /// Returns all trained tensors.
    pub fn trained(&self) -> Vec<Tensor> {
        self.named().into_iter().map(|(_, t)| t).collect()
    }

    /// Adds noise to all trained tensors, because many of them start at 0.
    pub fn disturb(&self) {
        let _guard = tch::no_grad_guard();
        let mut init = Init::new(7, "disturbance", Kind::Double, self.model.device());
        for (i, mut tensor) in self.trained().into_iter().enumerate() {
            let noise = init.normal(&i.to_string(), &tensor.size(), 0.05);
            let _ = tensor.g_add_(&noise);
        }
    }
}

/// Returns the stand-in adapter as if it had been saved, with random values that depend on `index`.
fn saved_stand_in(model: &Model, index: usize) -> Result<AdapterChoice> {
    let choice = AdapterChoice::of_new(&stand_ins::ADAPTER, "{}")?;
    let attached = choice.attach(model, model.info().layers, 0)?;
    let mut init = Init::new(index as u64, "source", Kind::Double, model.device());
    let values = attached
        .tensors()
        .into_iter()
        .map(|(name, t)| {
            let value = init.normal(&name, &t.size(), 0.05).detach();
            (name, value)
        })
        .collect();
    Ok(choice.with_values(values))
}
