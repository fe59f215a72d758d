//! Converts between text and token ids: the tokenizer, the chat template, and tokenised preference
//! pairs.
//!
//! Token ids must be the same as in Hugging Face's transformers, because models are trained with
//! the ids that transformers produces.

mod chat;
mod findings;
mod folder;
mod gguf;
mod instruction;
mod model_files;
mod pairs;
mod token_pair;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer as Ids};

pub use findings::{Findings, repeats};
pub use instruction::{instructed, with_instruction};
pub use pairs::{
    Cut, DroppedPair, Limits, Outcome, SkipReason, Tokenised, each, fit, show_example, tokenise,
    tokenise_pair, whole_pair,
};
pub use token_pair::{Prompt, TokenPair};

use crate::api::{Message, TemplateArgs};
use crate::error::{Error, Fault, Result};
use crate::weights::Metadata;
use chat::ChatTemplate;

/// A special token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Special {
    /// Text of the token, such as `</s>`.
    pub text: String,
    /// Id in the vocabulary.
    pub id: i64,
}

/// Converts text to token ids and back, and renders conversations as text.
#[derive(Debug)]
pub struct Tokenizer {
    ids: Ids,
    /// Number of rows of the model's embedding matrix, if it is known.
    rows: Option<i64>,
    bos: Option<Special>,
    eos: Option<Special>,
    pad: Option<Special>,
    /// Ids of the BOS and EOS tokens that [`encode_alone`](Self::encode_alone) must add. `None` if
    /// the token is not added, or if the post-processor of `tokenizer.json` already adds it.
    around: (Option<i64>, Option<i64>),
    chat: Option<ChatTemplate>,
    /// Additional fields of tokenizer_config.json that affect token ids. [`files`](Self::files)
    /// writes them back.
    extra_fields: Map<String, Value>,
}

/// Parts of a tokenizer that the `tokenizers` crate does not store: special tokens, chat templates
/// and options.
#[derive(Debug, Default)]
struct Extras {
    /// Text of the beginning-of-sequence token.
    bos: Option<String>,
    /// Text of the end-of-sequence token.
    eos: Option<String>,
    /// Text of the padding token.
    pad: Option<String>,
    /// Special tokens that only chat templates use, as pairs of a template variable and a token.
    others: Vec<(&'static str, String)>,
    chat_template: Option<String>,
    /// Additional chat templates, as pairs of a name and a template.
    named_templates: Vec<(String, String)>,
    /// True if [`Tokenizer::encode_alone`] must add the BOS, because the post-processor does not.
    begin: bool,
    /// True if [`Tokenizer::encode_alone`] must add the EOS, because the post-processor does not.
    end: bool,
    /// True if special tokens in the input are tokenised like ordinary text.
    splits_special: bool,
    /// Additional fields of tokenizer_config.json that affect token ids. They are written back when
    /// the tokenizer is saved.
    extra_fields: Map<String, Value>,
}

impl Tokenizer {
    /// Reads the tokenizer from a Hugging Face model folder, in the same way as AutoTokenizer.
    ///
    /// The vocabulary is in `tokenizer.json`. Special and added tokens are also read from
    /// `tokenizer_config.json`, or from `special_tokens_map.json` and `added_tokens.json`. The chat
    /// template is in `chat_template.jinja` or in `tokenizer_config.json`.
    ///
    /// # Errors
    /// Fails if tokenizer.json is missing, if a file or the chat template is not valid, or if an
    /// unsupported field changes token ids.
    pub fn from_folder(dir: &Path) -> Result<Self> {
        let (ids, extras) = folder::read(dir)?;
        Self::new(ids, extras)
    }

    /// Builds the tokenizer of a GGUF file. The supported types are byte-level BPE (`gpt2` in GGUF)
    /// and SentencePiece BPE (`llama`).
    ///
    /// # Errors
    /// Fails if the tokenizer has a different type, if its pre-tokenizer is unknown, or if the
    /// vocabulary is inconsistent.
    pub fn from_gguf(meta: &Metadata) -> Result<Self> {
        let (ids, extras) = gguf::read(meta)?;
        Self::new(ids, extras)
    }

    fn new(mut ids: Ids, extras: Extras) -> Result<Self> {
        // Disable truncation, because training applies its own maximum length. Padding is never
        // used.
        ids.with_truncation(None).map_err(tokenizer_error)?;
        ids.with_padding(None);
        ids.set_encode_special_tokens(extras.splits_special);
        if ids.get_vocab_size(true) == 0 {
            return Err(Error::new("the tokenizer's vocabulary is empty"));
        }
        let special = |what: &str, text: Option<String>| match text {
            None => Ok(None),
            Some(text) => match ids.token_to_id(&text) {
                Some(id) => Ok(Some(Special { text, id: id.into() })),
                None => Err(Error::new(format!(
                    "the tokenizer's {what} token `{text}` is not in its vocabulary"
                ))),
            },
        };
        let bos = special("beginning-of-sequence", extras.bos)?;
        let eos = special("end-of-sequence", extras.eos)?;
        // Padding is never used, so a padding token that is not in the vocabulary is ignored.
        let pad = special("padding", extras.pad).unwrap_or_default();
        let named = [("bos_token", &bos), ("eos_token", &eos), ("pad_token", &pad)];
        let tokens: Vec<_> = named
            .into_iter()
            .filter_map(|(name, s)| Some((name, s.as_ref()?.text.clone())))
            .chain(extras.others)
            .collect();
        let chat = extras
            .chat_template
            .map(|source| ChatTemplate::new(source, tokens)?.with_others(extras.named_templates))
            .transpose()?;
        let id = |s: &Option<Special>, wanted: bool| s.as_ref().filter(|_| wanted).map(|s| s.id);
        let around = (id(&bos, extras.begin), id(&eos, extras.end));
        Ok(Self { ids, rows: None, bos, eos, pad, around, chat, extra_fields: extras.extra_fields })
    }

    /// Encodes text as token ids `[n]` without adding special tokens. Special tokens that occur in
    /// the text are recognised.
    ///
    /// # Errors
    /// Fails if the tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>> {
        let encoding = catch_panics(|| self.ids.encode_fast(text, false))?;
        Ok(encoding.get_ids().iter().map(|&id| id.into()).collect())
    }

    /// Encodes text as token ids `[n]`, with the special tokens that the tokenizer adds by default,
    /// such as a BOS for Llama and Gemma. The result equals `tokenizer(text)` in transformers.
    ///
    /// # Errors
    /// Fails if the tokenizer fails.
    pub fn encode_alone(&self, text: &str) -> Result<Vec<i64>> {
        let encoding = catch_panics(|| self.ids.encode_fast(text, true))?;
        let ids = encoding.get_ids().iter().map(|&id| id.into());
        Ok(self.around.0.into_iter().chain(ids).chain(self.around.1).collect())
    }

    /// Decodes ids `[n]` into text, including special tokens. Ids without a token are skipped. A
    /// model can generate such ids if its embedding is padded.
    ///
    /// # Errors
    /// Fails if an id is negative or does not fit into 32 bits.
    pub fn decode(&self, ids: &[i64]) -> Result<String> {
        let ids = ids
            .iter()
            .map(|&id| {
                u32::try_from(id).map_err(|_| Error::new(format!("`{id}` is not a token id")))
            })
            .collect::<Result<Vec<u32>>>()?;
        catch_panics(|| self.ids.decode(&ids, false))
    }

    /// Serialises the tokenizer into the files of a Hugging Face model folder. Returns the name and
    /// content of each file.
    ///
    /// # Errors
    /// Fails if the tokenizer cannot be serialised.
    pub fn files(&self) -> Result<Vec<(&'static str, String)>> {
        let mut ids = self.ids.clone();
        // The `tokenizers` crate still treats a token as special after its `special` flag was
        // cleared. Set the flag again, so that the saved tokenizer behaves the same.
        let were = ids.get_added_tokens_decoder().into_values().filter(|token| {
            !token.special && ids.get_added_vocabulary().is_special_token(&token.content)
        });
        let were: Vec<AddedToken> = were.map(|token| token.special(true)).collect();
        ids.add_tokens(were).map_err(tokenizer_error)?;
        if let Some(template) = self.surrounded()? {
            ids.with_post_processor(Some(template));
        }
        let text = |s: &Option<Special>| s.as_ref().map(|s| s.text.clone());
        let mut config = serde_json::json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false,
            "bos_token": text(&self.bos), "eos_token": text(&self.eos),
            "pad_token": text(&self.pad),
        });
        if let Some(fields) = config.as_object_mut() {
            fields.extend(self.extra_fields.clone());
            if self.ids.get_encode_special_tokens() {
                fields.insert("split_special_tokens".to_owned(), true.into());
            }
        }
        let mut files = vec![("tokenizer.json", ids.to_string(true).map_err(tokenizer_error)?)];
        if let Some(chat) = &self.chat {
            config.as_object_mut().into_iter().for_each(|config| {
                config.extend(chat.tokens().map(|(name, text)| (name.to_owned(), text.into())))
            });
            let named = |(name, template): (&str, &str)| {
                serde_json::json!({"name": name,
                "template": template})
            };
            match chat.others().count() {
                0 => files.push(("chat_template.jinja", chat.source().to_owned())),
                _ => {
                    config["chat_template"] = [("default", chat.source())]
                        .into_iter()
                        .chain(chat.others())
                        .map(named)
                        .collect()
                }
            }
        }
        files.insert(1, ("tokenizer_config.json", format!("{config:#}\n")));
        Ok(files)
    }

    /// Creates a post-processor that adds the special tokens in `around`. Returns `None` if there
    /// are none.
    fn surrounded(&self) -> Result<Option<TemplateProcessing>> {
        let (begin, end) = (
            self.bos.as_ref().filter(|_| self.around.0.is_some()),
            self.eos.as_ref().filter(|_| self.around.1.is_some()),
        );
        let special: Vec<(String, u32)> = begin
            .into_iter()
            .chain(end)
            .filter_map(|s| Some((s.text.clone(), u32::try_from(s.id).ok()?)))
            .collect();
        if special.is_empty() {
            return Ok(None);
        }
        // If two strings are encoded together, the BOS comes before the first string and the EOS
        // after the second. There are no special tokens between them.
        let piece = |text: &str| {
            begin
                .map(|s| s.text.clone())
                .into_iter()
                .chain([text.to_owned()])
                .chain(end.map(|s| s.text.clone()))
                .collect::<Vec<_>>()
        };
        let single = piece("$A");
        let mut pair = piece("$A");
        pair.insert(pair.len() - usize::from(end.is_some()), "$B".to_owned());
        let template = TemplateProcessing::builder()
            .try_single(single)
            .map_err(Error::internal)?
            .try_pair(pair)
            .map_err(Error::internal)?
            .special_tokens(special)
            .build();
        template.map(Some).map_err(|e| Error::internal(e.to_string()))
    }

    /// Returns the token with the given id, spelled as in the vocabulary, e.g. `Ġthe`.
    pub fn token(&self, id: i64) -> Option<String> {
        self.ids.id_to_token(u32::try_from(id).ok()?)
    }

    /// Returns the id of a token, which must be spelled as in the vocabulary. It may be a special
    /// token.
    pub fn token_id(&self, token: &str) -> Option<i64> {
        self.ids.token_to_id(token).map(i64::from)
    }

    /// Number of tokens, including added tokens.
    pub fn vocab_size(&self) -> usize {
        self.ids.get_vocab_size(true)
    }

    /// End-of-sequence token.
    pub fn eos(&self) -> Option<&Special> {
        self.eos.as_ref()
    }

    /// Beginning-of-sequence token.
    pub fn bos(&self) -> Option<&Special> {
        self.bos.as_ref()
    }

    /// Padding token. It is only written to exported files, because padding is never used.
    pub fn pad(&self) -> Option<&Special> {
        self.pad.as_ref()
    }

    /// Sets the number of rows of the model's embedding matrix, which [`check`](Self::check) needs.
    #[must_use]
    pub fn for_embedding(mut self, rows: i64) -> Self {
        self.rows = Some(rows);
        self
    }

    /// Checks that every id has a row in the model's embedding matrix.
    ///
    /// A tokenizer may contain tokens without a row, such as Gemma 3's `<image_soft_token>`. This
    /// is only an error if the input contains such a token.
    ///
    /// # Errors
    /// Fails if an id does not have a row. The error names the token.
    pub fn check(&self, ids: &[i64]) -> Result<()> {
        let Some(rows) = self.rows else { return Ok(()) };
        let Some(id) = ids.iter().find(|id| !(0..rows).contains(*id)) else { return Ok(()) };
        let token = self
            .token(*id)
            .map_or_else(|| "an unknown token".to_owned(), |token| format!("the token `{token}`"));
        Err(Error::new(format!(
            "{token} has the id {id}, but the model's embedding has {rows} rows"
        ))
        .hint("remove the token from the text, or resize the model's embedding to include it")
        .hint(
            "if this affects many pairs, the tokenizer belongs to a different model; use the \
            tokenizer from the same folder as the weights",
        ))
    }

    /// True if the model has a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.chat.is_some()
    }

    /// Renders a conversation with the model's chat template. If `add_generation_prompt` is true,
    /// the start of the assistant's turn is appended.
    ///
    /// # Errors
    /// Fails if the model does not have a chat template, or if the template raises an error.
    pub fn render_chat(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_chat_with(messages, &TemplateArgs::default(), add_generation_prompt)
    }

    /// Renders a conversation like [`render_chat`](Self::render_chat), with additional tools and
    /// template variables.
    ///
    /// # Errors
    /// Fails in the same cases as [`render_chat`](Self::render_chat).
    pub fn render_chat_with(
        &self,
        messages: &[Message],
        args: &TemplateArgs,
        add_generation_prompt: bool,
    ) -> Result<String> {
        let chat = self.chat.as_ref().ok_or_else(|| {
            Error::new("the model has no chat template, so messages cannot be rendered")
                .hint("use a chat model (`…-instruct`), or a data set of plain text")
        })?;
        chat.render(messages, args, add_generation_prompt)
    }
}

fn tokenizer_error(e: tokenizers::Error) -> Error {
    Error::new(format!("the tokenizer failed: {e}"))
}

/// Calls the `tokenizers` crate and converts panics into errors. The crate panics on some invalid
/// files, for example if a merge is longer than every token. It also panics if a regular expression
/// exceeds its backtracking limit.
fn catch_panics<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(tokenizer_error),
        Err(payload) => {
            Err(Error::panicked("the model's tokenizer", payload.as_ref()).blamed_on(Fault::Input))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, golden};
    use crate::weights::ModelFiles;
    use std::path::PathBuf;

    #[test]
    fn smollm2_gives_the_same_ids_as_in_transformers() {
        let Some(model) = testing::smollm2() else { return };
        let tokenizer = ModelFiles::open(&model).unwrap().tokenizer().unwrap();
        for root in golden::roots() {
            let lines = std::fs::read_to_string(root.join("smollm2/tokens.jsonl")).unwrap();
            for line in lines.lines() {
                let line: Value = serde_json::from_str(line).unwrap();
                let text = line["text"].as_str().unwrap();
                let ids: Vec<i64> =
                    line["ids"].as_array().unwrap().iter().map(|i| i.as_i64().unwrap()).collect();
                assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
                assert_eq!(tokenizer.decode(&ids).unwrap(), text);
            }
            assert!(lines.lines().count() >= 25);
        }
        assert_eq!(tokenizer.eos(), Some(&Special { text: "<|im_end|>".into(), id: 2 }));
        assert_eq!(tokenizer.bos().map(|s| s.id), Some(1));
        assert_eq!(tokenizer.vocab_size(), 49152);
    }

    #[test]
    fn smollm2_renders_chats_as_in_transformers() {
        let Some(model) = testing::smollm2() else { return };
        let tokenizer = ModelFiles::open(&model).unwrap().tokenizer().unwrap();
        let read = |root: PathBuf| {
            let text = std::fs::read(root.join("smollm2/chats.json")).unwrap();
            serde_json::from_slice::<Vec<Value>>(&text).unwrap()
        };
        for chat in golden::roots().into_iter().flat_map(read) {
            let messages: Vec<Message> = serde_json::from_value(chat["messages"].clone()).unwrap();
            assert_eq!(tokenizer.render_chat(&messages, false).unwrap(), chat["text"]);
            assert_eq!(tokenizer.render_chat(&messages, true).unwrap(), chat["text_generation"]);
            let ids: Vec<i64> = serde_json::from_value(chat["greedy_ids"].clone()).unwrap();
            assert_eq!(
                tokenizer.decode(&ids).unwrap().replace("<|im_end|>", ""),
                chat["greedy_text"]
            );
        }
    }

    #[test]
    fn ids_out_of_range_do_not_cause_a_panic() {
        let tokenizer = Tokenizer::from_folder(&golden::own().join("tokenizer")).unwrap();
        assert!(tokenizer.decode(&[-1]).is_err());
        assert_eq!(tokenizer.decode(&[1_000_000]).unwrap(), "");
        assert_eq!(tokenizer.token(-1), None);
        assert_eq!(tokenizer.token(1).as_deref(), Some("<|im_start|>"));
    }
}
