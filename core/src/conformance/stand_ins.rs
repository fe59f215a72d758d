//! Stand-ins: one simple method of each kind, to combine with the method under test. They are not
//! registered.
//!
//! The stand-in intervention reads both log-probabilities and states, and the stand-in adapter can
//! represent any change to a linear module. Therefore, the checks can detect every effect of the
//! method under test.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::api::{
    AdaptedLinear, Adapter, AdapterPlugin, Around, Axis, Completions, Dataset, DatasetPlugin,
    Frozen, Init, Intervention, InterventionPlugin, Layers, LinearSite, Loss, ModelInfo, Needs,
    PairIter, Pairs, Parameter, PeftConfig, Plugin, Pooling, PreferencePair, Sides, Site,
    SplitInfo, States, StepInfo, Tap, TapPlugin, TapStates, TargetModules, Targets, Transform,
    TransformCx, TransformPlugin,
};
use crate::error::{Error, Result};
use crate::registry::{
    AdapterEntry, DatasetEntry, Entry, InterventionEntry, TapEntry, TransformEntry,
};

/// The name of all stand-ins.
const NAME: &str = "stand-in";
const ORIGIN: &str = env!("CARGO_PKG_NAME");
const VERSION: &str = env!("CARGO_PKG_VERSION");
const REFERENCE: &str = "this project's conformance tests";

/// The stand-in intervention.
pub static INTERVENTION: InterventionEntry =
    InterventionEntry::of::<MarginAndStates>(ORIGIN, VERSION);
/// The stand-in adapter.
pub static ADAPTER: AdapterEntry = AdapterEntry::of::<FullChange>("STAND_IN", ORIGIN, VERSION);
/// The stand-in transform.
pub static TRANSFORM: TransformEntry = TransformEntry::of::<Untransformed>(ORIGIN, VERSION);
/// The stand-in tap.
pub static TAP: TapEntry = TapEntry::of::<HiddenStates>(ORIGIN, VERSION);
/// The stand-in data set.
pub static DATASET: DatasetEntry = DatasetEntry::of::<ThreePairs>(ORIGIN, VERSION);

/// All stand-ins.
pub static ALL: [Entry; 5] = [
    Entry::Intervention(&INTERVENTION),
    Entry::Adapter(&ADAPTER),
    Entry::Transform(&TRANSFORM),
    Entry::Tap(&TAP),
    Entry::Dataset(&DATASET),
];

/// A logistic loss of the margin, plus the distance of the policy's states from the reference's
/// chosen states.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MarginAndStates {
    /// β: scale of the margin, per nat.
    beta: f64,
}

impl Default for MarginAndStates {
    fn default() -> Self {
        Self { beta: 0.5 }
    }
}

impl Plugin for MarginAndStates {
    const NAME: &'static str = NAME;
    const SUMMARY: &'static str =
        "a logistic loss of the margin plus a coordinate-wise distance between states";
    const EXPLAIN: &'static str = "L = −log σ(βθ) + mean over taps of [D(p⁻ − r⁺) + D(p⁺ − \
        r⁺)]    D(x) = mean over coordinates of √(1 + x²) − 1";
    const REFERENCE: &'static str = REFERENCE;
    const EXAMPLE: &'static [(&'static str, &'static str)] = &[("beta", "0.3")];
}

impl InterventionPlugin for MarginAndStates {
    fn build(self, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
        Ok(Box::new(self))
    }
}

impl Intervention for MarginAndStates {
    fn needs(&self) -> Needs {
        Needs {
            logprobs: Completions::Both,
            reference_logprobs: true,
            states: States::Pooled,
            reference_states: true,
            ..Needs::default()
        }
    }

    fn loss(&mut self, pairs: &Pairs, _: StepInfo) -> Result<Loss> {
        let Sides { chosen, rejected } = pairs.log_ratios()?;
        let margin = -((chosen - rejected) * self.beta).log_sigmoid();
        // Do not use the Euclidean distance here. A rotation does not change this distance, so an
        // error in a rotating transform would stay hidden.
        let distance = |a: &Tensor, b: &Tensor| {
            ((a - b).square() + 1.0).sqrt().mean_dim(1, false, None::<Kind>) - 1.0
        };
        let states = pairs.mean_over_taps(|tap: &TapStates| {
            let (p, r) = (tap.policy()?, tap.reference()?);
            Ok(distance(&p.rejected, &r.chosen) + distance(&p.chosen, &r.chosen))
        })?;
        Ok(Loss::new((margin + states).mean(None::<Kind>)))
    }
}

/// Adds a trainable full-rank matrix to each weight matrix.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FullChange {
    /// The linear modules to adapt: a list of name suffixes (`qkv_proj.q_proj` selects a part of a
    /// fused module), a regular expression for whole names, or `all-linear`.
    target_modules: Targets,
    /// The blocks to adapt, counted from 0. By default, all blocks are adapted.
    layers_to_transform: Option<Vec<usize>>,
}

impl Default for FullChange {
    fn default() -> Self {
        Self {
            target_modules: Targets::Pattern("all-linear".to_owned()),
            layers_to_transform: None,
        }
    }
}

impl Plugin for FullChange {
    const NAME: &'static str = NAME;
    const SUMMARY: &'static str = "adds a trainable full-rank matrix to each weight matrix";
    const EXPLAIN: &'static str = "y = (W + Δ)x + b    Δ [out in] starts at 0";
    const REFERENCE: &'static str = REFERENCE;
    const EXAMPLE: &'static [(&'static str, &'static str)] = &[("target_modules", r#"["v_proj"]"#)];
}

impl AdapterPlugin for FullChange {
    fn build(self) -> Result<Box<dyn Adapter>> {
        Ok(Box::new(self))
    }

    fn from_peft(json: &str) -> Result<Self> {
        let peft = PeftConfig::parse(json)?;
        Ok(Self {
            target_modules: peft.need("target_modules")?,
            layers_to_transform: peft.get("layers_to_transform")?,
        })
    }
}

impl TargetModules for FullChange {
    fn targets(&self) -> Targets {
        self.target_modules.clone()
    }

    fn layers_to_transform(&self) -> Option<Vec<usize>> {
        self.layers_to_transform.clone()
    }
}

impl Adapter for FullChange {
    fn attach(&self, site: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        Ok(Box::new(Change(init.zeros(&[site.info.outputs, site.info.inputs]))))
    }

    fn peft_config(&self) -> String {
        "{}".to_owned()
    }
}

/// The change Δ, of shape `[out in]`, to the weight of one module.
struct Change(Tensor);

impl AdaptedLinear for Change {
    fn forward(&self, x: &Tensor, base: &Frozen, _: bool) -> Result<Tensor> {
        Ok(base.forward(x)? + x.f_linear(&self.0.to_kind(x.kind()), None::<Tensor>)?)
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::new("delta", &self.0).along(Axis::Output(0))]
    }

    fn merge(&self, base: &Frozen) -> Result<Frozen> {
        Ok(base.with_weight(base.dense()? + &self.0))
    }
}

/// The identity transform.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Untransformed {}

impl Plugin for Untransformed {
    const NAME: &'static str = NAME;
    const SUMMARY: &'static str = "the unchanged states";
    const EXPLAIN: &'static str = "T(x) = x";
    const REFERENCE: &'static str = REFERENCE;
}

impl TransformPlugin for Untransformed {
    fn build(self, _: &TransformCx<'_>, _: &mut Init) -> Result<Box<dyn Transform>> {
        Ok(Box::new(self))
    }
}

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

/// A tap that reads the residual stream.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HiddenStates {
    /// Indices of the hidden states to read. Index 0 is the output of the embedding layer.
    layers: Layers,
}

impl Default for HiddenStates {
    fn default() -> Self {
        Self { layers: Layers("-1".to_owned()) }
    }
}

impl Plugin for HiddenStates {
    const NAME: &'static str = NAME;
    const SUMMARY: &'static str = "the residual stream";
    const EXPLAIN: &'static str = "hidden_states[k] for each k in `layers`";
    const REFERENCE: &'static str = REFERENCE;
    const EXAMPLE: &'static [(&'static str, &'static str)] = &[("layers", "1,-1")];
}

impl TapPlugin for HiddenStates {
    fn build(self) -> Result<Box<dyn Tap>> {
        Ok(Box::new(self))
    }
}

impl Tap for HiddenStates {
    fn sites(&self, model: &ModelInfo) -> Result<Vec<Site>> {
        Ok(self.layers.resolve(model.layers + 1)?.into_iter().map(Site::Residual).collect())
    }

    fn pooling(&self) -> Pooling {
        Pooling::Completion
    }
}

/// A data set with three pairs.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ThreePairs {}

impl Plugin for ThreePairs {
    const NAME: &'static str = NAME;
    const SUMMARY: &'static str = "three pairs, two of them for training";
    const EXPLAIN: &'static str =
        "Each prompt is a sum. The rejected completion is a wrong result.";
    const REFERENCE: &'static str = REFERENCE;
}

impl DatasetPlugin for ThreePairs {
    fn build(self) -> Result<Box<dyn Dataset>> {
        Ok(Box::new(self))
    }
}

impl Dataset for ThreePairs {
    fn splits(&self) -> Vec<SplitInfo> {
        [("train", 2), ("test", 1)]
            .map(|(name, pairs)| SplitInfo {
                name: name.to_owned(),
                describes: "sums".to_owned(),
                pairs: Some(pairs),
            })
            .into()
    }

    fn pairs(&self, split: &str) -> Result<PairIter<'_>> {
        let sums = match split {
            "train" => 1..3,
            "test" => 3..4,
            other => return Err(Error::unknown("split", other, ["train", "test"])),
        };
        let pair = |n: i32| {
            PreferencePair::new(
                format!("What is {n} and {n}?"),
                (2 * n).to_string(),
                (2 * n + 1).to_string(),
            )
        };
        Ok(Box::new(sums.map(move |n| Ok(pair(n)))))
    }
}
