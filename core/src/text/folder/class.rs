//! Finds the tokenizer class that transformers 5 uses for a folder, and rebuilds the tokenizer like
//! this class.
//!
//! Most classes use tokenizer.json unchanged. The classes in [`REBUILT`] only take the vocabulary,
//! the merges and the post-processor from tokenizer.json. They define their own normalizer,
//! pre-tokenizer and decoder. The source is transformers 5.23: `models/auto/tokenization_auto.py`
//! and `models/*/tokenization_*.py`.

use serde_json::{Value, json};
use tokenizers::Tokenizer as Ids;
use tokenizers::models::ModelWrapper;

use super::super::tokenizer_error;
use crate::error::{Error, Result};

/// A tokenizer class of transformers that rebuilds the tokenizer instead of using tokenizer.json
/// unchanged.
#[derive(Debug)]
pub struct Class {
    /// Name of the class in transformers, without `Fast`.
    pub name: &'static str,
    /// Default special tokens. Each entry is a field of tokenizer_config.json and the token to use
    /// if the field is missing.
    pub defaults: &'static [(&'static str, Option<&'static str>)],
    /// Returns the normalizer, pre-tokenizer and decoder in the format of tokenizer.json.
    parts: fn(&Options) -> [Value; 3],
    /// True if consecutive unknown characters become a single token.
    fuse_unknown: bool,
    /// True if characters outside the vocabulary become byte tokens.
    bytes: bool,
    /// True if the model has an `unk_token`.
    unknown: bool,
    /// True if the class drops the post-processor of tokenizer.json.
    pub drops_post_processor: bool,
    /// True if the class resets the flags of all special tokens to their defaults.
    pub resets_flags: bool,
}

/// Fields of tokenizer_config.json that only the classes in [`REBUILT`] read.
#[derive(Debug)]
pub struct Options {
    /// `add_prefix_space`; `None` if the field is missing or null.
    pub add_prefix_space: Option<bool>,
    /// `legacy` of Llama's class; false if the field is missing.
    pub legacy: bool,
}

const END: Option<&str> = Some("<|endoftext|>");

/// The supported classes that rebuild the tokenizer.
static REBUILT: [Class; 6] = [
    Class {
        name: "LlamaTokenizer",
        defaults: &[
            ("unk_token", Some("<unk>")),
            ("bos_token", Some("<s>")),
            ("eos_token", Some("</s>")),
        ],
        parts: llama,
        fuse_unknown: true,
        bytes: true,
        unknown: false,
        drops_post_processor: false,
        resets_flags: false,
    },
    Class {
        name: "GemmaTokenizer",
        defaults: &[
            ("unk_token", Some("<unk>")),
            ("bos_token", Some("<bos>")),
            ("eos_token", Some("<eos>")),
            ("pad_token", Some("<pad>")),
            ("mask_token", Some("<mask>")),
        ],
        parts: gemma,
        fuse_unknown: true,
        bytes: true,
        unknown: true,
        drops_post_processor: false,
        resets_flags: false,
    },
    Class {
        name: "Qwen2Tokenizer",
        defaults: &[
            ("unk_token", END),
            ("bos_token", None),
            ("eos_token", END),
            ("pad_token", END),
        ],
        parts: |options| qwen(QWEN2, options),
        fuse_unknown: false,
        bytes: false,
        unknown: false,
        drops_post_processor: false,
        resets_flags: true,
    },
    Class {
        name: "Qwen3_5Tokenizer",
        defaults: &[
            ("unk_token", END),
            ("bos_token", None),
            ("eos_token", END),
            ("pad_token", END),
        ],
        parts: |options| qwen(QWEN3_5, options),
        fuse_unknown: false,
        bytes: false,
        unknown: false,
        drops_post_processor: false,
        resets_flags: false,
    },
    Class {
        name: "GPT2Tokenizer",
        defaults: &[
            ("unk_token", END),
            ("bos_token", END),
            ("eos_token", END),
            ("pad_token", None),
        ],
        parts: |options| [Value::Null, byte_level(options, true), decoder()],
        fuse_unknown: false,
        bytes: false,
        unknown: false,
        drops_post_processor: false,
        resets_flags: false,
    },
    Class {
        name: "GPTNeoXTokenizer",
        defaults: &[
            ("unk_token", END),
            ("bos_token", END),
            ("eos_token", END),
            ("pad_token", Some("<|padding|>")),
        ],
        parts: |options| [json!({ "type": "NFC" }), byte_level(options, true), decoder()],
        fuse_unknown: false,
        bytes: false,
        unknown: false,
        drops_post_processor: true,
        resets_flags: false,
    },
];

/// Classes of transformers 5.23 that rebuild the tokenizer but are not supported here.
#[rustfmt::skip]
const UNSUPPORTED: &[&str] = &[
    "AlbertTokenizer", "BartTokenizer", "BarthezTokenizer", "BartphoTokenizer",
    "BertGenerationTokenizer", "BertJapaneseTokenizer", "BertTokenizer", "BertweetTokenizer",
    "BigBirdTokenizer", "BioGptTokenizer", "BlenderbotSmallTokenizer", "BlenderbotTokenizer",
    "ByT5Tokenizer", "CLIPTokenizer", "CTRLTokenizer", "CamembertTokenizer", "CanineTokenizer",
    "ClvpTokenizer", "CodeGenTokenizer", "CodeLlamaTokenizer", "CohereTokenizer",
    "ConvBertTokenizer", "CpmAntTokenizer", "CpmTokenizer", "DPRContextEncoderTokenizer",
    "DPRQuestionEncoderTokenizer", "DPRReaderTokenizer", "DebertaTokenizer", "DebertaV2Tokenizer",
    "DiaTokenizer", "DistilBertTokenizer", "EsmTokenizer", "EsmcTokenizer", "FNetTokenizer",
    "FSMTTokenizer", "FastSpeech2ConformerTokenizer", "FlaubertTokenizer", "FunnelTokenizer",
    "GPTNeoXJapaneseTokenizer", "GPTSw3Tokenizer", "HerbertTokenizer", "LEDTokenizer",
    "LasrTokenizer", "LayoutLMv2Tokenizer", "LayoutLMv3Tokenizer", "LayoutXLMTokenizer",
    "LukeTokenizer", "LxmertTokenizer", "M2M100Tokenizer", "MBart50Tokenizer", "MBartTokenizer",
    "MLukeTokenizer", "MPNetTokenizer", "MarianTokenizer", "MarkupLMTokenizer", "MgpstrTokenizer",
    "MistralCommonBackend", "MobileBertTokenizer", "MvpTokenizer", "MyT5Tokenizer",
    "NllbTokenizer", "NougatTokenizer", "OpenAIGPTTokenizer", "PLBartTokenizer",
    "PegasusTokenizer", "PerceiverTokenizer", "PhobertTokenizer", "Pop2PianoTokenizer",
    "ProphetNetTokenizer", "RagTokenizer", "ReformerTokenizer", "RemBertTokenizer",
    "RoCBertTokenizer", "RoFormerTokenizer", "RobertaTokenizer", "SeamlessM4TTokenizer",
    "SentencePieceBackend", "Siglip2Tokenizer", "SiglipTokenizer", "Speech2TextTokenizer",
    "SpeechT5Tokenizer", "SplinterTokenizer", "SqueezeBertTokenizer", "T5Tokenizer",
    "TapasTokenizer", "Tipsv2Tokenizer", "UdopTokenizer", "VideoPrismTokenizer", "VitsTokenizer",
    "Wav2Vec2CTCTokenizer", "Wav2Vec2PhonemeCTCTokenizer", "WhisperTokenizer", "XGLMTokenizer",
    "XLMRobertaTokenizer", "XLMTokenizer", "XLNetTokenizer",
];

/// The class that transformers registers for the `model_type` of each supported architecture.
const REGISTERED: [(&str, &str); 12] = [
    ("gemma2", "GemmaTokenizer"),
    ("gemma3", "GemmaTokenizer"),
    ("gemma3_text", "GemmaTokenizer"),
    ("gpt2", "GPT2Tokenizer"),
    ("gpt_neox", "GPTNeoXTokenizer"),
    ("granite", FROM_FILE),
    ("mistral", FROM_FILE),
    ("olmo2", FROM_FILE),
    ("olmo3", FROM_FILE),
    ("phi3", FROM_FILE),
    ("qwen2", "Qwen2Tokenizer"),
    ("qwen3", "Qwen2Tokenizer"),
];

/// For these model types, the registered class overrides the class that the folder specifies.
const REGISTERED_FIRST: [&str; 2] = ["phi3", "qwen2"];

/// The class that uses tokenizer.json unchanged.
const FROM_FILE: &str = "TokenizersBackend";

/// The properties of a folder that determine its tokenizer class.
#[derive(Debug, Default)]
pub struct Candidates<'a> {
    /// `model_type` of config.json.
    pub model_type: Option<&'a str>,
    /// `tokenizer_class` of tokenizer_config.json.
    pub tokenizer: Option<&'a str>,
    /// `tokenizer_class` of config.json.
    pub model: Option<&'a str>,
    /// True if tokenizer_config.json specifies custom Python code for AutoTokenizer. The code is
    /// never run.
    pub custom_code: bool,
    /// True if tokenizer.json mentions `ByteLevel`.
    pub byte_level: bool,
}

/// Returns the class that AutoTokenizer chooses, or `None` if that class uses tokenizer.json
/// unchanged.
///
/// # Errors
/// Fails if the class rebuilds the tokenizer and is not supported.
pub fn choose(named: &Candidates) -> Result<Option<&'static Class>> {
    let base = |name: &str| name.strip_suffix("Fast").unwrap_or(name).to_owned();
    let registered = named
        .model_type
        .and_then(|m| REGISTERED.iter().find(|(known, _)| *known == m))
        .map(|(_, class)| *class);
    let first = named.model_type.is_some_and(|m| REGISTERED_FIRST.contains(&m));
    if let Some(folder) = named.tokenizer.or(named.model).map(base).filter(|_| !named.custom_code) {
        if folder == "LlamaTokenizer" && !first && named.byte_level {
            return Ok(None);
        }
        match registered {
            Some(FROM_FILE) if folder != FROM_FILE => return Ok(None),
            Some(registered) if folder != registered => {
                return by_name(if first { registered } else { &folder });
            }
            _ => {}
        }
    }
    named.tokenizer.or(named.model).map(base).as_deref().or(registered).map_or(Ok(None), by_name)
}

const USE_FILE: &str = "if tokenizer.json is correct without changes, set `tokenizer_class` to \
    `PreTrainedTokenizerFast` in tokenizer_config.json";

fn by_name(name: &str) -> Result<Option<&'static Class>> {
    if UNSUPPORTED.contains(&name) {
        return Err(Error::new(format!("the tokenizer class `{name}` is not supported"))
            .hint(format!(
                "valid: {}, and classes that use tokenizer.json unchanged",
                REBUILT.iter().map(|c| c.name).collect::<Vec<_>>().join(", ")
            ))
            .hint(USE_FILE));
    }
    Ok(REBUILT.iter().find(|class| class.name == name))
}

impl Class {
    /// Builds the class's tokenizer from the vocabulary of tokenizer.json, without added tokens.
    ///
    /// # Errors
    /// Fails if the model in tokenizer.json is not BPE.
    pub fn build(&self, file: &Ids, unknown: Option<&str>, options: &Options) -> Result<Ids> {
        let refused = |why: &str| {
            Error::new(format!(
                "tokenizer.json cannot be used with the tokenizer class `{}`: {why}",
                self.name
            ))
            .hint(USE_FILE)
        };
        let ModelWrapper::BPE(model) = file.get_model() else {
            return Err(refused("the class requires a BPE model"));
        };
        let mut model = model.clone();
        if model.continuing_subword_prefix.as_ref().is_some_and(|prefix| !prefix.is_empty()) {
            return Err(refused(
                "it sets `continuing_subword_prefix`, which the class does not support",
            ));
        }
        (model.dropout, model.ignore_merges, model.end_of_word_suffix) = (None, false, None);
        (model.fuse_unk, model.byte_fallback) = (self.fuse_unknown, self.bytes);
        model.unk_token = unknown.filter(|_| self.unknown).map(str::to_owned);
        let mut ids = Ids::new(ModelWrapper::BPE(model));
        let [normalizer, pre_tokenizer, decoder] = (self.parts)(options);
        // The parts are constants in this file, so a failure to parse them is a bug.
        let wrong = |e: serde_json::Error| {
            Error::internal(format!(
                "`{}` defines an invalid normalizer, pre-tokenizer or decoder",
                self.name
            ))
            .because(e)
        };
        ids.with_normalizer(
            serde_json::from_value::<Option<tokenizers::NormalizerWrapper>>(normalizer)
                .map_err(wrong)?,
        )
        .map_err(tokenizer_error)?;
        ids.with_pre_tokenizer(
            serde_json::from_value::<Option<tokenizers::PreTokenizerWrapper>>(pre_tokenizer)
                .map_err(wrong)?,
        );
        ids.with_decoder(
            serde_json::from_value::<Option<tokenizers::DecoderWrapper>>(decoder).map_err(wrong)?,
        );
        if !self.drops_post_processor {
            ids.with_post_processor(file.get_post_processor().cloned());
        }
        Ok(ids)
    }
}

fn llama(options: &Options) -> [Value; 3] {
    let prefix = options.add_prefix_space.unwrap_or(true);
    let scheme = match (prefix, options.legacy) {
        (false, _) => "never",
        (true, true) => "always",
        (true, false) => "first",
    };
    let pre_tokenizer = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme,
        "split": false });
    let mut decoders = blanks_and_bytes();
    if prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    [Value::Null, pre_tokenizer, json!({ "type": "Sequence", "decoders": decoders })]
}

fn gemma(_: &Options) -> [Value; 3] {
    [
        json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" }),
        json!({ "type": "Split", "pattern": { "String": " " }, "behavior": "MergedWithPrevious",
            "invert": false }),
        json!({ "type": "Sequence", "decoders": blanks_and_bytes() }),
    ]
}

fn blanks_and_bytes() -> Vec<Value> {
    vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ]
}

const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN3_5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn qwen(words: &str, options: &Options) -> [Value; 3] {
    let split = json!({ "type": "Split", "pattern": { "Regex": words }, "behavior": "Isolated",
        "invert": false });
    let pre_tokenizer =
        json!({ "type": "Sequence", "pretokenizers": [split, byte_level(options, false)] });
    [json!({ "type": "NFC" }), pre_tokenizer, decoder()]
}

fn byte_level(options: &Options, splits: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": options.add_prefix_space.unwrap_or(false),
        "trim_offsets": true, "use_regex": splits })
}

fn decoder() -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
        "use_regex": true })
}
