//! How a byte-level tokenizer cuts text into words, by the names that llama.cpp has for it
//! (`tokenizer.ggml.pre`).
//!
//! A name stands for one model's tokenizer.json, and what is here is what stands there.

use crate::error::{Error, Result};

/// A way to cut text into words.
pub(super) struct Pre {
    names: &'static [&'static str],
    /// The expression of a word; `None` for GPT-2's.
    pub expression: Option<&'static str>,
    /// True if every digit is a word, before the expression is looked at.
    pub digits: bool,
    /// Whether a whole word that is a token is taken without looking at the merges.
    pub ignore_merges: bool,
    /// Whether text is brought into Unicode's composed form first.
    pub compose: bool,
    /// Whether the model's texts begin with the token for that.
    pub bos: bool,
}

const GPT_2: Pre = Pre {
    names: &[],
    expression: None,
    digits: false,
    ignore_merges: false,
    compose: false,
    bos: false,
};

const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

static PRE: [Pre; 10] = [
    Pre { names: &["gpt-2", "default", "phi-2", "granite-docling"], ..GPT_2 },
    // StarCoder's tokenizer, which Granite 3 has under the second name.
    Pre { names: &["starcoder", "refact"], digits: true, ..GPT_2 },
    // The model's own tokenizer.json first makes every digit a word. No two digits merge in its
    // vocabulary, so that shows in one place alone: blanks before a digit. transformers reads the
    // GGUF file without it, and its ids are the reference here.
    Pre { names: &["smollm"], ..GPT_2 },
    // GPT-NeoX's tokenizer, under the names of the two models that llama.cpp knows it by.
    Pre { names: &["olmo", "mpt"], compose: true, ..GPT_2 },
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3"],
        expression: Some(LLAMA_3),
        ignore_merges: true,
        bos: true,
        ..GPT_2
    },
    // Llama 3's tokenizer without the token at the beginning. SmolLM3 has it.
    Pre { names: &["smaug-bpe"], expression: Some(LLAMA_3), ignore_merges: true, ..GPT_2 },
    // The vocabulary of GPT-4, which Phi-4, OLMo 2, OLMo 3 and Granite 4 have under this name.
    Pre { names: &["dbrx"], expression: Some(LLAMA_3), ..GPT_2 },
    Pre {
        names: &["qwen2", "deepseek-r1-qwen", "megrez"],
        expression: Some(QWEN_2),
        compose: true,
        ..GPT_2
    },
    Pre { names: &["tekken"], expression: Some(TEKKEN), ignore_merges: true, bos: true, ..GPT_2 },
    // Phi-4-mini.
    Pre { names: &["gpt-4o"], expression: Some(GPT_4O), ..GPT_2 },
];

/// The one with a name.
///
/// # Errors
/// A name that is not known.
pub(super) fn of(name: &str) -> Result<&'static Pre> {
    PRE.iter().find(|p| p.names.contains(&name)).ok_or_else(|| {
        Error::unknown("pre-tokenizer of GGUF", name, names())
            .hint("take the model's Hugging Face folder: its tokenizer.json can hold any")
    })
}

/// All names.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    PRE.iter().flat_map(|p| p.names.iter().copied())
}
