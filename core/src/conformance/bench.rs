//! A case put together on a model of its own.

use tch::{Kind, Tensor};

use super::stand_ins::Untransformed;
use super::{Case, fixture};
use crate::api::{Adapter, Init, Pooling, Site, States, Transform, TransformCx};
use crate::error::Result;
use crate::model::{Adapted, Model};
use crate::train::{Objective, Taps};

/// A case put together on a model of its own.
pub(crate) struct Bench {
    pub model: Model,
    /// All that the model is made of, by name, sharing its memory.
    pub frozen: Vec<(String, Tensor)>,
    pub adapter: Box<dyn Adapter>,
    pub adapted: Adapted,
    pub objective: Objective,
}

impl Bench {
    /// Builds the case with the given seed.
    pub fn new(case: &Case, seed: u64) -> Result<Self> {
        let weights = fixture::weights(fixture::BLOCKS, Kind::Double);
        let frozen = weights.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
        let model = fixture::of_weights(fixture::BLOCKS, weights, Kind::Double)?;
        let intervention = case.intervention.entry.build(&case.intervention.json, model.info())?;
        let adapter = case.adapter.entry.build(&case.adapter.json)?;
        let mut taps = Taps { sites: Vec::new(), pooling: Pooling::Completion, transforms: Vec::new(), transform_of: Vec::new() };
        if intervention.needs().states > States::None {
            // The last one is after the final norm, and reached by whatever any block does.
            taps.sites = vec![Site::Residual(1), Site::Residual(model.info().layers)];
            let (embedding, unembedding) = model.embeddings();
            for (i, site) in taps.sites.iter().enumerate() {
                let cx = TransformCx { site, width: model.info().width(site)?, embedding, unembedding };
                let transform: Box<dyn Transform> = match &case.transform {
                    None => Box::new(Untransformed {}),
                    Some(method) => {
                        let mut init = Init::new(seed, &format!("transform.{i}"), Kind::Double, model.device());
                        method.entry.build(&method.json, &cx, &mut init)?
                    }
                };
                taps.transforms.push(transform);
                taps.transform_of.push(i);
            }
        }
        let mut objective = Objective::new(intervention, taps);
        let adapted = Adapted::attach(adapter.as_ref(), &model, objective.depth(&model)?, seed)?;
        objective.adapted(&adapted);
        Ok(Self { model, frozen, adapter, adapted, objective })
    }

    /// All that is trained, by name: the adapter's tensors and the transforms'.
    pub fn named(&self) -> Vec<(String, Tensor)> {
        let of_transforms = self.objective.taps().parameters().into_iter().map(|(name, t)| (format!("transform.{name}"), t));
        self.adapted.parameters().into_iter().chain(of_transforms).collect()
    }

    /// All that is trained.
    pub fn trained(&self) -> Vec<Tensor> {
        self.named().into_iter().map(|(_, t)| t).collect()
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
