//! What every method promises, as one table that a method joins by being registered.
//!
//! A [`Case`] is an intervention with an adapter (and a transform) on a small float64 model. Each [`Invariant`] is a
//! statement about a case that holds, does not apply, or is violated.

mod fixture;
mod invariants;

use tch::{Kind, Tensor};

pub use fixture::{model, pairs};
pub use invariants::INVARIANTS;

use crate::api::{Adapter, Around, Init, Pooling, Site, States, Transform, TransformCx};
use crate::error::{Error, Result};
use crate::model::{Adapted, Model};
use crate::registry::{Entry, Make};
use crate::train::{Objective, Taps};

/// A method with its default configuration, or with the fields of this JSON object set.
#[derive(Clone, Copy, Debug)]
pub struct Method {
    /// Which one.
    pub entry: &'static Entry,
    /// The fields that are not at their defaults.
    pub json: &'static str,
}

impl Method {
    /// As it is when nothing is said.
    pub fn default_of(entry: &'static Entry) -> Self {
        Self { entry, json: "{}" }
    }
}

/// What is put together.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The objective.
    pub intervention: Method,
    /// The adapter.
    pub adapter: Method,
    /// The transform at the taps; none: the states as they are.
    pub transform: Option<Method>,
}

impl Case {
    /// Whether the objective compares states, so that taps and transforms matter to it.
    pub fn reads_states(&self) -> bool {
        Bench::new(self, 0).is_ok_and(|bench| bench.objective.needs().states > States::None)
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} × {}", self.intervention.entry.about.name, self.adapter.entry.about.name)?;
        match &self.transform {
            Some(t) => write!(f, " × {}{}", t.entry.about.name, if t.json == "{}" { "" } else { t.json }),
            None => Ok(()),
        }
    }
}

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The statement is true of the case.
    Holds,
    /// It says nothing about such a case, for this reason.
    DoesNotApply(&'static str),
    /// It is false: what was found.
    Violated(String),
}

impl Outcome {
    /// Holds where `error` is at most `limit`.
    fn within(what: &str, error: f64, limit: f64) -> Self {
        // Written so that NaN is a violation.
        if error <= limit { Outcome::Holds } else { Outcome::Violated(format!("{what} off by {error:.2e}, more than {limit:.0e}")) }
    }
}

/// A statement about cases.
#[derive(Clone, Copy)]
pub struct Invariant {
    /// The statement.
    pub name: &'static str,
    /// Whether it holds.
    pub check: fn(&Case) -> Result<Outcome>,
}

impl std::fmt::Debug for Invariant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// The states as they are.
struct Untransformed;

impl Transform for Untransformed {
    fn forward(&self, h: &Tensor, _: &Around) -> Result<Tensor> {
        Ok(h.shallow_clone())
    }

    fn linear(&self) -> bool {
        true
    }

    fn orthogonal(&self) -> bool {
        true
    }
}

/// A case put together on a model of its own.
pub(crate) struct Bench {
    pub model: Model,
    pub adapter: Box<dyn Adapter>,
    pub adapted: Adapted,
    pub objective: Objective,
}

impl Bench {
    /// Builds the case with the given seed.
    pub fn new(case: &Case, seed: u64) -> Result<Self> {
        let wrong = |m: &Method| Error::internal(format!("`{}` is of another kind", m.entry.about.name));
        let model = fixture::model(Kind::Double)?;
        let Make::Intervention(build) = case.intervention.entry.make else { return Err(wrong(&case.intervention)) };
        let intervention = build(case.intervention.json, model.info())?;
        let Make::Adapter { build, .. } = case.adapter.entry.make else { return Err(wrong(&case.adapter)) };
        let adapter = build(case.adapter.json)?;
        let mut taps = Taps { sites: Vec::new(), pooling: Pooling::Completion, transforms: Vec::new(), transform_of: Vec::new() };
        if intervention.needs().states > States::None {
            // The last one is after the final norm, and reached by whatever any block does.
            taps.sites = vec![Site::Residual(1), Site::Residual(model.info().layers)];
            let (embedding, unembedding) = model.embeddings();
            for (i, site) in taps.sites.iter().enumerate() {
                let cx = TransformCx { site, width: model.info().width(site)?, embedding, unembedding };
                let transform: Box<dyn Transform> = match &case.transform {
                    None => Box::new(Untransformed),
                    Some(method) => {
                        let Make::Transform(build) = method.entry.make else { return Err(wrong(method)) };
                        build(method.json, &cx, &mut Init::new(seed, &format!("transform.{i}"), Kind::Double, model.device()))?
                    }
                };
                taps.transforms.push(transform);
                taps.transform_of.push(i);
            }
        }
        let mut objective = Objective::new(intervention, taps);
        let adapted = Adapted::attach(adapter.as_ref(), &model, objective.depth(&model)?, seed)?;
        objective.adapted(&adapted);
        Ok(Self { model, adapter, adapted, objective })
    }

    /// All that is trained: the adapter's tensors and the transforms'.
    pub fn trained(&self) -> Vec<Tensor> {
        self.adapted.parameters().into_iter().chain(self.objective.taps().parameters()).map(|(_, t)| t).collect()
    }

    /// Moves everything that is trained away from its start, where much is 0 by design.
    pub fn disturb(&self) {
        let _guard = tch::no_grad_guard();
        let mut init = Init::new(7, "disturbance", Kind::Double, self.model.device());
        for (i, mut tensor) in self.trained().into_iter().enumerate() {
            let noise = init.normal(&i.to_string(), &tensor.size(), 0.05);
            let _ = tensor.g_add_(&noise);
        }
    }
}
