//! Byte-level BPE, which GGUF calls `gpt2`. The text is split into words, each byte of a word is
//! mapped to a printable character, and BPE merges these characters into tokens.

use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer as Ids};

use super::{BuiltTokenizer, Token, listed_merges, model, pre, tokenizer_error, vocabulary};
use crate::error::Result;
use crate::weights::Metadata;

/// Builds the tokenizer from the file's merges and the name of its pre-tokenizer.
pub(super) fn build(meta: &Metadata, tokens: &[Token]) -> Result<BuiltTokenizer> {
    let name = meta.text("tokenizer.ggml.pre")?;
    if name.is_none() {
        tracing::warn!(
            "`{}` does not specify a pre-tokenizer (`tokenizer.ggml.pre`). GPT-2's pre-tokenizer \
            is used, and the tokens are wrong if the model needs a different one. Convert the \
            model again with a newer llama.cpp, or use its Hugging Face folder",
            meta.path().display()
        );
    }
    let pre = pre::of(name.unwrap_or("default"))?;
    let vocab = vocabulary(tokens)?;
    let merges =
        listed_merges(meta, &vocab)?.ok_or_else(|| meta.missing("tokenizer.ggml.merges"))?;
    let mut ids = Ids::new(model(vocab, merges, |b| b.ignore_merges(pre.ignore_merges))?);
    if pre.compose {
        ids.with_normalizer(Some(NFC)).map_err(tokenizer_error)?;
    }
    let bytes = |by_expression| ByteLevel::new(false, true, by_expression);
    let mut cut: Vec<PreTokenizerWrapper> = Vec::new();
    if pre.digits {
        cut.push(Digits::new(true).into());
    }
    match pre.expression {
        // GPT-2's regular expression is built into `ByteLevel`.
        None => cut.push(bytes(true).into()),
        Some(expression) => {
            let split = Split::new(
                SplitPattern::Regex(expression.to_owned()),
                SplitDelimiterBehavior::Isolated,
                false,
            )
            .map_err(tokenizer_error)?;
            cut.extend([split.into(), bytes(false).into()]);
        }
    }
    ids.with_pre_tokenizer(Some(Sequence::new(cut)));
    ids.with_decoder(Some(bytes(true)));
    Ok(BuiltTokenizer { ids, bos: pre.bos })
}
