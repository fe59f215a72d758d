//! Methods that do one thing wrong, which their configuration chooses.

use std::sync::atomic::{AtomicUsize, Ordering};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::api::{
    AdaptedLinear, Adapter, AdapterPlugin, Around, Axis, Completions, Dataset, DatasetPlugin,
    Frozen, Fused, FusedSite, Init, Intervention, InterventionPlugin, Layers, LinearSite, Loss,
    Message, ModelInfo, Needs, PairIter, Pairs, Parameter, PeftConfig, Plugin, Pooling,
    PreferencePair, Sides, Site, SplitInfo, StepInfo, Tap, TapPlugin, TargetModules, Targets, Text,
    Transform, TransformCx, TransformPlugin,
};
use crate::error::{Error, Result};

/// How often a method that remembers was asked.
static ASKED: AtomicUsize = AtomicUsize::new(0);

macro_rules! plugin {
    ($($plugin:ident)*) => {$(
        impl Plugin for $plugin {
            const NAME: &'static str = "faulty";
            const SUMMARY: &'static str = "one thing is wrong with it";
            const EXPLAIN: &'static str = "Which, its configuration says.";
            const REFERENCE: &'static str = "the kit's own tests";
        }
    )*};
}

plugin!(FaultyIntervention FaultyAdapter FaultyTransform FaultyTap FaultyDataset);

#[derive(Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum OfIntervention {
    #[default]
    None,
    Detaches,
    Sums,
    DividesByTheDeviation,
    Remembers,
    DividesByTheSpread,
    Climbs,
    StartsFlat,
    SeesNothing,
    Panics,
    MakesDo,
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FaultyIntervention {
    /// What is wrong.
    flaw: OfIntervention,
}

impl InterventionPlugin for FaultyIntervention {
    fn build(self, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
        Ok(Box::new(self))
    }
}

impl Intervention for FaultyIntervention {
    fn needs(&self) -> Needs {
        Needs { logprobs: Completions::Both, reference_logprobs: true, ..Needs::default() }
    }

    fn loss(&mut self, pairs: &Pairs, _: StepInfo) -> Result<Loss> {
        use OfIntervention as Flaw;
        let spread = match self.flaw {
            Flaw::DividesByTheSpread => {
                let reference = pairs.reference()?;
                Some((reference.chosen()?.sum() - reference.rejected()?.sum()).abs() + 1e-12)
            }
            _ => None,
        };
        let ratios = match self.flaw {
            Flaw::Panics => Ok(pairs.log_ratios().unwrap()),
            Flaw::MakesDo if pairs.policy().is_err() => return Ok(Loss::new(Tensor::from(0.0))),
            _ => pairs.log_ratios(),
        };
        let Sides { chosen, rejected } = ratios?;
        let margin = &chosen - rejected;
        let losses = -(&margin * 0.5).log_sigmoid();
        let mean = losses.mean(None::<Kind>);
        Ok(Loss::new(match self.flaw {
            Flaw::Detaches => mean + (&margin * margin.detach()).mean(None::<Kind>),
            Flaw::Sums => losses.sum(None::<Kind>),
            Flaw::DividesByTheDeviation => mean / losses.std(true),
            Flaw::Remembers => mean * (1.0 + ASKED.fetch_add(1, Ordering::Relaxed) as f64),
            Flaw::DividesByTheSpread => (-(chosen * 0.5).log_sigmoid()
                / spread.unwrap_or_else(|| Tensor::from(1.0)))
            .mean(None::<Kind>),
            Flaw::StartsFlat => -(&margin * margin.abs()).mean(None::<Kind>),
            Flaw::Climbs => mean.detach() * 2.0 - mean,
            Flaw::SeesNothing => mean * 0.0,
            Flaw::None | Flaw::Panics | Flaw::MakesDo => mean,
        }))
    }
}

#[derive(Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum OfAdapter {
    #[default]
    None,
    Idles,
    TrainsTheBase,
    WritesToTheBase,
    StartsElsewhere,
    StartsHere,
    MergesTwice,
    NamesTwice,
    MistakesItsAxis,
    IgnoresTheSeed,
    FusesWithoutGroups,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FaultyAdapter {
    /// What is wrong.
    flaw: OfAdapter,
    /// What the change is scaled by, which PEFT's file does not hold.
    scale: f64,
}

impl Default for FaultyAdapter {
    fn default() -> Self {
        Self { flaw: OfAdapter::None, scale: 1.0 }
    }
}

impl AdapterPlugin for FaultyAdapter {
    fn build(self) -> Result<Box<dyn Adapter>> {
        Ok(Box::new(self))
    }

    fn from_peft(json: &str) -> Result<Self> {
        Ok(Self { flaw: PeftConfig::parse(json)?.need("flaw")?, ..Self::default() })
    }
}

impl TargetModules for FaultyAdapter {
    fn targets(&self) -> Targets {
        Targets::Suffixes(vec!["v_proj".to_owned()])
    }
}

impl Adapter for FaultyAdapter {
    fn attach(&self, site: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        let size = [site.info.outputs, site.info.inputs];
        if self.flaw == OfAdapter::TrainsTheBase {
            let _ = site.frozen.dense()?.set_requires_grad(true);
        }
        let delta = match self.flaw {
            OfAdapter::StartsElsewhere => init.normal("delta", &size, 0.1),
            OfAdapter::IgnoresTheSeed => {
                init.normal(&ASKED.fetch_add(1, Ordering::Relaxed).to_string(), &size, 0.1)
            }
            _ => init.zeros(&size),
        };
        Ok(Box::new(Change { flaw: self.flaw, scale: self.scale, delta, idle: init.zeros(&[1]) }))
    }

    fn starts_as_identity(&self) -> bool {
        !matches!(self.flaw, OfAdapter::StartsHere | OfAdapter::IgnoresTheSeed)
    }

    fn fuse(&self, modules: &[FusedSite<'_>]) -> Result<Option<Fused>> {
        if self.flaw != OfAdapter::FusesWithoutGroups {
            return Ok(None);
        }
        let whole = |site: &FusedSite<'_>| -> Result<Box<dyn AdaptedLinear>> {
            let delta = Tensor::zeros(
                [site.module.info.outputs, site.module.info.inputs],
                (Kind::Double, tch::Device::Cpu),
            );
            for part in &site.parts {
                // Where they are in a group is taken for where they are in the module.
                delta
                    .narrow(0, part.info.rows.start, part.info.rows.count())
                    .copy_(&part.tensor("delta")?);
            }
            Ok(Box::new(Change {
                flaw: self.flaw,
                scale: self.scale,
                idle: delta.shallow_clone(),
                delta,
            }))
        };
        let modules = modules.iter().map(whole).collect::<Result<_>>()?;
        Ok(Some(Fused { adapter: Box::new(Self { flaw: self.flaw, scale: self.scale }), modules }))
    }

    fn peft_config(&self) -> String {
        serde_json::json!({ "flaw": self.flaw }).to_string()
    }
}

struct Change {
    flaw: OfAdapter,
    scale: f64,
    /// `[out in]`.
    delta: Tensor,
    idle: Tensor,
}

impl AdaptedLinear for Change {
    fn forward(&self, x: &Tensor, base: &Frozen, _: bool) -> Result<Tensor> {
        if self.flaw == OfAdapter::WritesToTheBase {
            let _ = base.dense()?.detach().f_add_(&(base.dense()?.detach() * 1e-3))?;
        }
        Ok(base.forward(x)? + x.f_linear(&self.delta, None::<Tensor>)? * self.scale)
    }

    fn parameters(&self) -> Vec<Parameter> {
        let axis =
            if self.flaw == OfAdapter::MistakesItsAxis { Axis::Input(0) } else { Axis::Input(1) };
        let mut all = vec![Parameter::new("delta", &self.delta).along(axis)];
        match self.flaw {
            OfAdapter::Idles => all.push(Parameter::new("idle", &self.idle)),
            OfAdapter::NamesTwice => all.push(Parameter::new("delta", &self.delta)),
            _ => {}
        }
        all
    }

    fn merge(&self, base: &Frozen) -> Result<Frozen> {
        let times = if self.flaw == OfAdapter::MergesTwice { 2.0 } else { 1.0 };
        Ok(base.with_weight(base.dense()? + &self.delta * (self.scale * times)))
    }
}

#[derive(Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum OfTransform {
    #[default]
    None,
    Stretches,
    Bends,
    LooksAround,
    IgnoresTheSeed,
    NamesTwice,
    Detaches,
}

#[derive(Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FaultyTransform {
    /// What is wrong.
    flaw: OfTransform,
}

impl TransformPlugin for FaultyTransform {
    fn build(self, cx: &TransformCx<'_>, init: &mut Init) -> Result<Box<dyn Transform>> {
        let scale = init.ones(&[cx.width]);
        if self.flaw == OfTransform::IgnoresTheSeed {
            let asked = ASKED.fetch_add(1, Ordering::Relaxed);
            let _ = scale.detach().f_fill_(1.0 + asked as f64)?;
        }
        Ok(Box::new(Scaled { flaw: self.flaw, scale }))
    }
}

/// Scales coordinates by `[h]`.
struct Scaled {
    flaw: OfTransform,
    scale: Tensor,
}

impl Transform for Scaled {
    fn forward(&self, h: &Tensor, around: &Around) -> Result<Tensor> {
        Ok(match self.flaw {
            OfTransform::Bends => (h * &self.scale).tanh(),
            OfTransform::LooksAround => {
                h * &self.scale
                    + around.previous.as_ref().map_or_else(|| h.zeros_like(), |p| p * 0.1)
            }
            OfTransform::Detaches => h * self.scale.detach(),
            _ => h * &self.scale,
        })
    }

    fn parameters(&self) -> Vec<Parameter> {
        let parameter = || Parameter::new("scale", &self.scale);
        if self.flaw == OfTransform::NamesTwice {
            vec![parameter(), parameter()]
        } else {
            vec![parameter()]
        }
    }

    fn linear(&self) -> bool {
        true
    }

    fn orthogonal(&self) -> bool {
        self.flaw == OfTransform::Stretches
    }
}

#[derive(Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum OfTap {
    #[default]
    None,
    ReadsBlockFive,
    ReadsNothing,
    ReadsBackwards,
    ReadsTwice,
    Clamps,
    Panics,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FaultyTap {
    /// What is wrong.
    flaw: OfTap,
    /// Which hidden states.
    layers: Layers,
}

impl Default for FaultyTap {
    fn default() -> Self {
        Self { flaw: OfTap::None, layers: Layers("1,-1".to_owned()) }
    }
}

impl TapPlugin for FaultyTap {
    fn build(self) -> Result<Box<dyn Tap>> {
        Ok(Box::new(self))
    }
}

impl Tap for FaultyTap {
    fn sites(&self, model: &ModelInfo) -> Result<Vec<Site>> {
        let layers = match self.flaw {
            OfTap::Clamps => {
                self.layers.resolve(model.layers + 1).unwrap_or_else(|_| vec![model.layers])
            }
            _ => self.layers.resolve(model.layers + 1)?,
        };
        let mut sites: Vec<Site> = layers.into_iter().map(Site::Residual).collect();
        match self.flaw {
            OfTap::None | OfTap::Clamps => {}
            OfTap::ReadsBlockFive => sites = vec![Site::Block(5)],
            OfTap::ReadsNothing => sites.clear(),
            OfTap::ReadsBackwards => sites.reverse(),
            OfTap::ReadsTwice => sites.push(sites[sites.len() - 1].clone()),
            OfTap::Panics => panic!("the tap is off"),
        }
        Ok(sites)
    }

    fn pooling(&self) -> Pooling {
        Pooling::Last
    }
}

#[derive(Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum OfDataset {
    #[default]
    None,
    NamesTwice,
    HoldsNothing,
    PrefersItself,
    Mixes,
    Shuffles,
    Miscounts,
    TakesAnySplit,
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FaultyDataset {
    /// What is wrong.
    flaw: OfDataset,
}

impl DatasetPlugin for FaultyDataset {
    fn build(self) -> Result<Box<dyn Dataset>> {
        Ok(Box::new(self))
    }
}

impl Dataset for FaultyDataset {
    fn splits(&self) -> Vec<SplitInfo> {
        let pairs = Some(if self.flaw == OfDataset::Miscounts { 3 } else { 2 });
        let train = SplitInfo { name: "train".to_owned(), describes: "letters".to_owned(), pairs };
        if self.flaw == OfDataset::NamesTwice { vec![train.clone(), train] } else { vec![train] }
    }

    fn pairs(&self, split: &str) -> Result<PairIter<'_>> {
        if split != "train" && self.flaw != OfDataset::TakesAnySplit {
            return Err(Error::unknown("split", split, ["train"]));
        }
        let count = if self.flaw == OfDataset::HoldsNothing { 0 } else { 2 };
        let flaw = self.flaw;
        let pair = move |i: usize| {
            let asked =
                if flaw == OfDataset::Shuffles { ASKED.fetch_add(1, Ordering::Relaxed) } else { 0 };
            let rejected = match flaw {
                OfDataset::PrefersItself => Text::from("a"),
                OfDataset::Mixes => Text::Messages(vec![Message::new("assistant", "b")]),
                _ => Text::from("b"),
            };
            PreferencePair::new(format!("{i} {asked}"), "a", rejected)
        };
        Ok(Box::new((0..count).map(move |i| Ok(pair(i)))))
    }
}
