//! Text and token ids: the tokenizer, the chat template, and preference pairs as ids.
//!
//! The ids are those of Hugging Face's transformers to the last one: a model that is fed others is
//! another model.

mod chat;
mod findings;
mod folder;
mod gguf;
mod model_files;
mod pairs;
mod token_pair;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer as Ids};

pub use findings::{Findings, repeats};
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
    /// As it is written.
    pub text: String,
    /// Its id.
    pub id: i64,
}

/// Turns text into token ids and back, and conversations into text.
#[derive(Debug)]
pub struct Tokenizer {
    ids: Ids,
    /// Rows of the embedding that the ids go to, where there is one.
    rows: Option<i64>,
    bos: Option<Special>,
    eos: Option<Special>,
    pad: Option<Special>,
    /// Put before and behind a text that stands alone, where the vocabulary's own file does not do
    /// it.
    around: (Option<i64>, Option<i64>),
    chat: Option<ChatTemplate>,
    /// Further fields of tokenizer_config.json that change ids.
    also: Map<String, Value>,
}

/// What a file says beside the vocabulary. The special tokens are texts.
#[derive(Debug, Default)]
struct Extras {
    bos: Option<String>,
    eos: Option<String>,
    pad: Option<String>,
    /// Special tokens that only chat templates use, by the name they have there.
    others: Vec<(&'static str, String)>,
    chat_template: Option<String>,
    /// Chat templates under other names.
    named_templates: Vec<(String, String)>,
    /// Whether a text that stands alone begins and ends with these tokens, beyond what the
    /// vocabulary's file says.
    begin: bool,
    end: bool,
    /// Whether special tokens in a text are cut up like any other text.
    splits_special: bool,
    /// Further fields of tokenizer_config.json that change ids, for whoever writes the tokenizer.
    also: Map<String, Value>,
}

impl Tokenizer {
    /// Reads the tokenizer of a Hugging Face folder as AutoTokenizer does: `tokenizer.json`, the
    /// special and added tokens of `tokenizer_config.json` (or of `special_tokens_map.json` and
    /// `added_tokens.json`), and the chat template of `chat_template.jinja` or
    /// `tokenizer_config.json`.
    ///
    /// # Errors
    /// Fails if tokenizer.json is missing, a file is not what it should be, a field changes token
    /// ids and is not supported, or the chat template is not valid.
    pub fn from_folder(dir: &Path) -> Result<Self> {
        let (ids, extras) = folder::read(dir)?;
        Self::new(ids, extras)
    }

    /// Makes the tokenizer that a GGUF file carries: byte-level BPE, named `gpt2` there, or
    /// SentencePiece's BPE, named `llama`.
    ///
    /// # Errors
    /// Another model of tokenizer, an unknown way to cut text into words, or a vocabulary that is
    /// not consistent.
    pub fn from_gguf(meta: &Metadata) -> Result<Self> {
        let (ids, extras) = gguf::read(meta)?;
        Self::new(ids, extras)
    }

    fn new(mut ids: Ids, extras: Extras) -> Result<Self> {
        // Training cuts to a length of its own and pads nothing.
        ids.with_truncation(None).map_err(foreign)?;
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
        // Nothing is ever padded here, so a padding token that does not exist does no harm.
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
        Ok(Self { ids, rows: None, bos, eos, pad, around, chat, also: extras.also })
    }

    /// The ids of a text `[n]`. No special tokens are added; those that are written in the text are
    /// recognised.
    ///
    /// # Errors
    /// Where the tokenizer itself fails.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>> {
        let encoding = guarded(|| self.ids.encode_fast(text, false))?;
        Ok(encoding.get_ids().iter().map(|&id| id.into()).collect())
    }

    /// The ids of a text that stands alone `[n]`: with the special tokens around it that the
    /// tokenizer is made to put there (Llama's and Gemma's put one before it), as transformers'
    /// `tokenizer(text)` has them.
    ///
    /// # Errors
    /// Where the tokenizer itself fails.
    pub fn encode_alone(&self, text: &str) -> Result<Vec<i64>> {
        let encoding = guarded(|| self.ids.encode_fast(text, true))?;
        let ids = encoding.get_ids().iter().map(|&id| id.into());
        Ok(self.around.0.into_iter().chain(ids).chain(self.around.1).collect())
    }

    /// The text of ids `[n]`, special tokens as they are written. An id without a token, as padded
    /// embeddings have them, gives nothing.
    ///
    /// # Errors
    /// An id that is no id.
    pub fn decode(&self, ids: &[i64]) -> Result<String> {
        let ids = ids
            .iter()
            .map(|&id| u32::try_from(id).map_err(|_| Error::new(format!("`{id}` is no token id"))))
            .collect::<Result<Vec<u32>>>()?;
        guarded(|| self.ids.decode(&ids, false))
    }

    /// The files of a Hugging Face folder that say what this tokenizer is: name and text.
    ///
    /// # Errors
    /// Where the tokenizer cannot be written.
    pub fn files(&self) -> Result<Vec<(&'static str, String)>> {
        let mut ids = self.ids.clone();
        // A token that was special once is still treated as one, which its own flag then does not
        // say.
        let were = ids.get_added_tokens_decoder().into_values().filter(|token| {
            !token.special && ids.get_added_vocabulary().is_special_token(&token.content)
        });
        let were: Vec<AddedToken> = were.map(|token| token.special(true)).collect();
        ids.add_tokens(were).map_err(foreign)?;
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
            fields.extend(self.also.clone());
            if self.ids.get_encode_special_tokens() {
                fields.insert("split_special_tokens".to_owned(), true.into());
            }
        }
        let mut files = vec![("tokenizer.json", ids.to_string(true).map_err(foreign)?)];
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

    /// What puts special tokens around a text that stands alone, where the vocabulary's own file
    /// does not do it.
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
        // The two halves of a pair each as if they stood alone, the first one's end and the second
        // one's beginning left out.
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

    /// The token with this id as the vocabulary writes it (`Ġthe`).
    pub fn token(&self, id: i64) -> Option<String> {
        self.ids.id_to_token(u32::try_from(id).ok()?)
    }

    /// The id of a token as the vocabulary writes it, special tokens included.
    pub fn token_id(&self, token: &str) -> Option<i64> {
        self.ids.token_to_id(token).map(i64::from)
    }

    /// How many tokens there are, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.ids.get_vocab_size(true)
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<&Special> {
        self.eos.as_ref()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<&Special> {
        self.bos.as_ref()
    }

    /// The token that fills a batch up. Nothing is padded here; it is for what leaves the program.
    pub fn pad(&self) -> Option<&Special> {
        self.pad.as_ref()
    }

    /// Has [`check`](Self::check) hold ids to an embedding of `rows` rows.
    #[must_use]
    pub fn for_embedding(mut self, rows: i64) -> Self {
        self.rows = Some(rows);
        self
    }

    /// Checks that every one of `ids` has a row in the model's embedding. A tokenizer may have
    /// tokens that the model does not have, as Gemma 3's `<image_soft_token>`; they are only an
    /// error where they are used.
    ///
    /// # Errors
    /// Fails if an id has no row, and names the token.
    pub fn check(&self, ids: &[i64]) -> Result<()> {
        let Some(rows) = self.rows else { return Ok(()) };
        let Some(id) = ids.iter().find(|id| !(0..rows).contains(*id)) else { return Ok(()) };
        let token = self.token(*id).map_or_else(
            || "a token without a text".to_owned(),
            |token| format!("the token `{token}`"),
        );
        Err(Error::new(format!(
            "{token} has the id {id}, and the model's embedding has {rows} \
            rows"
        ))
        .hint("take the token out of the text, or add its row to the model's embedding")
        .hint(
            "if many texts fail, the tokenizer is not the model's: take it from the folder \
                that the weights come from",
        ))
    }

    /// Whether conversations can be turned into text.
    pub fn has_chat_template(&self) -> bool {
        self.chat.is_some()
    }

    /// A conversation as the model's chat template writes it, with the beginning of the answer
    /// where `add_generation_prompt`.
    ///
    /// # Errors
    /// Where the model has no chat template, or its template fails or refuses the conversation.
    pub fn render_chat(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_chat_with(messages, &TemplateArgs::default(), add_generation_prompt)
    }

    /// The same with a row's tools and template variables.
    ///
    /// # Errors
    /// Fails as [`render_chat`](Self::render_chat) does.
    pub fn render_chat_with(
        &self,
        messages: &[Message],
        args: &TemplateArgs,
        add_generation_prompt: bool,
    ) -> Result<String> {
        let chat = self.chat.as_ref().ok_or_else(|| {
            Error::new("the model has no chat template, so messages cannot be turned into text")
                .hint("take a chat model (`…-instruct`), or a data set of plain text")
        })?;
        chat.render(messages, args, add_generation_prompt)
    }
}

fn foreign(e: tokenizers::Error) -> Error {
    Error::new(format!("the tokenizer failed: {e}"))
}

/// The crate trusts what it reads, and panics at some of it: merges that are longer than any token,
/// a pattern that gives up on a text.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(foreign),
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
    fn smollm2_makes_the_ids_that_transformers_makes() {
        let Some(model) = testing::smollm2() else { return };
        let tokenizer = ModelFiles::open(&model).unwrap().tokenizer().unwrap();
        let lines: String = golden::roots()
            .iter()
            .map(|root| std::fs::read_to_string(root.join("smollm2/tokens.jsonl")).unwrap())
            .collect();
        let mut count = 0;
        for line in lines.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let text = line["text"].as_str().unwrap();
            let ids: Vec<i64> =
                line["ids"].as_array().unwrap().iter().map(|i| i.as_i64().unwrap()).collect();
            assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
            count += 1;
        }
        assert!(count >= 25);
        assert_eq!(tokenizer.eos(), Some(&Special { text: "<|im_end|>".into(), id: 2 }));
        assert_eq!(tokenizer.bos().map(|s| s.id), Some(1));
        assert_eq!(tokenizer.vocab_size(), 49152);
    }

    #[test]
    fn smollm2_renders_the_chats_that_transformers_renders() {
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
    fn ids_out_of_range_are_no_panic() {
        let tokenizer = Tokenizer::from_folder(&golden::own().join("tokenizer")).unwrap();
        assert!(tokenizer.decode(&[-1]).is_err());
        assert_eq!(tokenizer.decode(&[1_000_000]).unwrap(), "");
        assert_eq!(tokenizer.token(-1), None);
        assert_eq!(tokenizer.token(1).as_deref(), Some("<|im_start|>"));
    }
}
