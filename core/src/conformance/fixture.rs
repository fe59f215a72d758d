//! A model that is small enough to be checked number by number, and pairs for it.

use indexmap::IndexMap;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::api::Init;
use crate::error::Result;
use crate::model::Model;
use crate::text::TokenPair;

const VOCAB: i64 = 48;
const HIDDEN: i64 = 32;
const MLP: i64 = 64;
const KEY_VALUES: i64 = 16;
const LAYERS: usize = 3;

/// A Llama model of three blocks with random weights on the CPU: hidden size 32, two heads on one key-value head.
///
/// # Errors
/// What libtorch says.
pub fn model(kind: Kind) -> Result<Model> {
    let config = json!({
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": MLP, "num_hidden_layers": LAYERS,
        "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0,
    });
    let mut init = Init::new(0, "fixture", kind, Device::Cpu);
    let mut tensors = IndexMap::new();
    let mut matrix = |name: String, outputs: i64, inputs: i64| {
        let weight = init.normal(&name, &[outputs, inputs], 1.0 / (inputs as f64).sqrt()).detach();
        tensors.insert(format!("{name}.weight"), weight);
    };
    matrix("model.embed_tokens".to_owned(), VOCAB, HIDDEN);
    matrix("lm_head".to_owned(), VOCAB, HIDDEN);
    for layer in 0..LAYERS {
        let at = format!("model.layers.{layer}");
        for (name, outputs, inputs) in [("q_proj", HIDDEN, HIDDEN), ("k_proj", KEY_VALUES, HIDDEN), ("v_proj", KEY_VALUES, HIDDEN), ("o_proj", HIDDEN, HIDDEN)]
        {
            matrix(format!("{at}.self_attn.{name}"), outputs, inputs);
        }
        for (name, outputs, inputs) in [("gate_proj", MLP, HIDDEN), ("up_proj", MLP, HIDDEN), ("down_proj", HIDDEN, MLP)] {
            matrix(format!("{at}.mlp.{name}"), outputs, inputs);
        }
    }
    let norms = (0..LAYERS).flat_map(|i| ["input_layernorm", "post_attention_layernorm"].map(|n| format!("model.layers.{i}.{n}.weight")));
    for name in norms.chain(["model.norm.weight".to_owned()]) {
        tensors.insert(name, Tensor::ones([HIDDEN], (kind, Device::Cpu)));
    }
    Model::from_tensors(&config, tensors, kind, Device::Cpu)
}

/// Six pairs of a few tokens; two of them share their prompt and their chosen completion.
pub fn pairs() -> Vec<TokenPair> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut tokens = |n: usize| (0..n).map(|_| rng.random_range(0..VOCAB)).collect::<Vec<_>>();
    let mut pairs: Vec<TokenPair> = [(4, 3, 5), (6, 4, 2), (3, 2, 3), (5, 3, 4), (4, 5, 2)]
        .into_iter()
        .enumerate()
        .map(|(index, (prompt, chosen, rejected))| TokenPair { index, prompt: tokens(prompt), chosen: tokens(chosen), rejected: tokens(rejected) })
        .collect();
    let first = &pairs[0];
    pairs.push(TokenPair { index: 5, prompt: first.prompt.clone(), chosen: first.chosen.clone(), rejected: tokens(3) });
    pairs
}
