//! Tiny models of every architecture and rope type, with reference values from transformers.
//!
//! `model/fixtures/make.py` writes the reference values. The weights are not stored: the script and
//! this module compute each element from the tensor's name and the element's position. Tests use
//! the models. `reprpo selftest` uses them if no other model is available.

mod numbers;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::{ARCHITECTURES, Model};
use crate::error::{Error, Result};
use crate::text::TokenPair;
use numbers::numbers;

/// The configuration of a model, and its weights by name.
pub type ConfigAndWeights = (Value, IndexMap<String, Tensor>);

/// The contents of `architectures.json`, which `make.py` writes.
#[derive(Debug, Deserialize)]
pub struct Fixture {
    pairs: Vec<Pair>,
    tensors: IndexMap<String, IndexMap<String, Vec<i64>>>,
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
struct Pair {
    prompt: Vec<i64>,
    chosen: Vec<i64>,
    rejected: Vec<i64>,
}

/// A model with one architecture and one rope type, and reference values from transformers.
#[derive(Clone, Debug, Deserialize)]
pub struct Case {
    /// The `model_type` of the configuration.
    pub architecture: String,
    /// The model's rope type.
    pub rope: String,
    /// The content of the model's `config.json`.
    pub config: Value,
    /// Σ log p of the chosen and of the rejected completion of each pair, computed one sequence at
    /// a time.
    pub scores: Vec<[f64; 2]>,
    /// Tokens that the model generates from the first pair's prompt, by greedy decoding with a
    /// cache. `None` if no tokens are stored for this case.
    pub generated: Option<Vec<i64>>,
}

impl Fixture {
    /// Parses `architectures.json`, which is embedded in the program.
    ///
    /// # Errors
    /// Fails if the file does not have the fields of this struct.
    pub fn read() -> Result<Self> {
        let text = include_str!("../fixtures/architectures.json");
        serde_json::from_str(text).map_err(|e| {
            Error::internal("cannot parse the built-in `architectures.json`").because(e)
        })
    }

    /// The pairs for which every case has scores.
    pub fn pairs(&self) -> Vec<TokenPair> {
        let pair = |(index, pair): (usize, &Pair)| {
            let Pair { prompt, chosen, rejected } = pair;
            TokenPair {
                index,
                row: index,
                prompt: prompt.clone(),
                chosen: chosen.clone(),
                rejected: rejected.clone(),
            }
        };
        self.pairs.iter().enumerate().map(pair).collect()
    }

    /// All cases.
    pub fn cases(&self) -> &[Case] {
        &self.cases
    }

    /// Returns the case for an architecture and a rope type.
    ///
    /// # Errors
    /// Fails if there is no such case.
    pub fn case(&self, architecture: &str, rope: &str) -> Result<&Case> {
        let found = self.cases.iter().find(|c| c.architecture == architecture && c.rope == rope);
        found.ok_or_else(|| {
            Error::internal(format!(
                "there is no tiny model of `{architecture}` with `{rope}` positions"
            ))
        })
    }

    /// Returns the `model_type` of each supported architecture, with the configuration and the
    /// float32 weights of its tiny model. An architecture without a tiny model has an error
    /// instead.
    pub fn architectures(&self) -> impl Iterator<Item = (&'static str, Result<ConfigAndWeights>)> {
        ARCHITECTURES.iter().map(|(name, ..)| (*name, self.architecture(name)))
    }

    /// The configuration and the float32 weights of a tiny model of the architecture `name`.
    ///
    /// # Errors
    /// Fails if the architecture does not have a tiny model.
    pub fn architecture(&self, name: &str) -> Result<ConfigAndWeights> {
        // The multimodal model contains the text model. Both models use the same tensor names.
        const MULTIMODAL: (&str, &str) = ("gemma3", "gemma3_text");
        if name == MULTIMODAL.0 {
            let (config, tensors) = self.architecture(MULTIMODAL.1)?;
            return Ok((json!({ "model_type": name, "text_config": config }), tensors));
        }
        Ok((self.case(name, "default")?.config.clone(), self.tensors(name, Kind::Float)?))
    }

    /// The weights of a tiny model of an architecture, by their names in transformers.
    ///
    /// # Errors
    /// Fails if the architecture does not have a tiny model.
    pub fn tensors(&self, architecture: &str, kind: Kind) -> Result<IndexMap<String, Tensor>> {
        let shapes = self.tensors.get(architecture).ok_or_else(|| {
            Error::internal(format!("there is no tiny model of `{architecture}`"))
        })?;
        Ok(shapes
            .iter()
            .map(|(name, shape)| (name.clone(), weight(name, shape).to_kind(kind)))
            .collect())
    }

    /// Builds the model of `case` on `device`, in the precision `kind`.
    ///
    /// # Errors
    /// Fails if the configuration is not supported, or if a tensor is missing or has the wrong
    /// shape.
    pub fn model(&self, case: &Case, kind: Kind, device: Device) -> Result<Model> {
        let tensors = self
            .tensors(&case.architecture, kind)?
            .into_iter()
            .map(|(name, t)| Ok((name, t.f_to_device(device)?)));
        Model::from_tensors(&case.config, tensors.collect::<Result<_>>()?, kind, device)
    }
}

/// Computes the weight tensor `name` in float32. Each element only depends on the tensor's name and
/// on the element's position.
pub fn weight(name: &str, shape: &[i64]) -> Tensor {
    Tensor::from_slice(&numbers(name, shape)).reshape(shape)
}
