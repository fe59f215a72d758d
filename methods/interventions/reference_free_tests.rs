//! Tests of the methods without a reference: they compute TRL's values, and never run the
//! reference.

use std::path::Path;
use std::rc::Rc;

use reprpo_core::conformance;
use reprpo_core::model::Adapted;
use reprpo_core::reference::ReferenceCache;
use reprpo_core::registry::Registry;
use reprpo_core::text::TokenPair;
use reprpo_core::train::{Objective, Reference, Taps, TrainPass};
use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::{self, Value, json};
use reprpo_plugin::testkit::STEP;

use super::cpo::Cpo;
use super::orpo::Orpo;
use super::simpo::SimPo;
use super::trl_policy::Policy;
use crate::golden;

#[test]
fn losses_gradients_and_metrics_equal_those_of_trl() {
    for root in golden::roots() {
        assert_values(&root);
    }
}

/// Returns the pairs of TRL's batch. The label of a token of the prompt or of padding is −100.
fn pairs(batch: &Value) -> Vec<TokenPair> {
    let of_side = |side: &str| -> Vec<(Vec<i64>, Vec<i64>)> {
        let rows = |what: &str| -> Vec<Vec<i64>> {
            serde_json::from_value(batch[format!("{side}_{what}")].clone()).unwrap()
        };
        let split = |(ids, labels): (Vec<i64>, Vec<i64>)| {
            let prompt = labels.iter().position(|label| *label != -100).unwrap();
            let completion: Vec<i64> =
                labels[prompt..].iter().copied().filter(|label| *label != -100).collect();
            assert_eq!(ids[prompt..prompt + completion.len()], completion);
            (ids[..prompt].to_vec(), completion)
        };
        rows("input_ids").into_iter().zip(rows("labels")).map(split).collect()
    };
    of_side("chosen")
        .into_iter()
        .zip(of_side("rejected"))
        .enumerate()
        .map(|(index, ((prompt, chosen), (other, rejected)))| {
            assert_eq!(prompt, other);
            TokenPair { index, row: index, prompt, chosen, rejected }
        })
        .collect()
}

fn assert_values(golden: &Path) {
    let text = std::fs::read_to_string(golden.join("trl/reference_free.json")).unwrap();
    let table: Value = serde_json::from_str(&text).unwrap();
    let (policy, pairs) = (Policy::open(golden), pairs(&table["batch"]));
    let info = policy.model.info();
    let cases = table["values"].as_object().unwrap();
    assert!(["cpo", "cpo_hinge", "simpo", "orpo"].iter().all(|name| cases.contains_key(*name)));
    for (name, case) in cases {
        let mut args = case["args"].clone();
        let fields = args.as_object_mut().unwrap();
        let method = match (name.as_str(), fields.get("loss_type").and_then(Value::as_str)) {
            (name, None) if name.starts_with("orpo") => {
                serde_json::from_value::<Orpo>(args).unwrap().build(info)
            }
            (_, Some("simpo")) => {
                fields.remove("loss_type");
                serde_json::from_value::<SimPo>(args).unwrap().build(info)
            }
            _ => serde_json::from_value::<Cpo>(args).unwrap().build(info),
        };
        let off = policy
            .step(method.unwrap(), Reference::default(), &pairs.iter().collect::<Vec<_>>())
            .unwrap()
            // TRL averages the logits of these trainers over prompts and padding too, so their
            // values depend on the lengths of the other pairs. We average over completions.
            .deviation(name, case, |metric| {
                metric.starts_with("logits/").then(|| case["metrics"][metric].as_f64().unwrap())
            });
        assert!(off.loss < 1e-5 && off.grad_norm < 1e-5 && off.metrics < 1e-5, "{name}: {off:?}");
    }
}

/// An adapter that cannot be run.
struct Broken;

impl TargetModules for Broken {
    fn targets(&self) -> Targets {
        ["q_proj"].into()
    }
}

impl Adapter for Broken {
    fn peft_config(&self) -> String {
        "{}".to_owned()
    }

    fn attach(&self, _: &LinearSite<'_>, _: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        Ok(Box::new(Self))
    }
}

impl AdaptedLinear for Broken {
    fn forward(&self, _: &Tensor, _: &Frozen, _: bool) -> Result<Tensor> {
        Err(Error::new("the reference ran"))
    }

    fn parameters(&self) -> Vec<Parameter> {
        Vec::new()
    }

    fn merge(&self, _: &Frozen) -> Result<Frozen> {
        Err(Error::new("the reference was merged"))
    }
}

#[test]
fn methods_without_a_reference_never_run_it() {
    let (model, pairs) = (conformance::model(Kind::Float).unwrap(), conformance::pairs());
    let registry = Registry::builtin().unwrap();
    let lora = registry.adapter("lora").unwrap().build("{}").unwrap();
    let adapted = Adapted::attach(lora.as_ref(), &model, model.info().layers, 0).unwrap();
    // Returns an error if the reference runs: before the first step, in a step before or after the
    // first update, or in a validation.
    let run = |name: &str, config: &Value| -> Result<()> {
        let entry = registry.intervention(name)?;
        let method = entry.build(&config.to_string(), model.info())?;
        let broken = Adapted::attach(&Broken, &model, model.info().layers, 0)?;
        let reference = Reference::new(Some(Rc::new(broken)), ReferenceCache::default());
        let mut objective = Objective::new(method, Taps::default(), reference, &adapted)?;
        let pairs: Vec<&TokenPair> = pairs.iter().collect();
        objective.prepare(&model, &[&pairs])?;
        let batch = objective.batch(&pairs, &model)?;
        for equal in [true, false] {
            objective.reference().set_equals_policy(equal);
            let pass = TrainPass::of_weight(1.0);
            objective.loss(&model, &adapted, &batch, STEP, pass)?;
            objective.loss_without_gradient(&model, &adapted, &batch, STEP)?;
        }
        Ok(())
    };
    for (name, config) in [
        ("cpo", json!({})),
        ("cpo", json!({ "loss_type": "hinge" })),
        ("cpo", json!({ "loss_type": "ipo", "cpo_alpha": 0.0 })),
        ("simpo", json!({})),
        ("simpo", json!({ "cpo_alpha": 1.0 })),
        ("orpo", json!({})),
        ("dpo", json!({ "loss_type": "simper" })),
        ("dpo", json!({ "loss_type": "simper", "use_weighting": true })),
    ] {
        run(name, &config).unwrap_or_else(|e| panic!("{name} {config}: {e:?}"));
    }
    for config in [json!({}), json!({ "loss_type": ["simper", "sigmoid"] })] {
        let error = run("dpo", &config).unwrap_err();
        assert!(format!("{error:?}").contains("the reference ran"), "{error:?}");
    }
}
