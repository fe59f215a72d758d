//! Byte-level BPE, `gpt2` in GGUF: text is cut into words, the words' bytes written as letters, and
//! those merged.

use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer as Ids};

use super::{Built, Token, foreign, listed_merges, model, pre, vocabulary};
use crate::error::Result;
use crate::weights::Metadata;

/// Builds it from the file's merges and the name of its way to cut words.
pub(super) fn build(meta: &Metadata, tokens: &[Token]) -> Result<Built> {
    let name = meta.text("tokenizer.ggml.pre")?;
    if name.is_none() {
        tracing::warn!(
            "`{}` does not say `tokenizer.ggml.pre`, so it is not known how its tokenizer cuts \
                text into words; GPT-2's expression is assumed, \
             and another one gives other tokens; convert the model again with a newer llama.cpp, \
             or take its Hugging Face folder",
            meta.path().display()
        );
    }
    let pre = pre::of(name.unwrap_or("default"))?;
    let vocab = vocabulary(tokens)?;
    let merges =
        listed_merges(meta, &vocab)?.ok_or_else(|| meta.missing("tokenizer.ggml.merges"))?;
    let mut ids = Ids::new(model(vocab, merges, |b| b.ignore_merges(pre.ignore_merges))?);
    if pre.compose {
        ids.with_normalizer(Some(NFC)).map_err(foreign)?;
    }
    let bytes = |by_expression| ByteLevel::new(false, true, by_expression);
    let mut cut: Vec<PreTokenizerWrapper> = Vec::new();
    if pre.digits {
        cut.push(Digits::new(true).into());
    }
    match pre.expression {
        // The crate's byte level has GPT-2's expression built in.
        None => cut.push(bytes(true).into()),
        Some(expression) => {
            let split = Split::new(
                SplitPattern::Regex(expression.to_owned()),
                SplitDelimiterBehavior::Isolated,
                false,
            )
            .map_err(foreign)?;
            cut.extend([split.into(), bytes(false).into()]);
        }
    }
    ids.with_pre_tokenizer(Some(Sequence::new(cut)));
    ids.with_decoder(Some(bytes(true)));
    Ok(Built { ids, bos: pre.bos })
}
