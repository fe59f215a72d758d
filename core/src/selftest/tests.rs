//! Tests that the self-test fails for methods that compute wrong results and passes for correct
//! ones.

use std::sync::atomic::AtomicUsize;

use schemars::JsonSchema;
use serde::Deserialize;
use tch::Tensor;

use super::*;
use crate::api::{
    AdaptedLinear, Adapter, AdapterPlugin, Around, Frozen, LinearSite, ModelInfo, Parameter,
    Pooling, Site, Tap, TapPlugin, TargetModules, Targets,
};
use crate::api::{Completions, Intervention, InterventionPlugin, Loss, Needs, Pairs, StepInfo};
use crate::api::{Init, Plugin, Transform, TransformCx, TransformPlugin};
use crate::registry::{AdapterEntry, InterventionEntry, TapEntry, TransformEntry};
use crate::report::Silent;

macro_rules! plugin {
    ($name:ident, $text:literal) => {
        #[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        struct $name {}

        impl Plugin for $name {
            const NAME: &'static str = $text;
            const SUMMARY: &'static str = "a method of the tests";
            const EXPLAIN: &'static str = "It serves the tests.";
            const REFERENCE: &'static str = "this project";
        }
    };
}

plugin!(Likelihood, "likelihood");
plugin!(Scale, "scale");
plugin!(Inexact, "inexact");
plugin!(Same, "same");
plugin!(Last, "last");

impl InterventionPlugin for Likelihood {
    fn build(self, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
        Ok(Box::new(self))
    }
}

impl Intervention for Likelihood {
    fn needs(&self) -> Needs {
        Needs { logprobs: Completions::Chosen, ..Needs::default() }
    }

    fn loss(&mut self, pairs: &Pairs, _: StepInfo) -> Result<Loss> {
        Ok(Loss::new(-pairs.policy()?.chosen()?.mean().mean(None::<Kind>)))
    }
}

/// Computes y = x Wᵀ (s + c), which is only correct if c is 0.
struct Scaled(Tensor, f64);

impl AdaptedLinear for Scaled {
    fn forward(&self, x: &Tensor, base: &Frozen, _: bool) -> Result<Tensor> {
        Ok(base.forward(x)? * (&self.0 + self.1).to_kind(x.kind()))
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::new("scale", &self.0)]
    }

    fn merge(&self, base: &Frozen) -> Result<Frozen> {
        Ok(base.with_weight(base.dense()? * &self.0))
    }
}

impl AdapterPlugin for Scale {
    fn build(self) -> Result<Box<dyn Adapter>> {
        Ok(Box::new(self))
    }

    fn from_peft(_: &str) -> Result<Self> {
        Ok(Self {})
    }
}

impl TargetModules for Scale {
    fn targets(&self) -> Targets {
        Targets::Pattern("all-linear".to_owned())
    }
}

impl Adapter for Scale {
    fn attach(&self, site: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        Ok(Box::new(Scaled(init.ones(&[site.info.outputs]), 0.0)))
    }

    fn peft_config(&self) -> String {
        "{}".to_owned()
    }
}

/// Number of modules that the inexact adapter has been attached to.
static ATTACHED: AtomicUsize = AtomicUsize::new(0);

impl AdapterPlugin for Inexact {
    fn build(self) -> Result<Box<dyn Adapter>> {
        Ok(Box::new(self))
    }

    fn from_peft(_: &str) -> Result<Self> {
        Ok(Self {})
    }
}

impl TargetModules for Inexact {
    fn targets(&self) -> Targets {
        Targets::Pattern("all-linear".to_owned())
    }
}

/// Like [`Scale`], but with an error that grows from module to module. The error imitates a device
/// whose results differ from those of the CPU.
impl Adapter for Inexact {
    fn attach(&self, site: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        Ok(Box::new(Scaled(
            init.ones(&[site.info.outputs]),
            1e-4 * ATTACHED.fetch_add(1, Ordering::Relaxed) as f64,
        )))
    }

    fn peft_config(&self) -> String {
        "{}".to_owned()
    }
}

impl TransformPlugin for Same {
    fn build(self, _: &TransformCx<'_>, _: &mut Init) -> Result<Box<dyn Transform>> {
        Ok(Box::new(self))
    }
}

impl Transform for Same {
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

impl TapPlugin for Last {
    fn build(self) -> Result<Box<dyn Tap>> {
        Ok(Box::new(self))
    }
}

impl Tap for Last {
    fn sites(&self, model: &ModelInfo) -> Result<Vec<Site>> {
        Ok(vec![Site::Residual(model.layers)])
    }

    fn pooling(&self) -> Pooling {
        Pooling::Completion
    }
}

static LIKELIHOOD: InterventionEntry = InterventionEntry::of::<Likelihood>("tests", "0");
static SCALE: AdapterEntry = AdapterEntry::of::<Scale>("SCALE", "tests", "0");
static INEXACT: AdapterEntry = AdapterEntry::of::<Inexact>("INEXACT", "tests", "0");
static SAME: TransformEntry = TransformEntry::of::<Same>("tests", "0");
static LAST: TapEntry = TapEntry::of::<Last>("tests", "0");

fn report(adapters: &[&'static AdapterEntry], only: &[Section]) -> Report {
    let others = [(&LIKELIHOOD).into(), (&SAME).into(), (&LAST).into()];
    let registry =
        Registry::holding(adapters.iter().map(|entry| (*entry).into()).chain(others)).unwrap();
    let defaults = "intervention = \"likelihood\"\nadapter = \"scale\"\ntransform = \"same\"\ntap \
        = \"last\"\n";
    let options =
        Options { device: "cpu".to_owned(), full: false, peer: false, only: only.to_vec() };
    run(&options, defaults, &registry, &AtomicBool::new(false), &mut Silent).unwrap()
}

#[test]
fn every_plugin_and_every_architecture_has_a_row() {
    let report = report(&[&SCALE], &[Section::Methods]);
    let ok = |name: &str| {
        report.rows.iter().filter(|row| row.name == name && row.outcome == Outcome::Ok).count()
    };
    for name in [
        "intervention likelihood",
        "adapter scale",
        "transform same",
        "tap last",
        "architecture llama",
        "architecture gemma3",
    ] {
        assert_eq!(ok(name), 2, "{name}: {}", report.plain());
    }
    report.verdict().unwrap();
}

#[test]
fn a_method_with_different_results_in_the_second_run_fails() {
    let report = report(&[&SCALE, &INEXACT], &[Section::Methods, Section::Determinism]);
    let failed: Vec<String> = report.failed().map(Row::full_name).collect();
    assert!(failed.contains(&"methods: adapter inexact".to_owned()), "{}", report.plain());
    assert!(failed.iter().all(|name| name.ends_with("adapter inexact")), "{failed:?}");
    let e = report.verdict().unwrap_err();
    assert!(
        e.message().contains("`methods: adapter inexact`") && e.fault() == Fault::Input,
        "{e:?}"
    );
}

#[test]
fn a_stopped_test_is_interrupted_and_a_device_that_does_not_exist_is_refused() {
    let registry = Registry::holding([]).unwrap();
    let run = |device: &str, stop: bool| {
        let options = Options {
            device: device.to_owned(),
            full: false,
            peer: false,
            only: vec![Section::Products],
        };
        run(&options, "", &registry, &AtomicBool::new(stop), &mut Silent).unwrap_err()
    };
    assert_eq!(run("cpu", true).fault(), Fault::Interrupted);
    assert!(run("gpu", false).message().contains("unknown device `gpu`"));
}
