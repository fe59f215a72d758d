//! Methods with one flaw, selected by their configuration.

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

/// A counter for the flaws that make results depend on earlier calls.
static CALLS: AtomicUsize = AtomicUsize::new(0);

macro_rules! plugin {
    ($($plugin:ident)*) => {$(
        impl Plugin for $plugin {
            const NAME: &'static str = "faulty";
            const SUMMARY: &'static str = "a method with one flaw";
            const EXPLAIN: &'static str = "The field `flaw` selects the flaw.";
            const REFERENCE: &'static str = "tests of the conformance tests";
        }
    )*};
}

plugin!(FaultyIntervention FaultyAdapter FaultyTransform FaultyTap FaultyDataset);

#[derive(Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum InterventionFlaw {
    #[default]
    None,
    Detaches,
    Sums,
    DividesByDeviation,
    CountsCalls,
    DividesByReferenceMargin,
    WrongSign,
    StartsFlat,
    ZeroGradient,
    Panics,
    IgnoresMissingValues,
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FaultyIntervention {
    /// The flaw.
    flaw: InterventionFlaw,
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
        use InterventionFlaw as Flaw;
        let reference_margin = match self.flaw {
            Flaw::DividesByReferenceMargin => {
                let reference = pairs.reference()?;
                Some((reference.chosen()?.sum() - reference.rejected()?.sum()).abs() + 1e-12)
            }
            _ => None,
        };
        let ratios = match self.flaw {
            Flaw::Panics => Ok(pairs.log_ratios().unwrap()),
            Flaw::IgnoresMissingValues if pairs.policy().is_err() => {
                return Ok(Loss::new(Tensor::from(0.0)));
            }
            _ => pairs.log_ratios(),
        };
        let Sides { chosen, rejected } = ratios?;
        let margin = &chosen - rejected;
        let losses = -(&margin * 0.5).log_sigmoid();
        let mean = losses.mean(None::<Kind>);
        Ok(Loss::new(match self.flaw {
            Flaw::Detaches => mean + (&margin * margin.detach()).mean(None::<Kind>),
            Flaw::Sums => losses.sum(None::<Kind>),
            Flaw::DividesByDeviation => mean / losses.std(true),
            Flaw::CountsCalls => mean * (1.0 + CALLS.fetch_add(1, Ordering::Relaxed) as f64),
            Flaw::DividesByReferenceMargin => (-(chosen * 0.5).log_sigmoid()
                / reference_margin.unwrap_or_else(|| Tensor::from(1.0)))
            .mean(None::<Kind>),
            Flaw::StartsFlat => -(&margin * margin.abs()).mean(None::<Kind>),
            Flaw::WrongSign => mean.detach() * 2.0 - mean,
            Flaw::ZeroGradient => mean * 0.0,
            Flaw::None | Flaw::Panics | Flaw::IgnoresMissingValues => mean,
        }))
    }
}

#[derive(Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum AdapterFlaw {
    #[default]
    None,
    UnusedParameter,
    TrainsTheBase,
    WritesToTheBase,
    StartsChanged,
    ClaimsToStartChanged,
    ClaimsNotToTrain,
    MergesTwice,
    DuplicateNames,
    WrongAxis,
    IgnoresTheSeed,
    FusesWithoutGroups,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FaultyAdapter {
    /// The flaw.
    flaw: AdapterFlaw,
    /// Factor on the change. It is not saved in PEFT's configuration.
    scale: f64,
}

impl Default for FaultyAdapter {
    fn default() -> Self {
        Self { flaw: AdapterFlaw::None, scale: 1.0 }
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
        if self.flaw == AdapterFlaw::TrainsTheBase {
            let _ = site.frozen.dense()?.set_requires_grad(true);
        }
        let delta = match self.flaw {
            AdapterFlaw::StartsChanged => init.normal("delta", &size, 0.1),
            AdapterFlaw::IgnoresTheSeed => {
                init.normal(&CALLS.fetch_add(1, Ordering::Relaxed).to_string(), &size, 0.1)
            }
            _ => init.zeros(&size),
        };
        Ok(Box::new(Change { flaw: self.flaw, scale: self.scale, delta, unused: init.zeros(&[1]) }))
    }

    fn is_trainable(&self) -> bool {
        self.flaw != AdapterFlaw::ClaimsNotToTrain
    }

    fn starts_as_identity(&self) -> bool {
        !matches!(self.flaw, AdapterFlaw::ClaimsToStartChanged | AdapterFlaw::IgnoresTheSeed)
    }

    fn fuse(&self, modules: &[FusedSite<'_>]) -> Result<Option<Fused>> {
        if self.flaw != AdapterFlaw::FusesWithoutGroups {
            return Ok(None);
        }
        let whole = |site: &FusedSite<'_>| -> Result<Box<dyn AdaptedLinear>> {
            let delta = Tensor::zeros(
                [site.module.info.outputs, site.module.info.inputs],
                (Kind::Double, tch::Device::Cpu),
            );
            for part in &site.parts {
                // The flaw: the offset within a group is used as the offset within the module.
                delta
                    .narrow(0, part.info.rows.start, part.info.rows.count())
                    .copy_(&part.tensor("delta")?);
            }
            Ok(Box::new(Change {
                flaw: self.flaw,
                scale: self.scale,
                unused: delta.shallow_clone(),
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
    flaw: AdapterFlaw,
    scale: f64,
    /// `[out in]`.
    delta: Tensor,
    unused: Tensor,
}

impl AdaptedLinear for Change {
    fn forward(&self, x: &Tensor, base: &Frozen, _: bool) -> Result<Tensor> {
        if self.flaw == AdapterFlaw::WritesToTheBase {
            let _ = base.dense()?.detach().f_add_(&(base.dense()?.detach() * 1e-3))?;
        }
        Ok(base.forward(x)? + x.f_linear(&self.delta, None::<Tensor>)? * self.scale)
    }

    fn parameters(&self) -> Vec<Parameter> {
        let axis =
            if self.flaw == AdapterFlaw::WrongAxis { Axis::Input(0) } else { Axis::Input(1) };
        let mut all = vec![Parameter::new("delta", &self.delta).along(axis)];
        match self.flaw {
            AdapterFlaw::UnusedParameter => all.push(Parameter::new("unused", &self.unused)),
            AdapterFlaw::DuplicateNames => all.push(Parameter::new("delta", &self.delta)),
            _ => {}
        }
        all
    }

    fn merge(&self, base: &Frozen) -> Result<Frozen> {
        let times = if self.flaw == AdapterFlaw::MergesTwice { 2.0 } else { 1.0 };
        Ok(base.with_weight(base.dense()? + &self.delta * (self.scale * times)))
    }
}

#[derive(Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum TransformFlaw {
    #[default]
    None,
    NotOrthogonal,
    NotLinear,
    UsesContext,
    IgnoresTheSeed,
    DuplicateNames,
    Detaches,
}

#[derive(Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FaultyTransform {
    /// The flaw.
    flaw: TransformFlaw,
}

impl TransformPlugin for FaultyTransform {
    fn build(self, cx: &TransformCx<'_>, init: &mut Init) -> Result<Box<dyn Transform>> {
        let scale = init.ones(&[cx.width]);
        if self.flaw == TransformFlaw::IgnoresTheSeed {
            let calls = CALLS.fetch_add(1, Ordering::Relaxed);
            let _ = scale.detach().f_fill_(1.0 + calls as f64)?;
        }
        Ok(Box::new(Scaled { flaw: self.flaw, scale }))
    }
}

/// Multiplies each coordinate by an entry of `scale` `[h]`.
struct Scaled {
    flaw: TransformFlaw,
    scale: Tensor,
}

impl Transform for Scaled {
    fn forward(&self, h: &Tensor, around: &Around) -> Result<Tensor> {
        Ok(match self.flaw {
            TransformFlaw::NotLinear => (h * &self.scale).tanh(),
            TransformFlaw::UsesContext => {
                h * &self.scale
                    + around.previous.as_ref().map_or_else(|| h.zeros_like(), |p| p * 0.1)
            }
            TransformFlaw::Detaches => h * self.scale.detach(),
            _ => h * &self.scale,
        })
    }

    fn parameters(&self) -> Vec<Parameter> {
        let parameter = || Parameter::new("scale", &self.scale);
        if self.flaw == TransformFlaw::DuplicateNames {
            vec![parameter(), parameter()]
        } else {
            vec![parameter()]
        }
    }

    fn linear(&self) -> bool {
        true
    }

    fn orthogonal(&self) -> bool {
        self.flaw == TransformFlaw::NotOrthogonal
    }
}

#[derive(Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum TapFlaw {
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
    /// The flaw.
    flaw: TapFlaw,
    /// The hidden states to read.
    layers: Layers,
}

impl Default for FaultyTap {
    fn default() -> Self {
        Self { flaw: TapFlaw::None, layers: Layers("1,-1".to_owned()) }
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
            TapFlaw::Clamps => {
                self.layers.resolve(model.layers + 1).unwrap_or_else(|_| vec![model.layers])
            }
            _ => self.layers.resolve(model.layers + 1)?,
        };
        let mut sites: Vec<Site> = layers.into_iter().map(Site::Residual).collect();
        match self.flaw {
            TapFlaw::None | TapFlaw::Clamps => {}
            TapFlaw::ReadsBlockFive => sites = vec![Site::Block(5)],
            TapFlaw::ReadsNothing => sites.clear(),
            TapFlaw::ReadsBackwards => sites.reverse(),
            TapFlaw::ReadsTwice => sites.push(sites[sites.len() - 1].clone()),
            TapFlaw::Panics => panic!("the tap is off"),
        }
        Ok(sites)
    }

    fn pooling(&self) -> Pooling {
        Pooling::Last
    }
}

#[derive(Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum DatasetFlaw {
    #[default]
    None,
    DuplicateNames,
    NoPairs,
    EqualCompletions,
    MixesTextAndMessages,
    Shuffles,
    Miscounts,
    TakesAnySplit,
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FaultyDataset {
    /// The flaw.
    flaw: DatasetFlaw,
}

impl DatasetPlugin for FaultyDataset {
    fn build(self) -> Result<Box<dyn Dataset>> {
        Ok(Box::new(self))
    }
}

impl Dataset for FaultyDataset {
    fn splits(&self) -> Vec<SplitInfo> {
        let pairs = Some(if self.flaw == DatasetFlaw::Miscounts { 3 } else { 2 });
        let train = SplitInfo { name: "train".to_owned(), describes: "letters".to_owned(), pairs };
        if self.flaw == DatasetFlaw::DuplicateNames {
            vec![train.clone(), train]
        } else {
            vec![train]
        }
    }

    fn pairs(&self, split: &str) -> Result<PairIter<'_>> {
        if split != "train" && self.flaw != DatasetFlaw::TakesAnySplit {
            return Err(Error::unknown("split", split, ["train"]));
        }
        let count = if self.flaw == DatasetFlaw::NoPairs { 0 } else { 2 };
        let flaw = self.flaw;
        let pair = move |i: usize| {
            let calls = if flaw == DatasetFlaw::Shuffles {
                CALLS.fetch_add(1, Ordering::Relaxed)
            } else {
                0
            };
            let rejected = match flaw {
                DatasetFlaw::EqualCompletions => Text::from("a"),
                DatasetFlaw::MixesTextAndMessages => {
                    Text::Messages(vec![Message::new("assistant", "b")])
                }
                _ => Text::from("b"),
            };
            PreferencePair::new(format!("{i} {calls}"), "a", rejected)
        };
        Ok(Box::new((0..count).map(move |i| Ok(pair(i)))))
    }
}
