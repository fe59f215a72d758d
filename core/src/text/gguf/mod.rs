//! The tokenizer that a GGUF file carries: `tokenizer.ggml.model` says of which sort, and the rest
//! of the keys the rest.
//!
//! A file comes from anywhere, so counts and lengths are bounded here before anything is built from
//! them.

mod bpe;
mod pre;
mod spm;

use std::borrow::Cow;

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::{AddedToken, Tokenizer as Ids};

use super::{Extras, foreign};
use crate::error::{Error, Result};
use crate::weights::Metadata;

/// Four times what the largest vocabularies have.
const MOST_TOKENS: usize = 1 << 20;
const MOST_MERGES: usize = 1 << 21;
/// Of the tokens that are looked for in the text before anything else, together. Gemma has 6 000 of
/// ten bytes each.
const MOST_ADDED_BYTES: usize = 1 << 20;

/// llama.cpp's sorts of tokens.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// A token of the vocabulary; its id is its place.
struct Token<'a> {
    text: Cow<'a, str>,
    sort: i64,
    /// Whether the blanks behind it belong to it: see [`spm`].
    takes_blanks: bool,
}

/// What the two sorts of tokenizer make of the vocabulary.
struct Built {
    ids: Ids,
    /// Whether a text begins with the token for that, where the file does not say.
    bos: bool,
}

/// Reads the vocabulary and what stands beside it.
pub(super) fn read(meta: &Metadata) -> Result<(Ids, Extras)> {
    let model =
        meta.text("tokenizer.ggml.model")?.ok_or_else(|| meta.missing("tokenizer.ggml.model"))?;
    let mut tokens = tokens(meta)?;
    let Built { mut ids, bos } = match model {
        "gpt2" => bpe::build(meta, &tokens)?,
        "llama" => spm::build(meta, &mut tokens)?,
        _ => {
            return Err(Error::unknown("tokenizer model of GGUF", model, ["gpt2", "llama"])
                .hint("take the model's Hugging Face folder: its tokenizer.json can hold any"));
        }
    };
    add(&mut ids, &tokens)?;

    let special = |what: &str| -> Result<Option<String>> {
        let key = format!("tokenizer.ggml.{what}_token_id");
        let Some(id) = meta.unsigned(&key)? else { return Ok(None) };
        let token = usize::try_from(id).ok().and_then(|id| tokens.get(id));
        token.map(|t| Some(t.text.to_string())).ok_or_else(|| {
            Error::new(format!("`{key}` is {id}, and there are {} tokens", tokens.len()))
        })
    };
    let mut named_templates = Vec::new();
    for name in meta.texts("tokenizer.chat_templates")?.unwrap_or_default() {
        if let Some(template) = meta.text(&format!("tokenizer.chat_template.{name}"))? {
            named_templates.push((name.to_owned(), template.to_owned()));
        }
    }
    let extras = Extras {
        bos: special("bos")?,
        eos: special("eos")?,
        pad: special("padding")?,
        others: special("unknown")?.map(|text| ("unk_token", text)).into_iter().collect(),
        chat_template: meta.text("tokenizer.chat_template")?.map(str::to_owned),
        named_templates,
        begin: meta.truth("tokenizer.ggml.add_bos_token")?.unwrap_or(bos),
        end: meta.truth("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
        ..Extras::default()
    };
    Ok((ids, extras))
}

fn tokens(meta: &Metadata) -> Result<Vec<Token<'_>>> {
    let texts = meta
        .texts("tokenizer.ggml.tokens")?
        .ok_or_else(|| meta.missing("tokenizer.ggml.tokens"))?;
    if texts.len() > MOST_TOKENS {
        return Err(Error::new(format!("the tokenizer has {} tokens", texts.len()))
            .hint(format!("valid: up to {MOST_TOKENS}")));
    }
    let sorts =
        meta.integers("tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![NORMAL; texts.len()]);
    if sorts.len() != texts.len() {
        return Err(Error::new(format!(
            "the tokenizer has {} tokens and {} token types",
            texts.len(),
            sorts.len()
        )));
    }
    Ok(texts
        .into_iter()
        .zip(sorts)
        .map(|(text, sort)| Token { text: text.into(), sort, takes_blanks: false })
        .collect())
}

/// The tokens by their text.
fn vocabulary(tokens: &[Token]) -> Result<Vocab> {
    let mut vocab = Vocab::with_capacity(tokens.len());
    for (token, id) in tokens.iter().zip(0..) {
        if let Some(first) = vocab.insert(token.text.to_string(), id) {
            return Err(Error::new(format!(
                "the tokenizer has the token `{}` twice, as {first} and as {id}",
                token.text
            )));
        }
    }
    Ok(vocab)
}

/// The merges that the file lists, each of and into tokens, where it does.
fn listed_merges(meta: &Metadata, vocab: &Vocab) -> Result<Option<Merges>> {
    let Some(listed) = meta.texts("tokenizer.ggml.merges")? else { return Ok(None) };
    if listed.len() > MOST_MERGES {
        return Err(Error::new(format!("the tokenizer has {} merges", listed.len()))
            .hint(format!("valid: up to {MOST_MERGES}")));
    }
    let mut merges = Vec::with_capacity(listed.len());
    for merge in listed {
        // A token may begin with a blank, as added ones do; none is empty.
        let blank = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let (a, b) = blank.map(|at| (&merge[..at], &merge[at + 1..])).ok_or_else(|| {
            Error::new(format!("the tokenizer's merge `{merge}` is no pair of tokens"))
        })?;
        // The crate would panic at a merge into something longer than any token.
        if [a, b, &format!("{a}{b}")].iter().any(|t| !vocab.contains_key(*t)) {
            return Err(Error::new(format!(
                "the tokenizer's merge `{merge}` is of or into something that is no token"
            )));
        }
        merges.push((a.to_owned(), b.to_owned()));
    }
    Ok(Some(merges))
}

/// Has the special tokens, and those that somebody added, looked for in the text before anything
/// else.
fn add(ids: &mut Ids, tokens: &[Token]) -> Result<()> {
    let special = |t: &Token| matches!(t.sort, CONTROL | UNKNOWN);
    let added =
        || tokens.iter().filter(|t| !t.text.is_empty() && (special(t) || t.sort == USER_DEFINED));
    let bytes: usize = added().map(|t| t.text.len()).sum();
    if bytes > MOST_ADDED_BYTES {
        return Err(Error::new(format!(
            "the tokenizer has special and added tokens of {bytes} bytes together"
        ))
        .hint(format!("valid: up to {MOST_ADDED_BYTES}")));
    }
    let as_added = |t: &Token| {
        AddedToken::from(t.text.as_ref(), special(t)).normalized(false).rstrip(t.takes_blanks)
    };
    // What is special goes first: of two that fit, the crate takes the one it was told of first.
    let (first, then): (Vec<&Token>, Vec<&Token>) = added().partition(|t| special(t));
    ids.add_tokens(first.into_iter().chain(then).map(as_added)).map_err(foreign)?;
    Ok(())
}

/// The crate's model, from parts that were checked.
fn model(
    vocab: Vocab,
    merges: Merges,
    with: impl FnOnce(tokenizers::models::bpe::BpeBuilder) -> tokenizers::models::bpe::BpeBuilder,
) -> Result<BPE> {
    with(BPE::builder().vocab_and_merges(vocab, merges)).build().map_err(foreign)
}

#[cfg(test)]
mod tests;
