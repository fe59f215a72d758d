//! The tokenizer of a GGUF file: its vocabulary and merges, and by name how text is cut into words before they apply.

use std::collections::HashMap;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer as Ids};

use super::{Extras, foreign};
use crate::error::{Error, Result};
use crate::weights::Metadata;

/// How text is cut into words.
struct Pre {
    name: &'static str,
    cut: Cut,
    /// Whether a whole word that is a token is taken without looking at the merges.
    ignore_merges: bool,
    /// Whether text is brought into Unicode's composed form first.
    compose: bool,
}

enum Cut {
    /// GPT-2's expression.
    Gpt2,
    /// An expression of its own.
    By(&'static str),
}

const PRE: [Pre; 5] = [
    // The model's own tokenizer.json first makes every digit a word. No two digits merge in its vocabulary, so that
    // shows in one place alone: blanks before a digit. transformers reads the GGUF file without it, and its ids are the
    // reference here.
    Pre { name: "smollm", cut: Cut::Gpt2, ignore_merges: false, compose: false },
    Pre { name: "gpt-2", cut: Cut::Gpt2, ignore_merges: false, compose: false },
    Pre { name: "default", cut: Cut::Gpt2, ignore_merges: false, compose: false },
    Pre {
        name: "llama-bpe",
        cut: Cut::By(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
        ignore_merges: true,
        compose: false,
    },
    Pre {
        name: "qwen2",
        cut: Cut::By(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
        ignore_merges: false,
        compose: true,
    },
];

/// llama.cpp's numbers for the sorts of token that are looked for in the text before anything else.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Reads the vocabulary and what stands beside it.
pub(super) fn read(meta: &Metadata) -> Result<(Ids, Extras)> {
    let text = |key: &str| meta.text(key)?.ok_or_else(|| meta.missing(key));
    let model = text("tokenizer.ggml.model")?;
    if model != "gpt2" {
        return Err(Error::unknown("tokenizer model of GGUF", model, ["gpt2"]).hint("take the model's Hugging Face folder: its tokenizer.json can hold any"));
    }
    let name = meta.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let pre = PRE.iter().find(|p| p.name == name).ok_or_else(|| {
        Error::unknown("pre-tokenizer of GGUF", name, PRE.map(|p| p.name)).hint("take the model's Hugging Face folder: its tokenizer.json can hold any")
    })?;

    let tokens = meta.texts("tokenizer.ggml.tokens")?.ok_or_else(|| meta.missing("tokenizer.ggml.tokens"))?;
    let merges = meta.texts("tokenizer.ggml.merges")?.ok_or_else(|| meta.missing("tokenizer.ggml.merges"))?;
    let sorts = meta.integers("tokenizer.ggml.token_type")?.unwrap_or_default();
    if !sorts.is_empty() && sorts.len() != tokens.len() {
        return Err(Error::new(format!("the tokenizer has {} tokens and {} token types", tokens.len(), sorts.len())));
    }

    let mut ids = Ids::new(model_of(&tokens, &merges, pre.ignore_merges)?);
    let bytes = |by_expression| ByteLevel::new(false, true, by_expression);
    if pre.compose {
        ids.with_normalizer(Some(NFC)).map_err(foreign)?;
    }
    let cut: Vec<PreTokenizerWrapper> = match pre.cut {
        Cut::Gpt2 => vec![bytes(true).into()],
        Cut::By(expression) => {
            let split = Split::new(SplitPattern::Regex(expression.to_owned()), SplitDelimiterBehavior::Isolated, false).map_err(foreign)?;
            vec![split.into(), bytes(false).into()]
        }
    };
    ids.with_pre_tokenizer(Some(Sequence::new(cut)));
    ids.with_decoder(Some(bytes(true)));
    let added =
        |sort: i64| tokens.iter().zip(&sorts).filter(move |(_, s)| **s == sort).map(move |(t, _)| AddedToken::from(*t, sort == CONTROL).normalized(false));
    ids.add_tokens(added(CONTROL).chain(added(USER_DEFINED))).map_err(foreign)?;

    let special = |what: &str| -> Result<Option<String>> {
        let key = format!("tokenizer.ggml.{what}_token_id");
        let Some(id) = meta.unsigned(&key)? else { return Ok(None) };
        let token = usize::try_from(id).ok().and_then(|id| tokens.get(id));
        token.map(|t| Some((*t).to_owned())).ok_or_else(|| Error::new(format!("`{key}` is {id}, and there are {} tokens", tokens.len())))
    };
    let extras = Extras {
        bos: special("bos")?,
        eos: special("eos")?,
        pad: special("padding")?,
        chat_template: meta.text("tokenizer.chat_template")?.map(str::to_owned),
    };
    Ok((ids, extras))
}

fn model_of(tokens: &[&str], merges: &[&str], ignore_merges: bool) -> Result<BPE> {
    let known: HashMap<&str, u32> = tokens.iter().copied().zip(0..).collect();
    if known.len() != tokens.len() {
        let twice = tokens.iter().zip(0..).find(|(t, i)| known.get(*t) != Some(i));
        return Err(Error::new(format!("the tokenizer has the token `{}` twice", twice.map_or("", |(t, _)| t))));
    }
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges {
        let (a, b) = merge.split_once(' ').ok_or_else(|| Error::new(format!("the tokenizer's merge `{merge}` is no pair of tokens")))?;
        // The crate would panic at a merge into something longer than any token.
        if [a, b, &format!("{a}{b}")].iter().any(|t| !known.contains_key(t)) {
            return Err(Error::new(format!("the tokenizer's merge `{merge}` is of or into something that is no token")));
        }
        pairs.push((a.to_owned(), b.to_owned()));
    }
    let vocab: Vocab = known.into_iter().map(|(token, id)| (token.to_owned(), id)).collect();
    BPE::builder().vocab_and_merges(vocab, pairs).ignore_merges(ignore_merges).build().map_err(foreign)
}
