//! The data set of the self-test's training runs: short strings of letters, with one token per
//! letter.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::api::{Dataset, DatasetPlugin, PairIter, Plugin, PreferencePair, SplitInfo};
use crate::error::{Error, Result};
use crate::registry::DatasetEntry;

/// The letters in the vocabulary of a tiny model. There is one letter for each row of the model's
/// embedding matrix.
const LETTERS: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN";
const PAIRS: usize = 20;

/// The data set's registry entry, which is only registered during the self-test.
pub static DATASET: DatasetEntry =
    DatasetEntry::of::<LetterPairs>(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));

/// Twenty pairs of random letters. Prompts and completions have different lengths, and every fifth
/// pair shares its prompt with the previous one. Batches therefore have padding and shared prompts.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LetterPairs {}

impl Plugin for LetterPairs {
    const NAME: &'static str = "selftest-pairs";
    const SUMMARY: &'static str = "pairs of random letters";
    const EXPLAIN: &'static str = "The letters of each pair are drawn from a fixed seed.";
    const REFERENCE: &'static str = "this project's self-test";
}

impl DatasetPlugin for LetterPairs {
    fn build(self) -> Result<Box<dyn Dataset>> {
        Ok(Box::new(self))
    }
}

impl Dataset for LetterPairs {
    fn splits(&self) -> Vec<SplitInfo> {
        vec![SplitInfo {
            name: "train".to_owned(),
            describes: "random letters".to_owned(),
            pairs: Some(PAIRS),
        }]
    }

    fn pairs(&self, split: &str) -> Result<PairIter<'_>> {
        if split != "train" {
            return Err(Error::unknown("split", split, ["train"]));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let mut text = |least: usize, most: usize| {
            let n = rng.random_range(least..=most);
            (0..n)
                .map(|_| char::from(LETTERS.as_bytes()[rng.random_range(0..LETTERS.len())]))
                .collect::<String>()
        };
        let mut pairs: Vec<PreferencePair> = Vec::with_capacity(PAIRS);
        let mut prompt = String::new();
        for i in 0..PAIRS {
            if i % 5 != 4 {
                prompt = text(3, 12);
            }
            pairs.push(PreferencePair::new(prompt.clone(), text(2, 14), text(2, 14)));
        }
        Ok(Box::new(pairs.into_iter().map(Ok)))
    }
}

/// Returns the `tokenizer.json` of a BPE tokenizer with one token per letter. Some architectures
/// only accept BPE.
pub fn tokenizer() -> Value {
    let vocabulary: Map<String, Value> =
        LETTERS.chars().enumerate().map(|(i, letter)| (letter.to_string(), json!(i))).collect();
    json!({ "version": "1.0", "added_tokens": [], "model": { "type": "BPE", "vocab": vocabulary,
        "merges": [] } })
}

/// Returns the `tokenizer_config.json` of the same tokenizer. Without this file, the tokenizer's
/// class and special tokens would depend on the architecture.
pub fn tokenizer_config() -> Value {
    json!({ "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": null, "eos_token": null,
        "unk_token": null, "pad_token": null })
}
