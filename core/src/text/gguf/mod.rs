//! Builds a tokenizer from the metadata of a GGUF file. The key `tokenizer.ggml.model` contains the
//! type of the tokenizer.
//!
//! The file is untrusted, so all counts and lengths are checked before anything is built from them.

mod bpe;
mod pre;
mod spm;

use std::borrow::Cow;

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::{AddedToken, Tokenizer as Ids};

use super::{Extras, tokenizer_error};
use crate::error::{Error, Result};
use crate::weights::Metadata;

/// Maximum number of tokens, about four times the size of the largest known vocabularies.
const MAX_TOKENS: usize = 1 << 20;
/// Maximum number of merges.
const MAX_MERGES: usize = 1 << 21;
/// Maximum total size in bytes of the special and added tokens. Gemma has about 6,000 of these
/// tokens, of about ten bytes each.
const MAX_ADDED_BYTES: usize = 1 << 20;

// Values of `tokenizer.ggml.token_type` in llama.cpp's files.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// A token of the vocabulary. Its id is its index in the list of tokens.
struct Token<'a> {
    text: Cow<'a, str>,
    /// One of llama.cpp's token types, such as [`NORMAL`].
    token_type: i64,
    /// True if spaces after the token are removed. See [`spm`].
    strips_right: bool,
}

/// The result of [`bpe::build`] or [`spm::build`].
struct BuiltTokenizer {
    ids: Ids,
    /// True if the BOS token is added when the key `tokenizer.ggml.add_bos_token` is missing.
    bos: bool,
}

/// Reads the vocabulary, the special tokens and the chat templates of a GGUF file.
pub(super) fn read(meta: &Metadata) -> Result<(Ids, Extras)> {
    let model =
        meta.text("tokenizer.ggml.model")?.ok_or_else(|| meta.missing("tokenizer.ggml.model"))?;
    let mut tokens = tokens(meta)?;
    let BuiltTokenizer { mut ids, bos } = match model {
        "gpt2" => bpe::build(meta, &tokens)?,
        "llama" => spm::build(meta, &mut tokens)?,
        _ => {
            return Err(Error::unknown("GGUF tokenizer model", model, ["gpt2", "llama"])
                .hint("use the model's Hugging Face folder instead"));
        }
    };
    add(&mut ids, &tokens)?;

    let special = |what: &str| -> Result<Option<String>> {
        let key = format!("tokenizer.ggml.{what}_token_id");
        let Some(id) = meta.unsigned(&key)? else { return Ok(None) };
        let token = usize::try_from(id).ok().and_then(|id| tokens.get(id));
        token.map(|t| Some(t.text.to_string())).ok_or_else(|| {
            Error::new(format!("`{key}` must be less than {}, got {id}", tokens.len()))
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
        begin: meta.boolean("tokenizer.ggml.add_bos_token")?.unwrap_or(bos),
        end: meta.boolean("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
        ..Extras::default()
    };
    Ok((ids, extras))
}

fn tokens(meta: &Metadata) -> Result<Vec<Token<'_>>> {
    let texts = meta
        .texts("tokenizer.ggml.tokens")?
        .ok_or_else(|| meta.missing("tokenizer.ggml.tokens"))?;
    if texts.len() > MAX_TOKENS {
        return Err(Error::new(format!(
            "the tokenizer must not have more than {MAX_TOKENS} tokens, got {}",
            texts.len()
        )));
    }
    let token_types =
        meta.integers("tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![NORMAL; texts.len()]);
    if token_types.len() != texts.len() {
        return Err(Error::new(format!(
            "the tokenizer has {} tokens but {} token types",
            texts.len(),
            token_types.len()
        )));
    }
    Ok(texts
        .into_iter()
        .zip(token_types)
        .map(|(text, token_type)| Token { text: text.into(), token_type, strips_right: false })
        .collect())
}

/// Returns a map from the text of each token to its id.
fn vocabulary(tokens: &[Token]) -> Result<Vocab> {
    let mut vocab = Vocab::with_capacity(tokens.len());
    for (token, id) in tokens.iter().zip(0..) {
        if let Some(first) = vocab.insert(token.text.to_string(), id) {
            return Err(Error::new(format!(
                "the tokenizer has the token `{}` twice, with the ids {first} and {id}",
                token.text
            )));
        }
    }
    Ok(vocab)
}

/// Reads the merges; `None` if the file has none. Checks that both parts and the result of each
/// merge are in the vocabulary.
fn listed_merges(meta: &Metadata, vocab: &Vocab) -> Result<Option<Merges>> {
    let Some(listed) = meta.texts("tokenizer.ggml.merges")? else { return Ok(None) };
    if listed.len() > MAX_MERGES {
        return Err(Error::new(format!(
            "the tokenizer must not have more than {MAX_MERGES} merges, got {}",
            listed.len()
        )));
    }
    let mut merges = Vec::with_capacity(listed.len());
    for merge in listed {
        // Tokens are not empty, so the first character belongs to the first token, even if it is a
        // space. The separator is the first space after this character.
        let blank = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let (a, b) = blank.map(|at| (&merge[..at], &merge[at + 1..])).ok_or_else(|| {
            Error::new(format!("the tokenizer's merge `{merge}` is not a pair of tokens"))
        })?;
        // The `tokenizers` crate panics if the result of a merge is longer than every token.
        if [a, b, &format!("{a}{b}")].iter().any(|t| !vocab.contains_key(*t)) {
            return Err(Error::new(format!(
                "the tokenizer's merge `{merge}` requires a token that is not in the vocabulary"
            )));
        }
        merges.push((a.to_owned(), b.to_owned()));
    }
    Ok(Some(merges))
}

/// Adds the special and the user-defined tokens as added tokens. The tokenizer splits these tokens
/// off before it applies the model to the rest of the text.
fn add(ids: &mut Ids, tokens: &[Token]) -> Result<()> {
    let special = |t: &Token| matches!(t.token_type, CONTROL | UNKNOWN);
    let added = || {
        tokens.iter().filter(|t| !t.text.is_empty() && (special(t) || t.token_type == USER_DEFINED))
    };
    let bytes: usize = added().map(|t| t.text.len()).sum();
    if bytes > MAX_ADDED_BYTES {
        return Err(Error::new(format!(
            "the tokenizer's special and added tokens must not have more than {MAX_ADDED_BYTES} \
            bytes in total, got {bytes}"
        )));
    }
    let as_added = |t: &Token| {
        AddedToken::from(t.text.as_ref(), special(t)).normalized(false).rstrip(t.strips_right)
    };
    // If several added tokens match, the `tokenizers` crate prefers the one that was added first,
    // so add special tokens first.
    let (first, then): (Vec<&Token>, Vec<&Token>) = added().partition(|t| special(t));
    ids.add_tokens(first.into_iter().chain(then).map(as_added)).map_err(tokenizer_error)?;
    Ok(())
}

/// Builds the BPE model of the `tokenizers` crate from a validated vocabulary and validated merges.
fn model(
    vocab: Vocab,
    merges: Merges,
    with: impl FnOnce(tokenizers::models::bpe::BpeBuilder) -> tokenizers::models::bpe::BpeBuilder,
) -> Result<BPE> {
    with(BPE::builder().vocab_and_merges(vocab, merges)).build().map_err(tokenizer_error)
}

#[cfg(test)]
mod tests;
