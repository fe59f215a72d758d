//! A small model and preference pairs to test methods with.

use indexmap::IndexMap;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::api::{Init, ModelInfo};
use crate::error::Result;
use crate::model::Model;
use crate::text::TokenPair;

const VOCAB: i64 = 48;
const HIDDEN: i64 = 32;
const MLP: i64 = 64;
const KEY_VALUES: i64 = 16;
/// Number of blocks of the model that methods are trained on.
pub(super) const BLOCKS: usize = 3;

/// Number of blocks of the model that taps are checked on. It is typical of small chat models.
pub(super) const DEEP: usize = 30;

/// Creates a Llama model with random weights on the CPU. It has three blocks of hidden size 32,
/// with two attention heads that share one key-value head.
///
/// # Errors
/// Fails if memory runs out.
pub fn model(kind: Kind) -> Result<Model> {
    of_weights(BLOCKS, weights(BLOCKS, kind), kind)
}

/// Describes the same model as [`model`], but with `blocks` blocks.
///
/// # Errors
/// Fails if memory runs out.
pub(super) fn info(blocks: usize) -> Result<ModelInfo> {
    Ok(of_weights(blocks, weights(blocks, Kind::Float), Kind::Float)?.info().clone())
}

/// Creates the model from `weights`, which must contain `blocks` blocks.
pub(super) fn of_weights(
    blocks: usize,
    weights: IndexMap<String, Tensor>,
    kind: Kind,
) -> Result<Model> {
    let config = json!({
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": MLP,
        "num_hidden_layers": blocks,
        "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
    });
    Model::from_tensors(&config, weights, kind, Device::Cpu)
}

/// Creates random weights under the tensor names of a Hugging Face Llama checkpoint.
pub(super) fn weights(blocks: usize, kind: Kind) -> IndexMap<String, Tensor> {
    let mut init = Init::new(0, "fixture", kind, Device::Cpu);
    let mut tensors = IndexMap::new();
    let mut matrix = |name: String, outputs: i64, inputs: i64| {
        let weight = init.normal(&name, &[outputs, inputs], 1.0 / (inputs as f64).sqrt()).detach();
        tensors.insert(format!("{name}.weight"), weight);
    };
    matrix("model.embed_tokens".to_owned(), VOCAB, HIDDEN);
    matrix("lm_head".to_owned(), VOCAB, HIDDEN);
    for block in 0..blocks {
        let at = format!("model.layers.{block}");
        for (name, outputs, inputs) in [
            ("q_proj", HIDDEN, HIDDEN),
            ("k_proj", KEY_VALUES, HIDDEN),
            ("v_proj", KEY_VALUES, HIDDEN),
            ("o_proj", HIDDEN, HIDDEN),
        ] {
            matrix(format!("{at}.self_attn.{name}"), outputs, inputs);
        }
        for (name, outputs, inputs) in
            [("gate_proj", MLP, HIDDEN), ("up_proj", MLP, HIDDEN), ("down_proj", HIDDEN, MLP)]
        {
            matrix(format!("{at}.mlp.{name}"), outputs, inputs);
        }
    }
    let norms = (0..blocks).flat_map(|i| {
        ["input_layernorm", "post_attention_layernorm"]
            .map(|n| format!("model.layers.{i}.{n}.weight"))
    });
    for name in norms.chain(["model.norm.weight".to_owned()]) {
        tensors.insert(name, Tensor::ones([HIDDEN], (kind, Device::Cpu)));
    }
    tensors
}

/// Returns six pairs of a few tokens each. Two of them have the same prompt and the same chosen
/// completion.
pub fn pairs() -> Vec<TokenPair> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut tokens = |n: usize| (0..n).map(|_| rng.random_range(0..VOCAB)).collect::<Vec<_>>();
    let mut pairs: Vec<TokenPair> = [(4, 3, 5), (6, 4, 2), (3, 2, 3), (5, 3, 4), (4, 5, 2)]
        .into_iter()
        .enumerate()
        .map(|(index, (prompt, chosen, rejected))| TokenPair {
            index,
            row: index,
            prompt: tokens(prompt),
            chosen: tokens(chosen),
            rejected: tokens(rejected),
        })
        .collect();
    let first = &pairs[0];
    pairs.push(TokenPair {
        index: 5,
        row: 5,
        prompt: first.prompt.clone(),
        chosen: first.chosen.clone(),
        rejected: tokens(3),
    });
    pairs
}

/// Pairs whose prompts or completions begin with the same tokens.
pub(super) fn pairs_with_common_beginnings() -> Vec<TokenPair> {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut tokens = |n: usize| (0..n).map(|_| rng.random_range(0..VOCAB)).collect::<Vec<_>>();
    let (system, question, answer) = (tokens(9), tokens(3), tokens(10));
    let after = |start: &[i64], rest: Vec<i64>| [start, &rest].concat();
    [
        (after(&system, question.clone()), after(&answer, tokens(3)), after(&answer, tokens(2))),
        (after(&system, tokens(4)), tokens(3), tokens(4)),
        (after(&system, question), after(&answer, tokens(1)), answer[..9].to_vec()),
        (tokens(5), tokens(2), tokens(3)),
    ]
    .into_iter()
    .enumerate()
    .map(|(index, (prompt, chosen, rejected))| TokenPair {
        index,
        row: index,
        prompt,
        chosen,
        rejected,
    })
    .collect()
}

/// Returns a pair whose chosen and rejected completions are identical.
pub(super) fn twins() -> TokenPair {
    let first = &pairs()[0];
    TokenPair { index: 6, row: 6, prompt: first.prompt.clone(), chosen: vec![1], rejected: vec![1] }
}
