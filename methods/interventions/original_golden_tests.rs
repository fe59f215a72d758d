//! Checks the losses and gradients of the original variants against reference values. No transform
//! is used.

use std::collections::BTreeMap;
use std::path::Path;

use reprpo_core::weights::read_safetensors;
use reprpo_plugin::prelude::*;
use reprpo_plugin::tch::Device;

use super::mse::Mse;
use super::original::{OriginalTap, Padded, Variant};
use super::prefvec::PrefVec;
use super::rank::Rank;
use crate::golden;
use crate::taps::outliers;
use reprpo_plugin::testkit::{token_states, tokens};

/// The tensors of the reference file, by name: inputs, losses and gradients.
struct Inputs {
    tensors: BTreeMap<String, Tensor>,
}

impl Inputs {
    fn of(&self, model: &str, what: &str) -> Sides {
        let side = |side: &str| self.tensors[&format!("{model}_{side}.{what}")].shallow_clone();
        Sides { chosen: side("cho"), rejected: side("rej") }
    }

    /// Returns the policy's leaf tensors with their names. The reference file only contains
    /// gradients of these tensors.
    fn leaves(&self) -> impl Iterator<Item = (&String, &Tensor)> {
        let leaf = |name: &str| name.starts_with("pi_") && !name.ends_with(".logits");
        self.tensors.iter().filter(move |(name, _)| leaf(name))
    }

    fn tokens(&self) -> [Sides<TokenStates>; 4] {
        let of_model = |model: &str, k: usize| {
            let states = self.of(model, &format!("hs.{k}"));
            let completion = states.as_ref().map(|x| x.select(-1, 0).ones_like());
            states.zip(completion).map(|(x, completion)| token_states(&x, &completion))
        };
        [of_model("pi", 1), of_model("ref", 1), of_model("pi", 2), of_model("ref", 2)]
    }

    /// Returns the attention mask of each side, `[m]`. The mask is false for padding.
    fn attended(&self) -> Sides {
        Sides::of(|side| {
            self.tensors[&format!("{}_mask", side.name())].reshape([-1]).to_kind(Kind::Bool)
        })
    }

    fn pairs(&self) -> Pairs {
        let logprobs = |model: &str| {
            let of = |x: Tensor| Some(tokens(&x, &[1, 1, 1]));
            Logprobs::of_sides(self.of(model, "label_logprobs").map(of))
        };
        let ids = self.tensors["chosen_ids"].unsqueeze(-1);
        let nll = |model: &str| {
            -self
                .of(model, "logits")
                .chosen
                .log_softmax(-1, None::<Kind>)
                .gather(-1, &ids, false)
                .reshape([-1])
        };
        let (b, t) = self.tensors["chosen_mask"].size2().unwrap();
        Pairs::new(3, Vec::new(), Some(logprobs("pi")), Some(logprobs("ref"))).with_sequence_nll(
            SequenceNll {
                policy: nll("pi"),
                reference: nll("ref"),
                owner: Tensor::arange(b, (Kind::Int64, Device::Cpu))
                    .repeat_interleave_self_int(t, 0, None),
            },
        )
    }
}

enum Original {
    Mse(Mse),
    Rank(Rank),
    PrefVec(PrefVec),
}

impl Original {
    fn loss(&self, inputs: &Inputs) -> Tensor {
        let (pairs, tokens, attended) = (inputs.pairs(), inputs.tokens(), inputs.attended());
        let [pi_1, ref_1, pi_2, ref_2] = tokens.each_ref().map(|sides| {
            sides.as_ref().zip(attended.as_ref()).map(|(tokens, attended)| Padded {
                tokens,
                attended: Some(attended.shallow_clone()),
            })
        });
        let deviations = Some(outliers::DEVIATIONS);
        let taps = [[pi_1, ref_1], [pi_2, ref_2]].map(|tokens| OriginalTap { tokens, deviations });
        match self {
            Self::Mse(mse) => mse.original(&taps),
            Self::Rank(rank) => rank.original(&taps, &pairs, Some(&attended.chosen)),
            Self::PrefVec(prefvec) => prefvec.original(&taps, &pairs),
        }
        .unwrap()
        .value
    }
}

#[test]
fn losses_and_gradients_equal_those_of_the_originals() {
    for root in golden::roots() {
        assert_losses_and_gradients(&root);
    }
}

fn assert_losses_and_gradients(folder: &Path) {
    let inputs = Inputs {
        tensors: read_safetensors(&folder.join("original.safetensors"))
            .unwrap()
            .into_iter()
            .collect(),
    };
    let mse = Mse { variant: Variant::Original, ..Mse::default() };
    let rank = Rank { variant: Variant::Original, ..Rank::default() };
    let prefvec = PrefVec { variant: Variant::Original, ..PrefVec::default() };
    let cases: [(&str, Original); 7] = [
        ("mse.default", Original::Mse(mse)),
        ("rank.default", Original::Rank(rank.clone())),
        ("rank.all", Original::Rank(Rank { original_nll: true, original_retain: true, ..rank })),
        ("prefvec.default", Original::PrefVec(prefvec.clone())),
        (
            "prefvec.orth",
            Original::PrefVec(PrefVec {
                original_orth: true,
                original_proj_abs: false,
                ..prefvec.clone()
            }),
        ),
        (
            "prefvec.angle",
            Original::PrefVec(PrefVec {
                original_angle: true,
                original_proj: false,
                original_proj_abs: false,
                original_dpo: false,
                ..prefvec.clone()
            }),
        ),
        (
            "prefvec.dpo_only",
            Original::PrefVec(PrefVec {
                original_proj: false,
                original_proj_abs: false,
                ..prefvec
            }),
        ),
    ];
    for (_, leaf) in inputs.leaves() {
        let _ = leaf.set_requires_grad(true);
    }
    for (name, method) in cases {
        let loss = method.loss(&inputs);
        let (ours, reference) =
            (loss.double_value(&[]), inputs.tensors[&format!("{name}.loss")].double_value(&[0]));
        let off = (ours - reference).abs() / reference.abs();
        loss.backward();
        let mut worst: f64 = 0.0;
        for (leaf, tensor) in inputs.leaves() {
            let mut grad = tensor.grad();
            match inputs.tensors.get(&format!("{name}.grad.{leaf}")) {
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
        assert!(
            off < 1e-5 && worst < 1e-4,
            "{name}: loss is {ours} instead of {reference}; error of the gradients {worst}"
        );
    }
}
