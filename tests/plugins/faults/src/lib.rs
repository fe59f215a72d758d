//! Methods that fail, each in one way: what a host has to survive.

use reprpo_plugin::prelude::*;
use reprpo_plugin::tracing;

/// Fields of every one of them.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "reprpo_plugin::serde", deny_unknown_fields, default)]
#[schemars(crate = "reprpo_plugin::schemars")]
pub struct Config {
    /// Read by none of them.
    pub unused: f64,
}

/// Registers an intervention of each name, all of which are [`Faulty`].
macro_rules! interventions {
    ($($method:ident $name:literal)*) => {
        $(
            #[doc = $name]
            pub struct $method;

            impl Plugin for $method {
                const NAME: &'static str = $name;
                const SUMMARY: &'static str = "fails where its name says";
                const REFERENCE: &'static str = "this project's tests";
                const EXPLAIN: &'static str = "It fails where its name says.";
                type Config = Config;
            }

            impl InterventionPlugin for $method {
                fn build(_: Config, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
                    assert!($name != "panics-in-build", "the build gave up");
                    Ok(Box::new(Faulty($name)))
                }
            }

            register!(intervention: $method);
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
            logprobs: if self.0 == "reads-what-it-did-not-ask-for" { Completions::Chosen } else { Completions::Both },
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
            "panics-in-torch" => mean + rejected.matmul(&rejected.new_ones([7, 7], (Kind::Float, rejected.device()))),
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
        Ok(Box::new(move |grad| if panics { panic!("the hook gave up") } else { Ok(grad.sum(Kind::Float)) }))
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        assert!(self.0 != "panics-in-drop", "the end gave up");
    }
}

/// An adapter whose modules give up.
pub struct PanicsInForward;

impl Plugin for PanicsInForward {
    const NAME: &'static str = "panics-in-forward";
    const SUMMARY: &'static str = "fails where its name says";
    const REFERENCE: &'static str = "this project's tests";
    const EXPLAIN: &'static str = "It fails where its name says.";
    type Config = Config;
}

impl AdapterPlugin for PanicsInForward {
    const PEFT_TYPE: &'static str = "FAULT";

    fn build(_: Config) -> Result<Box<dyn Adapter>> {
        Ok(Box::new(PanicsInForward))
    }

    fn from_peft(_: &str) -> Result<Config> {
        Ok(Config::default())
    }
}

impl Adapter for PanicsInForward {
    fn targets(&self) -> Targets {
        Targets::Suffixes(vec!["q_proj".to_owned()])
    }

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

register!(adapter: PanicsInForward);

/// A data set that ends in the middle.
pub struct PanicsInPairs;

impl Plugin for PanicsInPairs {
    const NAME: &'static str = "panics-in-pairs";
    const SUMMARY: &'static str = "fails where its name says";
    const REFERENCE: &'static str = "this project's tests";
    const EXPLAIN: &'static str = "It fails where its name says.";
    type Config = Config;
}

impl DatasetPlugin for PanicsInPairs {
    fn build(_: Config) -> Result<Box<dyn Dataset>> {
        Ok(Box::new(PanicsInPairs))
    }
}

impl Dataset for PanicsInPairs {
    fn splits(&self) -> Vec<SplitInfo> {
        vec![SplitInfo { name: "train".to_owned(), describes: "one pair and a half".to_owned(), pairs: None }]
    }

    fn pairs(&self, _: &str) -> Result<PairIter<'_>> {
        let pair = PreferencePair::new("a", "b", "c");
        Ok(Box::new(std::iter::once(Ok(pair)).chain(std::iter::from_fn(|| panic!("the file gave up")))))
    }
}

register!(dataset: PanicsInPairs);

reprpo_plugin::export_plugin!();
