//! The original variants against what the original implementation computed, without a transform.

use std::collections::BTreeMap;

use reprpo_core::weights::read_safetensors;
use reprpo_plugin::prelude::*;
use reprpo_plugin::tch::Device;

use super::mse::Mse;
use super::original::Variant;
use super::prefvec::PrefVec;
use super::rank::Rank;
use crate::golden;
use reprpo_plugin::testkit::{STEP, map, token_states, tokens};

/// The tensors of the file, by name, and the pairs made of them.
struct Inputs {
    tensors: BTreeMap<String, Tensor>,
}

impl Inputs {
    fn of(&self, model: &str, what: &str) -> Sides {
        let side = |side: &str| self.tensors[&format!("{model}_{side}.{what}")].shallow_clone();
        Sides { chosen: side("cho"), rejected: side("rej") }
    }

    /// The leaves of the policy that the file may have gradients of, by name.
    fn leaves(&self) -> impl Iterator<Item = (&String, &Tensor)> {
        let leaf = |name: &str| name.starts_with("pi_") && !name.ends_with(".logits");
        self.tensors.iter().filter(move |(name, _)| leaf(name))
    }

    fn pairs(&self) -> Pairs {
        let attended = Sides { chosen: self.tensors["chosen_mask"].shallow_clone(), rejected: self.tensors["rejected_mask"].shallow_clone() };
        let of_model = |model: &str, k: usize| {
            let states = self.of(model, &format!("hs.{k}"));
            let of = |x: &Tensor, mask: &Tensor| token_states(x, mask, mask);
            Sides { chosen: of(&states.chosen, &attended.chosen), rejected: of(&states.rejected, &attended.rejected) }
        };
        // The original variants do not look at what was pooled already.
        let nothing = || Sides { chosen: Tensor::new(), rejected: Tensor::new() };
        let taps = [1, 2].map(|k| TapStates::new(Site::Residual(k), nothing(), Some(nothing())).with_tokens(of_model("pi", k), Some(of_model("ref", k))));
        let logprobs = |model: &str| {
            let labels = map(&self.of(model, "label_logprobs"), Tensor::shallow_clone);
            let of = |x: &Tensor| tokens(x, &[1, 1, 1]);
            Logprobs::new(of(&labels.chosen), Some(of(&labels.rejected)))
        };
        let ids = self.tensors["chosen_ids"].unsqueeze(-1);
        let nll = |model: &str| -self.of(model, "logits").chosen.log_softmax(-1, None::<Kind>).gather(-1, &ids, false).reshape([-1]);
        let (b, t) = attended.chosen.size2().unwrap();
        Pairs::new(3, taps.into(), Some(logprobs("pi")), Some(logprobs("ref"))).with_sequence_nll(SequenceNll {
            policy: nll("pi"),
            reference: nll("ref"),
            owner: Tensor::arange(b, (Kind::Int64, Device::Cpu)).repeat_interleave_self_int(t, 0, None),
            attended: attended.chosen.reshape([-1]).to_kind(Kind::Bool),
        })
    }
}

#[test]
fn losses_and_gradients_are_the_originals() {
    let Some(folder) = golden::folder() else { return };
    let inputs = Inputs { tensors: read_safetensors(&folder.join("original.safetensors")).unwrap().into_iter().collect() };
    let mse = Mse { variant: Variant::Original, ..Mse::default() };
    let rank = Rank { variant: Variant::Original, ..Rank::default() };
    let prefvec = PrefVec { variant: Variant::Original, ..PrefVec::default() };
    let cases: [(&str, Box<dyn Intervention>); 7] = [
        ("mse.default", Box::new(mse)),
        ("rank.default", Box::new(rank.clone())),
        ("rank.all", Box::new(Rank { original_nll: true, original_retain: true, ..rank })),
        ("prefvec.default", Box::new(prefvec.clone())),
        ("prefvec.orth", Box::new(PrefVec { original_orth: true, original_proj_abs: false, ..prefvec.clone() })),
        ("prefvec.angle", Box::new(PrefVec { original_angle: true, original_proj: false, original_proj_abs: false, original_dpo: false, ..prefvec.clone() })),
        ("prefvec.dpo_only", Box::new(PrefVec { original_proj: false, original_proj_abs: false, ..prefvec })),
    ];
    for (_, leaf) in inputs.leaves() {
        let _ = leaf.set_requires_grad(true);
    }
    for (name, mut method) in cases {
        let loss = method.loss(&inputs.pairs(), STEP).unwrap().value;
        let (ours, reference) = (loss.double_value(&[]), inputs.tensors[&format!("{name}.loss")].double_value(&[0]));
        let off = (ours - reference).abs() / reference.abs();
        loss.backward();
        let mut worst: f64 = 0.0;
        for (leaf, tensor) in inputs.leaves() {
            let mut grad = tensor.grad();
            match inputs.tensors.get(&format!("{name}.grad.{leaf}")) {
                Some(reference) => worst = worst.max(golden::error(&grad, reference)),
                None => assert!(!grad.defined() || grad.abs().max().double_value(&[]) == 0.0, "{name}: {leaf} has a gradient that the original has not"),
            }
            if grad.defined() {
                let _ = grad.zero_();
            }
        }
        eprintln!("{name}: loss {ours} off by {off:.1e}, gradients by {worst:.1e}");
        assert!(off < 1e-5 && worst < 1e-4, "{name}: loss is {ours}, not {reference}; gradients off by {worst}");
    }
}
