//! Checks the losses and gradients of `original`, and of the later version of `mse` and `rank`,
//! against reference values. No transform is used.
//!
//! The weights of use_wpo and use_mallows depend on padding, which a training batch does not have.
//! Here, they are applied to the inputs.

use std::collections::BTreeMap;
use std::path::Path;

use reprpo_core::weights::read_safetensors;
use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::{self, Map, Value, json};
use reprpo_plugin::tch::Device;
use reprpo_plugin::testkit::{model, token_states, tokens};

use super::InnerPo;
use super::original::Labels;
use crate::golden;
use crate::interventions::mse::Mse;
use crate::interventions::original::{OriginalTap, Padded, Variant, Version, later_logps};
use crate::interventions::rank::Rank;

/// The tensors of the reference file, by name.
struct Inputs(BTreeMap<String, Tensor>);

/// A case of the reference file.
struct Case {
    objective: String,
    name: String,
    /// The switches that differ from the defaults of the branch.
    switches: Map<String, Value>,
    layers: Vec<String>,
}

/// The states `[b t h]` and pooling masks `[b t]` of one tap.
struct States {
    models: [Sides; 2],
    masks: Sides,
}

const MODELS: [&str; 2] = ["pi", "ref"];

impl Case {
    fn is_on(&self, switch: &str) -> bool {
        self.switches.get(switch) == Some(&Value::Bool(true))
    }

    /// Returns the fields of `innerpo` for the switches.
    fn config(&self) -> InnerPo {
        let mut fields = json!({ "variant": "original", "mode": self.objective });
        for (switch, value) in &self.switches {
            let (field, value) = match switch.as_str() {
                "α" => ("alpha", value.clone()),
                "β" => ("original_beta", value.clone()),
                "dpo_loss" | "loss_type" => {
                    let name = value.as_str().unwrap().to_lowercase();
                    ("original_dpo_loss", json!(name))
                }
                "topk_n" => ("topk_n", value.clone()),
                "detach_ref" => ("original_detach_rejected", value.clone()),
                "use_inner_weights" => ("original_inner_weights", value.clone()),
                "use_token_constraint" => ("original_token_constraint", value.clone()),
                "use_policy_weights" => ("original_policy_weights", value.clone()),
                "use_wpo" | "use_mallows" => continue,
                name => {
                    fields[format!("original_{name}")] = value.clone();
                    continue;
                }
            };
            fields[field] = value;
        }
        // The branch has a β for `SimPER`, but does not read it.
        if fields["original_dpo_loss"] == "simper" {
            fields.as_object_mut().unwrap().remove("original_beta");
        }
        let config: InnerPo = serde_json::from_value(fields).unwrap();
        config.clone().build(&model()).unwrap_or_else(|e| panic!("{}: {e:?}", self.name));
        config
    }
}

impl Inputs {
    fn of(&self, model: &str, what: &str) -> Sides {
        Sides {
            chosen: self.0[&format!("{model}_cho.{what}")].shallow_clone(),
            rejected: self.0[&format!("{model}_rej.{what}")].shallow_clone(),
        }
    }

    fn mask(&self, what: &str) -> Sides {
        Sides::of(|side| self.0[&format!("{}_{what}", side.name())].to_kind(Kind::Bool))
    }

    /// Returns the policy's leaf tensors with their names.
    fn leaves(&self) -> impl Iterator<Item = (&String, &Tensor)> {
        let is_leaf = |name: &str| {
            let of_policy = name.starts_with("pi_");
            of_policy && [".hs.", "logits", "_logprobs"].iter().any(|part| name.contains(part))
        };
        self.0.iter().filter(move |(name, _)| is_leaf(name))
    }

    fn log_vocabulary(&self) -> f64 {
        (*self.0["pi_cho.logits"].size().last().unwrap() as f64).ln()
    }

    fn states(&self, case: &Case, layer: &str) -> States {
        let mut models = MODELS.map(|model| self.of(model, &format!("hs.{layer}")));
        let mut masks = self.mask("pool_mask");
        let before_last = |x: &Tensor| x.narrow(1, 0, x.size()[1] - 1);
        if !(case.is_on("use_wpo") || case.is_on("use_mallows")) {
            return States { models, masks };
        }
        masks = masks.map(|mask| before_last(&mask));
        if case.objective == "innerdpo" {
            let weight = if case.is_on("use_wpo") {
                let w = self.of("pi", "token_log_weights");
                let w = ((w.chosen + w.rejected) / 3.0).sigmoid();
                &w / (w.mean(None::<Kind>) + 1e-6)
            } else {
                let entropy = self.of("ref", "token_entropy");
                ((entropy.chosen + entropy.rejected) / (2.0 * self.log_vocabulary())).log() * -0.29
            };
            let [policy, reference] = models.map(|states| states.map(|x| before_last(&x)));
            models = [policy.map(|x| x * weight.unsqueeze(-1)), reference];
        } else {
            for (states, model) in models.iter_mut().zip(MODELS) {
                let entropy = self.of(model, "token_entropy");
                *states = states.as_ref().zip(entropy).map(|(x, entropy)| {
                    let last = x.narrow(1, x.size()[1] - 1, 1);
                    last * (&entropy / (&entropy + 1e-6)).unsqueeze(-1)
                });
            }
        }
        States { models, masks }
    }

    /// Returns ℓ of one model, as the mode `dpo` of the branch computes it from single tokens.
    fn reduced(&self, case: &Case, model: &str, mean: bool) -> Sides {
        let entropy = self.of(model, "token_entropy");
        let side = self.of(model, "token_logprobs").zip(self.mask("pool_mask")).zip(entropy);
        let logprobs = side.map(|((mut logprobs, mask), entropy)| {
            if case.name.ends_with("_mallows") {
                let total = entropy.sum_dim_intlist(-1, true, None::<Kind>) + 1e-6;
                logprobs = logprobs * entropy / total;
            }
            // The first token of the completion is predicted by the token before it.
            let n = mask.size()[1] - 1;
            let predicts = mask.narrow(1, 0, n).logical_or(&mask.narrow(1, 1, n));
            let lengths = predicts.sum_dim_intlist(-1, false, Kind::Int64);
            let lengths: Vec<i64> = lengths.try_into().unwrap();
            Some(tokens(&logprobs.masked_select(&predicts), &lengths))
        });
        later_logps(&Logprobs::of_sides(logprobs), mean).unwrap()
    }

    fn labels(&self, case: &Case, config: &InnerPo) -> Labels {
        let is_dpo_mode = case.objective == "dpo";
        let mean = config.original_dpo_loss != Some(super::OuterLoss::Dpo);
        let of_model = |model: &str| {
            if !is_dpo_mode {
                return self.of(model, "label_logprobs");
            }
            if !case.name.ends_with("_mallows_before") {
                return self.reduced(case, model, mean);
            }
            // φ multiplies θ, so it may multiply each log-probability.
            let masks = self.mask("pool_mask");
            let entropy = self.of("ref", "token_entropy").zip(masks).map(|(entropy, mask)| {
                let mask = mask.narrow(1, 0, entropy.size()[1]).to_kind(entropy.kind());
                let sum = |x: &Tensor| x.sum_dim_intlist(-1, false, None::<Kind>);
                sum(&(entropy * &mask)) / sum(&mask)
            });
            let both = (entropy.chosen + entropy.rejected) * 0.5 / self.log_vocabulary();
            let phi = both.log() * -0.29;
            self.of(model, "label_logprobs").map(|x| x * &phi)
        };
        let [policy, reference] = MODELS.map(of_model);
        Labels { policy, reference: Some(reference) }
    }

    /// A batch with the inputs of `rank`.
    fn pairs(&self) -> Pairs {
        let logprobs = |model: &str| {
            let of = |x: Tensor| Some(tokens(&x, &[1, 1, 1]));
            Logprobs::of_sides(self.of(model, "label_logprobs").map(of))
        };
        let ids = self.0["chosen_ids"].unsqueeze(-1);
        let nll = |model: &str| {
            let log_p = self.of(model, "logits").chosen.log_softmax(-1, None::<Kind>);
            -log_p.gather(-1, &ids, false).reshape([-1])
        };
        let (b, t) = self.0["chosen_mask"].size2().unwrap();
        let owner =
            Tensor::arange(b, (Kind::Int64, Device::Cpu)).repeat_interleave_self_int(t, 0, None);
        Pairs::new(3, Vec::new(), Some(logprobs("pi")), Some(logprobs("ref")))
            .with_sequence_nll(SequenceNll { policy: nll("pi"), reference: nll("ref"), owner })
    }

    fn loss(&self, case: &Case) -> Tensor {
        let states: Vec<States> = match case.objective.as_str() {
            "dpo" => Vec::new(),
            _ => case.layers.iter().map(|layer| self.states(case, layer)).collect(),
        };
        let tokens: Vec<[Sides<TokenStates>; 2]> = states
            .iter()
            .map(|tap| {
                tap.models.each_ref().map(|model| {
                    let masks = tap.masks.as_ref();
                    model.as_ref().zip(masks).map(|(x, mask)| token_states(x, mask))
                })
            })
            .collect();
        let config = match case.objective.as_str() {
            "mse" | "rank" => None,
            _ => Some(case.config()),
        };
        let deviations = config.as_ref().and_then(InnerPo::sinks);
        let padded = |side: &'_ TokenStates| side.completion.shallow_clone();
        let taps: Vec<OriginalTap<'_>> = tokens
            .iter()
            .map(|models| OriginalTap {
                tokens: models.each_ref().map(|sides| {
                    sides.as_ref().map(|side| Padded { tokens: side, attended: Some(padded(side)) })
                }),
                deviations,
            })
            .collect();
        let loss = match &config {
            Some(config) => {
                let weights =
                    config.original_policy_weights.then(|| self.of("pi", "label_log_weights"));
                config.original(&taps, Some(&self.labels(case, config)), weights.as_ref())
            }
            None if case.objective == "mse" => {
                let mse = Mse {
                    variant: Variant::Original,
                    original_version: Version::Later,
                    ..Mse::default()
                };
                mse.original(&taps)
            }
            None => {
                let number = |name: &str| case.switches.get(name).and_then(Value::as_f64);
                let rank = Rank {
                    variant: Variant::Original,
                    original_version: Version::Later,
                    alpha: number("α").unwrap_or(0.25),
                    original_beta: number("β").unwrap_or(1.0),
                    original_nll: case.is_on("use_nll_loss"),
                    original_retain: case.is_on("use_rank_retain"),
                    ..Rank::default()
                };
                let attended = self.mask("mask").chosen.reshape([-1]);
                rank.original(&taps, &self.pairs(), Some(&attended))
            }
        };
        loss.unwrap_or_else(|e| panic!("{}: {e:?}", case.name)).value
    }
}

/// Reads the cases from the metadata of a safetensors file.
fn cases(file: &Path) -> Vec<Case> {
    let bytes = std::fs::read(file).unwrap();
    let (length, rest) = bytes.split_at(8);
    let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&rest[..length]).unwrap();
    let cases = header["__metadata__"]["cases"].as_str().unwrap();
    let cases: Map<String, Value> = serde_json::from_str(cases).unwrap();
    cases
        .into_iter()
        .map(|(name, case)| Case {
            objective: name.split('.').next().unwrap().to_owned(),
            name,
            switches: case["switches"].as_object().unwrap().clone(),
            layers: serde_json::from_value(case["inputs"]["layers"].clone()).unwrap(),
        })
        .collect()
}

#[test]
fn losses_and_gradients_equal_those_of_the_branch() {
    for root in golden::roots() {
        assert_losses_and_gradients(&root.join("innerpo.safetensors"));
    }
}

fn assert_losses_and_gradients(file: &Path) {
    let inputs = Inputs(read_safetensors(file).unwrap().into_iter().collect());
    let cases = cases(file);
    assert_eq!(cases.len(), 43);
    for (_, leaf) in inputs.leaves() {
        let _ = leaf.set_requires_grad(true);
    }
    let mut largest: [f64; 2] = [0.0; 2];
    for case in &cases {
        let name = &case.name;
        let loss = inputs.loss(case);
        let (ours, reference) =
            (loss.double_value(&[]), inputs.0[&format!("{name}.loss")].double_value(&[0]));
        let off = (ours - reference).abs() / reference.abs();
        loss.backward();
        let mut worst: f64 = 0.0;
        for (leaf, tensor) in inputs.leaves() {
            let mut grad = tensor.grad();
            match inputs.0.get(&format!("{name}.grad.{leaf}")) {
                Some(reference) => worst = worst.max(golden::error(&grad, reference)),
                None => assert!(
                    !grad.defined() || grad.abs().max().double_value(&[]) == 0.0,
                    "{name}: {leaf} has a gradient here, but not in the original"
                ),
            }
            if grad.defined() {
                let _ = grad.zero_();
            }
        }
        eprintln!("{name}: loss {ours}, loss error {off:.1e}, largest gradient error {worst:.1e}");
        largest = [largest[0].max(off), largest[1].max(worst)];
        assert!(
            off < 1e-5 && worst < 1e-5,
            "{name}: loss is {ours} instead of {reference}; error of the gradients {worst}"
        );
    }
    eprintln!("largest error of a loss {:.1e}, of a gradient {:.1e}", largest[0], largest[1]);
}
