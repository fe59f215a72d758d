//! Methods that fail, each in one way: what a host has to survive.

use reprpo_plugin::prelude::*;
use reprpo_plugin::tracing;

/// Registers an intervention of each name, all of which are [`Faulty`].
macro_rules! interventions {
    ($($method:ident $name:literal)*) => {
        $(
            #[doc = $name]
            #[intervention(
                name = $name,
                summary = "fails where its name says",
                reference = "this project's tests",
                explain = "It fails where its name says.",
            )]
            pub struct $method {
                /// Read by none of them.
                pub unused: f64,
            }

            impl InterventionPlugin for $method {
                fn build(self, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
                    assert!($name != "panics-in-build", "the build gave up");
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
    HookOfAnotherShape "hook-of-another-shape"
    LossIsNan "loss-is-nan"
    LossIsNoNumber "loss-is-no-number"
    LossHasNoGradient "loss-has-no-gradient"
    ReadsWhatItDidNotAskFor "reads-what-it-did-not-ask-for"
    Logs "logs"
}

/// Lowers the rejected completion's mean log-probability, but for the fault that its name says.
struct Faulty(&'static str);

impl Intervention for Faulty {
    fn needs(&self) -> Needs {
        assert!(self.0 != "panics-in-needs", "no idea what it needs");
        let hooks = matches!(self.0, "panics-in-hook" | "hook-of-another-shape");
        Needs {
            logprobs: if self.0 == "reads-what-it-did-not-ask-for" {
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
            "panics-in-loss" => panic!("the loss gave up"),
            "panics-in-torch" => {
                mean + rejected.matmul(&rejected.new_ones([7, 7], (Kind::Float, rejected.device())))
            }
            "loss-is-nan" => mean * f64::NAN,
            "loss-is-no-number" => rejected,
            "loss-has-no-gradient" => mean.detach(),
            "logs" => {
                tracing::warn!(pairs = pairs.len, "the loss is asked for");
                mean
            }
            _ => mean,
        }))
    }

    fn output_grad(&self, _: OutputGrad) -> Result<GradMap> {
        let panics = self.0 == "panics-in-hook";
        Ok(Box::new(
            move |grad| if panics { panic!("the hook gave up") } else { Ok(grad.sum(Kind::Float)) },
        ))
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        assert!(self.0 != "panics-in-drop", "the end gave up");
    }
}

/// An adapter whose modules give up.
#[adapter(
    name = "panics-in-forward",
    summary = "fails where its name says",
    reference = "this project's tests",
    explain = "It fails where its name says.",
    peft_type = "FAULT"
)]
pub struct PanicsInForward {
    /// Not read.
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
        Ok(Box::new(Given(init.zeros(&[1]))))
    }

    fn peft_config(&self) -> String {
        "{}".to_owned()
    }
}

struct Given(Tensor);

impl AdaptedLinear for Given {
    fn forward(&self, _: &Tensor, _: &Frozen, _: bool) -> Result<Tensor> {
        panic!("the module gave up")
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::new("fault", &self.0)]
    }

    fn merge(&self, base: &Frozen) -> Result<Frozen> {
        Ok(base.with_weight(base.dense()?))
    }
}

/// A data set that ends in the middle.
#[dataset(
    name = "panics-in-pairs",
    summary = "fails where its name says",
    reference = "this project's tests",
    explain = "It fails where its name says."
)]
pub struct PanicsInPairs {
    /// Not read.
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
            describes: "one pair and a half".to_owned(),
            pairs: None,
        }]
    }

    fn pairs(&self, _: &str) -> Result<PairIter<'_>> {
        let pair = PreferencePair::new("a", "b", "c");
        Ok(Box::new(
            std::iter::once(Ok(pair)).chain(std::iter::from_fn(|| panic!("the file gave up"))),
        ))
    }
}

reprpo_plugin::export_plugin!();
