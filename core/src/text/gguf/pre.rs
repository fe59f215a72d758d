//! Pre-tokenizers for byte-level tokenizers. A pre-tokenizer splits text into words. llama.cpp
//! stores the name of the pre-tokenizer under `tokenizer.ggml.pre`.
//!
//! The regular expressions were copied from the tokenizer.json of the named models.

use crate::error::{Error, Result};

/// A pre-tokenizer, and other settings that its name implies.
pub(super) struct Pre {
    /// llama.cpp's names.
    names: &'static [&'static str],
    /// Regular expression that matches a word; `None` for the regular expression of GPT-2.
    pub expression: Option<&'static str>,
    /// True if each digit becomes a separate word before the expression is applied.
    pub digits: bool,
    /// True if a word that is in the vocabulary always becomes a single token, even if the merges
    /// would not produce it.
    pub ignore_merges: bool,
    /// True if the text is first normalised to NFC.
    pub compose: bool,
    /// True if the BOS token is added by default.
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
    // The tokenizer of StarCoder and, under the name `refact`, of Granite 3.
    Pre { names: &["starcoder", "refact"], digits: true, ..GPT_2 },
    // SmolLM's tokenizer.json makes each digit a separate word. transformers does not do this when
    // it loads a GGUF file. `digits` is not set, so that the ids match transformers. The vocabulary
    // has no merges of digits, so `digits` would only affect spaces before digits.
    Pre { names: &["smollm"], ..GPT_2 },
    // GPT-NeoX's tokenizer, which llama.cpp names after OLMo and MPT.
    Pre { names: &["olmo", "mpt"], compose: true, ..GPT_2 },
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3"],
        expression: Some(LLAMA_3),
        ignore_merges: true,
        bos: true,
        ..GPT_2
    },
    // Llama 3's tokenizer without a BOS token, as used by SmolLM3.
    Pre { names: &["smaug-bpe"], expression: Some(LLAMA_3), ignore_merges: true, ..GPT_2 },
    // GPT-4's tokenizer, as used by Phi-4, OLMo 2, OLMo 3 and Granite 4.
    Pre { names: &["dbrx"], expression: Some(LLAMA_3), ..GPT_2 },
    Pre {
        names: &["qwen2", "deepseek-r1-qwen", "megrez"],
        expression: Some(QWEN_2),
        compose: true,
        ..GPT_2
    },
    Pre { names: &["tekken"], expression: Some(TEKKEN), ignore_merges: true, bos: true, ..GPT_2 },
    // Phi-4-mini's tokenizer.
    Pre { names: &["gpt-4o"], expression: Some(GPT_4O), ..GPT_2 },
];

/// Looks up a pre-tokenizer by its name in llama.cpp.
///
/// # Errors
/// Fails if the name is unknown.
pub(super) fn of(name: &str) -> Result<&'static Pre> {
    PRE.iter().find(|p| p.names.contains(&name)).ok_or_else(|| {
        Error::unknown("GGUF pre-tokenizer", name, names())
            .hint("use the model's Hugging Face folder instead")
    })
}

/// The names of all pre-tokenizers.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    PRE.iter().flat_map(|p| p.names.iter().copied())
}
