//! Tiny models of every architecture and rope type, with the values that transformers computes.
//!
//! `model/fixtures/make.py` writes these values. The weights are not stored: the script and the
//! tests compute each number from its tensor's name and its position.

use std::path::Path;

use indexmap::IndexMap;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::numbers::numbers;
use crate::model::Model;
use crate::text::TokenPair;

/// The contents of `architectures.json`, which `make.py` writes.
pub struct Fixture(Value);

/// One architecture with one rope type, and the values that transformers computes for it.
pub struct Case<'a> {
    pub architecture: &'a str,
    pub rope: &'a str,
    pub config: &'a Value,
    /// Σ log p of chosen and rejected for each pair. Every sequence is computed by itself.
    pub scores: Vec<[f64; 2]>,
    /// Tokens of greedy decoding from the first pair's prompt, with a cache.
    pub generated: Option<Vec<i64>>,
}

impl<'a> Case<'a> {
    fn of(c: &'a Value) -> Self {
        let number = |v: &Value| v.as_f64().unwrap();
        Case {
            architecture: c["architecture"].as_str().unwrap(),
            rope: c["rope"].as_str().unwrap(),
            config: &c["config"],
            scores: c["scores"].as_array().unwrap().iter().map(|s| [number(&s[0]), number(&s[1])]).collect(),
            generated: c.get("generated").map(ids),
        }
    }
}

fn ids(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect()
}

impl Fixture {
    pub fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/fixtures/architectures.json");
        Self(serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
    }

    pub fn pairs(&self) -> Vec<TokenPair> {
        let pairs = self.0["pairs"].as_array().unwrap().iter().enumerate();
        let pair = |(index, p): (usize, &Value)| {
            let [prompt, chosen, rejected] = ["prompt", "chosen", "rejected"].map(|part| ids(&p[part]));
            TokenPair { index, row: index, prompt, chosen, rejected }
        };
        pairs.map(pair).collect()
    }

    pub fn cases(&self) -> Vec<Case<'_>> {
        self.0["cases"].as_array().unwrap().iter().map(Case::of).collect()
    }

    pub fn case(&self, architecture: &str, rope: &str) -> Case<'_> {
        self.cases().into_iter().find(|c| c.architecture == architecture && c.rope == rope).unwrap()
    }

    /// The weights of an architecture by their names in transformers.
    pub fn tensors(&self, architecture: &str, kind: Kind) -> IndexMap<String, Tensor> {
        let shapes = self.0["tensors"][architecture].as_object().unwrap();
        shapes.iter().map(|(name, shape)| (name.clone(), weight(name, &ids(shape)).to_kind(kind))).collect()
    }

    pub fn model(&self, case: &Case<'_>, kind: Kind) -> Model {
        Model::from_tensors(case.config, self.tensors(case.architecture, kind), kind, Device::Cpu).unwrap()
    }
}

/// The values of [`numbers`] as a tensor.
pub fn weight(name: &str, shape: &[i64]) -> Tensor {
    Tensor::from_slice(&numbers(name, shape)).reshape(shape)
}
