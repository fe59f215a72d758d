//! SentencePiece BPE, which GGUF calls `llama`. The text is not split into words. Adjacent tokens
//! are merged if their concatenation is in the vocabulary, starting with the highest-scoring
//! concatenation. Characters that are not in the vocabulary become byte tokens.
//!
//! A GGUF file usually stores scores of tokens instead of merges. The merges are then computed from
//! the scores. The file does not say how to handle spaces, so this depends on the architecture. The
//! token ids are the same as in transformers.

use std::cmp::Ordering;

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{Merges, Vocab};
use tokenizers::normalizers::{Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{DecoderWrapper, Tokenizer as Ids};

use super::{
    BuiltTokenizer, CONTROL, NORMAL, Token, UNKNOWN, listed_merges, model, tokenizer_error,
    vocabulary,
};
use crate::error::{Error, Result};
use crate::weights::Metadata;

/// The character that represents a space in tokens.
const BLANK: &str = "▁";
/// Maximum of Σ n² over all tokens, where n is the length of a token in bytes. This limits the time
/// for computing the merges. It is about 30 times the sum for the largest known vocabularies.
const MAX_WORK: usize = 1 << 30;

/// How a tokenizer handles spaces before it applies the merges.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    /// Adds a space before the text if it does not begin with one.
    Llama,
    /// Does not add a space. The vocabulary contains tokens for runs of spaces. The merges are
    /// ordered by the ids of the resulting tokens, not by their scores.
    Gemma,
    /// Adds a space before every piece of text between special tokens, even if the piece begins
    /// with a space. Spaces after special tokens are removed.
    Phi,
}

/// Builds the tokenizer. If the file lists no merges, the merges are computed from the scores of
/// the tokens.
pub(super) fn build(meta: &Metadata, tokens: &mut [Token]) -> Result<BuiltTokenizer> {
    let family = match meta.text("general.architecture")?.unwrap_or_default() {
        "gemma" | "gemma2" | "gemma3" => Family::Gemma,
        "phi3" => Family::Phi,
        _ => Family::Llama,
    };
    match family {
        Family::Llama => {}
        Family::Gemma => respell_blanks(tokens),
        // llama.cpp also strips the spaces after these tokens. This corresponds to the flag
        // `rstrip` in tokenizer.json.
        Family::Phi => tokens.iter_mut().for_each(|t| {
            t.strips_right = t.text == "</s>"
                || t.token_type == CONTROL && !["<s>", "<|endoftext|>"].contains(&t.text.as_ref());
        }),
    }
    let vocab = vocabulary(tokens)?;
    let merges = match listed_merges(meta, &vocab)? {
        Some(merges) => merges,
        None => merges_of(tokens, &scores(meta, family, tokens.len())?, &vocab)?,
    };
    let unknown = tokens.iter().find(|t| t.token_type == UNKNOWN).map(|t| t.text.to_string());
    let model = model(vocab, merges, |b| {
        let b = b.byte_fallback(true).fuse_unk(true);
        match unknown {
            Some(unknown) => b.unk_token(unknown),
            None => b,
        }
    })?;
    let mut ids = Ids::new(model);

    let prefixed =
        family != Family::Gemma && meta.boolean("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let blanks = || Replace::new(" ", BLANK).map_err(tokenizer_error);
    if family == Family::Llama {
        let scheme = if prefixed { PrependScheme::First } else { PrependScheme::Never };
        ids.with_pre_tokenizer(Some(Metaspace::new('▁', scheme, false)));
    } else if prefixed {
        let steps = vec![Prepend::new(BLANK.to_owned()).into(), blanks()?.into()];
        ids.with_normalizer(Some(Normalizers::new(steps))).map_err(tokenizer_error)?;
    } else {
        ids.with_normalizer(Some(blanks()?)).map_err(tokenizer_error)?;
    }
    let mut steps: Vec<DecoderWrapper> = vec![
        Replace::new(BLANK, " ").map_err(tokenizer_error)?.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    if prefixed {
        steps.push(Strip::new(' ', 1, 0).into());
    }
    ids.with_decoder(Some(Decoders::new(steps)));
    Ok(BuiltTokenizer { ids, bos: true })
}

/// Turns tokens that consist only of spaces into normal tokens spelled with [`BLANK`]. Gemma's
/// files store them with ordinary spaces, as user-defined tokens.
fn respell_blanks(tokens: &mut [Token]) {
    for token in
        tokens.iter_mut().filter(|t| !t.text.is_empty() && t.text.bytes().all(|b| b == b' '))
    {
        token.text = BLANK.repeat(token.text.len()).into();
        token.token_type = NORMAL;
    }
}

/// Returns the score of each token. Merges that produce a token with a higher score are applied
/// first.
fn scores(meta: &Metadata, family: Family, count: usize) -> Result<Vec<f32>> {
    if family == Family::Gemma {
        // The conversion is exact, because an f32 represents all integers up to 2^24 exactly, and
        // there are at most 2^20 tokens.
        return Ok((0..count).map(|i| -(i as f32)).collect());
    }
    let scores = meta
        .floats("tokenizer.ggml.scores")?
        .ok_or_else(|| meta.missing("tokenizer.ggml.scores"))?;
    match scores.len() == count {
        true => Ok(scores),
        false => {
            Err(Error::new(format!("the tokenizer has {count} tokens but {} scores", scores.len())))
        }
    }
}

/// Returns all merges of two tokens into a third token. The merges are sorted by the score of the
/// third token, highest first. If scores are equal, merges with a longer first part come first.
fn merges_of(tokens: &[Token], scores: &[f32], vocab: &Vocab) -> Result<Merges> {
    let work = tokens
        .iter()
        .map(|t| t.text.len().saturating_mul(t.text.len()))
        .fold(0, usize::saturating_add);
    if work > MAX_WORK {
        let longest = tokens.iter().map(|t| t.text.len()).max().unwrap_or(0);
        return Err(Error::new(format!(
            "the tokenizer has tokens of up to {longest} bytes, which is too long"
        ))
        .hint("use a different file; this one is corrupted or malicious"));
    }
    struct Merge<'a> {
        score: f32,
        /// Lengths of the two parts in characters.
        lengths: (usize, usize),
        pair: (&'a str, &'a str),
    }
    let mut merges = Vec::new();
    for (token, score) in tokens.iter().zip(scores) {
        let characters = token.text.chars().count();
        for (first, (at, _)) in token.text.char_indices().enumerate().skip(1) {
            let pair = token.text.split_at(at);
            if vocab.contains_key(pair.0) && vocab.contains_key(pair.1) {
                merges.push(Merge { score: *score, lengths: (first, characters - first), pair });
            }
        }
    }
    // The sort must be stable, so that the remaining ties are broken by the order of the tokens.
    merges.sort_by(|a, b| {
        b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal).then(b.lengths.cmp(&a.lengths))
    });
    Ok(merges.into_iter().map(|m| (m.pair.0.to_owned(), m.pair.1.to_owned())).collect())
}
