//! Methods and a data set that each fail in one way, which the host must survive.

use reprpo_plugin::prelude::*;
use reprpo_plugin::tracing;

/// Registers an intervention for each name. All of them build a [`Faulty`].
macro_rules! interventions {
    ($($method:ident $name:literal)*) => {
        $(
            #[doc = $name]
            #[intervention(
                name = $name,
                summary = "fails in the way that its name describes",
                reference = "this project's tests",
                explain = "It fails in the way that its name describes.",
            )]
            pub struct $method {
                /// Not used by any of them.
                pub unused: f64,
            }

            impl InterventionPlugin for $method {
                fn build(self, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
                    assert!($name != "panics-in-build", "a panic in build");
                    Ok(Box::new(Faulty($name)))
                }
            }
        )*
    };
}

interventions! {
    PanicsInBuild "panics-in-build"
    PanicsInNeeds "panics-in-needs"
    PanicsInLoss "panics-in-loss"
    PanicsInTorch "panics-in-torch"
    PanicsInHook "panics-in-hook"
    PanicsInDrop "panics-in-drop"
    HookChangesShape "hook-changes-shape"
    LossIsNan "loss-is-nan"
    LossIsNotScalar "loss-is-not-scalar"
    LossHasNoGradient "loss-has-no-gradient"
    ReadsUnrequestedValues "reads-unrequested-values"
    Logs "logs"
}

/// Lowers the mean log-probability of the rejected completion, except for the fault in its name.
struct Faulty(&'static str);

impl Intervention for Faulty {
    fn needs(&self) -> Needs {
        assert!(self.0 != "panics-in-needs", "a panic in needs");
        let hooks = matches!(self.0, "panics-in-hook" | "hook-changes-shape");
        Needs {
            logprobs: if self.0 == "reads-unrequested-values" {
                Completions::Chosen
            } else {
                Completions::Both
            },
            directions: if hooks { Directions::Reference } else { Directions::None },
            output_grads: hooks,
            ..Needs::default()
        }
    }

    fn loss(&mut self, pairs: &Pairs, _: StepInfo) -> Result<Loss> {
        let rejected = pairs.policy()?.rejected()?.mean();
        let mean = rejected.mean(Kind::Float);
        Ok(Loss::new(match self.0 {
            "panics-in-loss" => panic!("a panic in loss"),
            "panics-in-torch" => {
                mean + rejected.matmul(&rejected.new_ones([7, 7], (Kind::Float, rejected.device())))
            }
            "loss-is-nan" => mean * f64::NAN,
            "loss-is-not-scalar" => rejected,
            "loss-has-no-gradient" => mean.detach(),
            "logs" => {
                tracing::warn!(pairs = pairs.len, "the loss is computed");
                mean
            }
            _ => mean,
        }))
    }

    fn output_grad(&self, _: OutputGrad) -> Result<GradMap> {
        let panics = self.0 == "panics-in-hook";
        Ok(Box::new(
            move |grad| {
                if panics { panic!("a panic in the hook") } else { Ok(grad.sum(Kind::Float)) }
            },
        ))
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        assert!(self.0 != "panics-in-drop", "a panic in drop");
    }
}

/// An adapter whose modules panic in `forward`.
#[adapter(
    name = "panics-in-forward",
    summary = "fails in the way that its name describes",
    reference = "this project's tests",
    explain = "It fails in the way that its name describes.",
    peft_type = "FAULT"
)]
pub struct PanicsInForward {
    /// Not used.
    pub unused: f64,
}

impl AdapterPlugin for PanicsInForward {
    fn build(self) -> Result<Box<dyn Adapter>> {
        Ok(Box::new(self))
    }

    fn from_peft(_: &str) -> Result<Self> {
        Ok(Self::default())
    }
}

impl TargetModules for PanicsInForward {
    fn targets(&self) -> Targets {
        ["q_proj"].into()
    }
}

impl Adapter for PanicsInForward {
    fn attach(&self, _: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        Ok(Box::new(Faulted(init.zeros(&[1]))))
    }

    fn peft_config(&self) -> String {
        "{}".to_owned()
    }
}

struct Faulted(Tensor);

impl AdaptedLinear for Faulted {
    fn forward(&self, _: &Tensor, _: &Frozen, _: bool) -> Result<Tensor> {
        panic!("a panic in forward")
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::new("fault", &self.0)]
    }

    fn merge(&self, base: &Frozen) -> Result<Frozen> {
        Ok(base.with_weight(base.dense()?))
    }
}

/// A data set that panics after its first pair.
#[dataset(
    name = "panics-in-pairs",
    summary = "fails in the way that its name describes",
    reference = "this project's tests",
    explain = "It fails in the way that its name describes."
)]
pub struct PanicsInPairs {
    /// Not used.
    pub unused: f64,
}

impl DatasetPlugin for PanicsInPairs {
    fn build(self) -> Result<Box<dyn Dataset>> {
        Ok(Box::new(self))
    }
}

impl Dataset for PanicsInPairs {
    fn splits(&self) -> Vec<SplitInfo> {
        vec![SplitInfo {
            name: "train".to_owned(),
            describes: "one pair, then a panic".to_owned(),
            pairs: None,
        }]
    }

    fn pairs(&self, _: &str) -> Result<PairIter<'_>> {
        let pair = PreferencePair::new("a", "b", "c");
        Ok(Box::new(
            std::iter::once(Ok(pair)).chain(std::iter::from_fn(|| panic!("a panic in pairs"))),
        ))
    }
}

reprpo_plugin::export_plugin!();
