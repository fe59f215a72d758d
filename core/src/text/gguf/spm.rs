//! SentencePiece's BPE, `llama` in GGUF: the whole text is merged, by the scores of what comes out,
//! and a character that no token has becomes its bytes.
//!
//! The file has scores and no merges; the merges that mean the same are made of them as
//! transformers does it, whose ids are the reference. So is what the architectures differ in, which
//! the file does not say.

use std::cmp::Ordering;

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{Merges, Vocab};
use tokenizers::normalizers::{Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{DecoderWrapper, Tokenizer as Ids};

use super::{Built, CONTROL, NORMAL, Token, UNKNOWN, foreign, listed_merges, model, vocabulary};
use crate::error::{Error, Result};
use crate::weights::Metadata;

/// What stands for a blank.
const BLANK: &str = "▁";
/// Of the squares of the tokens' lengths, which is how long the merges take. The largest
/// vocabularies have a thirtieth.
const MOST_WORK: usize = 1 << 30;

/// What a model's tokenizer does before the merges.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    /// A blank before the text, where it has none there.
    Llama,
    /// No blank before the text. Runs of blanks are tokens, and the order of the tokens counts
    /// instead of their scores.
    Gemma,
    /// A blank before every piece between special tokens, whatever stands there; special tokens
    /// take the blanks behind them along.
    Phi,
}

/// Builds it from the file's scores.
pub(super) fn build(meta: &Metadata, tokens: &mut [Token]) -> Result<Built> {
    let family = match meta.text("general.architecture")?.unwrap_or_default() {
        "gemma" | "gemma2" | "gemma3" => Family::Gemma,
        "phi3" => Family::Phi,
        _ => Family::Llama,
    };
    match family {
        Family::Llama => {}
        Family::Gemma => respell_blanks(tokens),
        // llama.cpp's rule. In the models' own tokenizer.json these tokens are marked so, one by
        // one.
        Family::Phi => tokens.iter_mut().for_each(|t| {
            t.takes_blanks = t.text == "</s>"
                || t.sort == CONTROL && !["<s>", "<|endoftext|>"].contains(&t.text.as_ref());
        }),
    }
    let vocab = vocabulary(tokens)?;
    let merges = match listed_merges(meta, &vocab)? {
        Some(merges) => merges,
        None => merges_of(tokens, &scores(meta, family, tokens.len())?, &vocab)?,
    };
    let unknown = tokens.iter().find(|t| t.sort == UNKNOWN).map(|t| t.text.to_string());
    let model = model(vocab, merges, |b| {
        let b = b.byte_fallback(true).fuse_unk(true);
        match unknown {
            Some(unknown) => b.unk_token(unknown),
            None => b,
        }
    })?;
    let mut ids = Ids::new(model);

    let prefixed =
        family != Family::Gemma && meta.truth("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let blanks = || Replace::new(" ", BLANK).map_err(foreign);
    if family == Family::Llama {
        let scheme = if prefixed { PrependScheme::First } else { PrependScheme::Never };
        ids.with_pre_tokenizer(Some(Metaspace::new('▁', scheme, false)));
    } else if prefixed {
        let steps = vec![Prepend::new(BLANK.to_owned()).into(), blanks()?.into()];
        ids.with_normalizer(Some(Normalizers::new(steps))).map_err(foreign)?;
    } else {
        ids.with_normalizer(Some(blanks()?)).map_err(foreign)?;
    }
    let mut steps: Vec<DecoderWrapper> = vec![
        Replace::new(BLANK, " ").map_err(foreign)?.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    if prefixed {
        steps.push(Strip::new(' ', 1, 0).into());
    }
    ids.with_decoder(Some(Decoders::new(steps)));
    Ok(Built { ids, bos: true })
}

/// Gemma's files have the tokens of several blanks with blanks in them, and as added ones; they are
/// ordinary tokens.
fn respell_blanks(tokens: &mut [Token]) {
    for token in
        tokens.iter_mut().filter(|t| !t.text.is_empty() && t.text.bytes().all(|b| b == b' '))
    {
        token.text = BLANK.repeat(token.text.len()).into();
        token.sort = NORMAL;
    }
}

/// What the merges are ordered by, one a token; larger is earlier.
fn scores(meta: &Metadata, family: Family, count: usize) -> Result<Vec<f32>> {
    if family == Family::Gemma {
        // Exact: a vocabulary has fewer tokens than f32 has integers.
        return Ok((0..count).map(|i| -(i as f32)).collect());
    }
    let scores = meta
        .floats("tokenizer.ggml.scores")?
        .ok_or_else(|| meta.missing("tokenizer.ggml.scores"))?;
    match scores.len() == count {
        true => Ok(scores),
        false => {
            Err(Error::new(format!("the tokenizer has {count} tokens and {} scores", scores.len())))
        }
    }
}

/// Every way to put a token together from two others, best token first, and of one token the
/// longest beginning first.
fn merges_of(tokens: &[Token], scores: &[f32], vocab: &Vocab) -> Result<Merges> {
    let work = tokens
        .iter()
        .map(|t| t.text.len().saturating_mul(t.text.len()))
        .fold(0, usize::saturating_add);
    if work > MOST_WORK {
        let longest = tokens.iter().map(|t| t.text.len()).max().unwrap_or(0);
        return Err(Error::new(format!(
            "the tokenizer's tokens are too long, up to {longest} bytes"
        ))
        .hint("the file is broken or made to be slow"));
    }
    struct Merge<'a> {
        score: f32,
        /// Characters of the first part, and of the second.
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
    // Stable: where all is equal, the order of the tokens decides.
    merges.sort_by(|a, b| {
        b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal).then(b.lengths.cmp(&a.lengths))
    });
    Ok(merges.into_iter().map(|m| (m.pair.0.to_owned(), m.pair.1.to_owned())).collect())
}
