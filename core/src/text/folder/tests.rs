//! Compares token ids with transformers. `fixtures/make.py` computes the expected ids.

use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::api::TemplateArgs;
use crate::error::Fault;
use crate::text::{Special, Tokenizer};

fn fixtures() -> Value {
    serde_json::from_str(include_str!("fixtures/folders.json")).unwrap()
}

/// Creates a folder with the files of `case` and the vocabulary that `case` names.
fn folder_of(fixtures: &Value, case: &Value) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut vocabulary = fixtures["bases"][case["base"].as_str().unwrap()].clone();
    for (key, value) in case["edit"].as_object().into_iter().flatten() {
        vocabulary[key] = value.clone();
    }
    std::fs::write(dir.path().join("tokenizer.json"), vocabulary.to_string()).unwrap();
    for name in ["tokenizer_config", "special_tokens_map", "added_tokens", "config"] {
        if let Some(file) = case.get(name) {
            std::fs::write(dir.path().join(format!("{name}.json")), file.to_string()).unwrap();
        }
    }
    dir
}

/// Creates a folder with the byte-level vocabulary, `config` as tokenizer_config.json, and the
/// files in `more`.
fn folder_with(config: &str, more: Value) -> TempDir {
    let config: Value = serde_json::from_str(config).unwrap();
    let mut case = json!({ "base": "bytes", "tokenizer_config": config });
    case.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    folder_of(&fixtures(), &case)
}

fn with(config: Value) -> crate::error::Result<Tokenizer> {
    Tokenizer::from_folder(folder_with(&config.to_string(), json!({})).path())
}

/// Encodes each string in `texts` twice: with and without the special tokens that the tokenizer
/// adds.
fn ids(tokenizer: &Tokenizer, texts: &Value) -> Value {
    let both = |text: &Value| {
        json!([
            tokenizer.encode_alone(text.as_str().unwrap()).unwrap(),
            tokenizer.encode(text.as_str().unwrap()).unwrap()
        ])
    };
    texts.as_array().unwrap().iter().map(both).collect()
}

fn exported_and_read(tokenizer: &Tokenizer, config: &Value) -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in tokenizer.files().unwrap() {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    // An exported folder also contains the config.json of the model.
    if !config.is_null() {
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    }
    Tokenizer::from_folder(dir.path()).unwrap()
}

#[test]
fn tokenizers_of_folders_give_the_same_ids_as_in_transformers() {
    let fixtures = fixtures();
    let mut wrong = Vec::new();
    let cases = fixtures["cases"].as_array().unwrap();
    assert!(cases.len() > 50);
    for case in cases {
        let dir = folder_of(&fixtures, case);
        let tokenizer = match Tokenizer::from_folder(dir.path()) {
            Ok(tokenizer) => tokenizer,
            Err(e) => {
                wrong.push(format!("{}: {e:?}", case["name"]));
                continue;
            }
        };
        let texts = &fixtures["texts"][case["base"].as_str().unwrap()];
        let (found, expected) = (ids(&tokenizer, texts), &case["ids"]);
        let id = |token: Option<&Special>| token.map_or(Value::Null, |t| t.id.into());
        let names = [
            ("bos", id(tokenizer.bos())),
            ("eos", id(tokenizer.eos())),
            ("pad", id(tokenizer.pad())),
        ];
        if found != *expected {
            wrong.push(format!("{case}\nfound {found}"));
        } else if let Some((name, found)) = names.iter().find(|(name, found)| case[*name] != *found)
        {
            wrong.push(format!("{case}\nfound {name} {found}"));
        } else if ids(&exported_and_read(&tokenizer, &case["config"]), texts) != *expected {
            wrong.push(format!(
                "{case}\nthe ids change when the tokenizer is written and read again"
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n\n"));
}

#[test]
fn unsupported_fields_that_change_ids_are_refused_by_name() {
    let refused = |config: Value| format!("{:?}", with(config).unwrap_err());
    let class = refused(json!({ "tokenizer_class": "CodeLlamaTokenizerFast" }));
    assert!(
        class.contains("the tokenizer class `CodeLlamaTokenizer` is not supported")
            && class.contains("`PreTrainedTokenizerFast`"),
        "{class}"
    );
    let versions =
        refused(json!({ "fast_tokenizer_files": ["tokenizer.json", "tokenizer.4.0.0.json"] }));
    assert!(
        versions.contains("`fast_tokenizer_files`") && versions.contains("`tokenizer.4.0.0.json`"),
        "{versions}"
    );
    assert!(refused(json!({ "init_inputs": [true] })).contains("`init_inputs`"));
    assert!(refused(json!({ "split_special_tokens": "yes" })).contains(
        "`split_special_tokens` in tokenizer_config.json must be true or false, got `\"yes\"`"
    ));
    assert!(
        refused(json!({ "added_tokens_decoder": { "x": { "content": "a" } } }))
            .contains("the id `x`")
    );
    assert!(
        refused(json!({ "added_tokens_decoder": { "1": { "lstrip": true } } }))
            .contains("has no `content`")
    );
    assert!(
        refused(json!({ "added_tokens_decoder": { "1": { "content": "a", "lstrip": 1 } } }))
            .contains("`lstrip` of the token `a`")
    );
    assert!(refused(json!({ "bos_token": 7 })).contains("`bos_token`"));
    assert!(refused(json!({ "extra_special_tokens": "<a>" })).contains("must be a list of tokens"));
    assert!(
        with(json!({ "fast_tokenizer_files": ["tokenizer.json"], "init_inputs": [],
        "fix_mistral_regex": true }))
        .is_ok()
    );
}

#[test]
fn fix_mistral_regex_is_refused_if_transformers_applies_it() {
    let mut fixtures = fixtures();
    let vocabulary = fixtures["bases"]["bytes"]["model"]["vocab"].as_object_mut().unwrap();
    for i in 300..100_300 {
        vocabulary.insert(format!("token{i}"), i.into());
    }
    let read = |config: Value| {
        let case = json!({ "base": "bytes", "tokenizer_config": { "fix_mistral_regex": true },
            "config": config });
        Tokenizer::from_folder(folder_of(&fixtures, &case).path())
    };
    let e = read(json!({ "model_type": "mistral", "transformers_version": "4.57.1" })).unwrap_err();
    assert!(e.message().contains("`fix_mistral_regex`"), "{e:?}");
    assert!(read(json!({ "model_type": "mistral", "transformers_version": "5.0.0" })).is_ok());
    assert!(read(json!({ "model_type": "llama" })).is_ok());
}

#[test]
fn a_class_that_needs_bpe_refuses_another_model() {
    let mut fixtures = fixtures();
    fixtures["bases"]["bytes"]["model"] = json!({ "type": "Unigram", "unk_id": 0,
        "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": false });
    let case = |class: &str| {
        json!({ "base": "bytes", "edit": { "post_processor": null,
        "pre_tokenizer": null, "decoder": null, "added_tokens": [] },
        "tokenizer_config": { "tokenizer_class": class } })
    };
    let e =
        Tokenizer::from_folder(folder_of(&fixtures, &case("LlamaTokenizer")).path()).unwrap_err();
    assert!(e.message().contains("`LlamaTokenizer`") && e.message().contains("BPE"), "{e:?}");
    assert!(
        Tokenizer::from_folder(folder_of(&fixtures, &case("PreTrainedTokenizerFast")).path())
            .is_ok()
    );
}

#[test]
fn special_tokens_can_be_strings_or_objects_or_in_a_separate_file() {
    let dir = folder_with(
        r#"{"eos_token": {"content": "<|im_end|>", "lstrip": false}, "bos_token": null,
            "pad_token": "<no such token>"}"#,
        json!({ "special_tokens_map": { "bos_token": "<|im_start|>" } }),
    );
    let tokenizer = Tokenizer::from_folder(dir.path()).unwrap();
    assert_eq!(tokenizer.eos().map(|s| s.id), Some(2));
    assert_eq!(tokenizer.bos().map(|s| s.id), Some(1));
    // As in transformers, a special token that is missing from the vocabulary is appended to it.
    assert_eq!(tokenizer.pad().map(|s| s.id), Some(tokenizer.vocab_size() as i64 - 1));
    assert!(!tokenizer.has_chat_template());
    assert!(tokenizer.render_chat(&[], true).unwrap_err().message().contains("no chat template"));
}

#[test]
fn a_token_without_an_embedding_row_is_only_an_error_if_it_is_used() {
    let tokenizer = with(json!({ "pad_token": "[PAD]" })).unwrap();
    let rows = tokenizer.vocab_size() as i64 - 1;
    let tokenizer = tokenizer.for_embedding(rows);
    tokenizer.check(&tokenizer.encode("any other text <|im_end|>").unwrap()).unwrap();
    let e = tokenizer.check(&tokenizer.encode("a [PAD]").unwrap()).unwrap_err();
    assert_eq!(
        e.message(),
        format!("the token `[PAD]` has the id {rows}, but the model's embedding has {rows} rows")
    );
    assert!(tokenizer.check(&[-1]).is_err());
}

#[test]
fn the_default_template_is_used_unless_there_is_a_template_file() {
    let dir = folder_with(
        r#"{"chat_template": [{"name": "tool_use", "template": "tools"},
            {"name": "default", "template": "plain"}]}"#,
        json!({}),
    );
    assert_eq!(
        Tokenizer::from_folder(dir.path()).unwrap().render_chat(&[], false).unwrap(),
        "plain"
    );
    std::fs::write(dir.path().join("chat_template.jinja"), "file").unwrap();
    assert_eq!(
        Tokenizer::from_folder(dir.path()).unwrap().render_chat(&[], false).unwrap(),
        "file"
    );
}

#[test]
fn the_template_named_tool_use_is_used_if_there_are_tools() {
    let templates = json!([
        {"name": "tool_use", "template": "tools{{ unk_token }}"},
        {"name": "default", "template": "plain"},
    ]);
    let config = json!({ "unk_token": "<unk>", "chat_template": templates });
    let dir = folder_with(&config.to_string(), json!({}));
    let tools = TemplateArgs::new(json!([{"function": {"name": "f"}}]), Value::Null).unwrap();
    let named = TemplateArgs::new(Value::Null, json!({"chat_template": "tool_use"})).unwrap();
    let own =
        TemplateArgs::new(Value::Null, json!({"chat_template": "own {{ x }}", "x": 1})).unwrap();
    let check = |tokenizer: &Tokenizer| {
        assert_eq!(tokenizer.render_chat(&[], false).unwrap(), "plain");
        assert_eq!(tokenizer.render_chat_with(&[], &tools, false).unwrap(), "tools<unk>");
        assert_eq!(tokenizer.render_chat_with(&[], &named, false).unwrap(), "tools<unk>");
        assert_eq!(tokenizer.render_chat_with(&[], &own, false).unwrap(), "own 1");
    };
    let tokenizer = Tokenizer::from_folder(dir.path()).unwrap();
    check(&tokenizer);
    let copy = tempfile::tempdir().unwrap();
    for (name, text) in tokenizer.files().unwrap() {
        std::fs::write(copy.path().join(name), text).unwrap();
    }
    check(&Tokenizer::from_folder(copy.path()).unwrap());
    std::fs::write(dir.path().join("chat_template.jinja"), "plain").unwrap();
    std::fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
    std::fs::write(
        dir.path().join("additional_chat_templates/tool_use.jinja"),
        "tools{{ unk_token }}",
    )
    .unwrap();
    check(&Tokenizer::from_folder(dir.path()).unwrap());
}

#[test]
fn a_broken_tokenizer_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Tokenizer::from_folder(dir.path()).unwrap_err().message().contains("is missing"));
    let long_merge = r#"{"version":"1.0","added_tokens":[],
        "model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":["a b"]}}"#;
    let empty =
        r#"{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{},"merges":[]}}"#;
    for text in ["", "{}", "[1", long_merge, empty] {
        std::fs::write(dir.path().join("tokenizer.json"), text).unwrap();
        assert!(Tokenizer::from_folder(dir.path()).is_err(), "{text}");
    }
}

#[test]
fn a_pattern_that_exceeds_its_limits_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let vocabulary = r#"{"version":"1.0","added_tokens":[],
        "pre_tokenizer":{"type":"Split","pattern":{"Regex":"(x+x+)+y"},"behavior":"Isolated",
        "invert":false},
        "model":{"type":"BPE","vocab":{"x":0},"merges":[]}}"#;
    std::fs::write(dir.path().join("tokenizer.json"), vocabulary).unwrap();
    let tokenizer = Tokenizer::from_folder(dir.path()).unwrap();
    assert_eq!(tokenizer.encode("xx").unwrap(), [0, 0]);
    let e = tokenizer.encode(&"x".repeat(4000)).unwrap_err();
    assert!(
        e.message().contains("the model's tokenizer panicked") && e.fault() == Fault::Input,
        "{e:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_corrupted_tokenizer_file_never_causes_a_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(),
            prop::sample::select(b"\"{}[]:,0-9e\\ntaru\xff".to_vec())), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let dir = folder_with("{}", json!({}));
        let path = dir.path().join("tokenizer.json");
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(keep) = cut {
            bytes.truncate(keep.index(bytes.len()));
        }
        std::fs::write(&path, bytes).unwrap();
        if let Ok(tokenizer) = Tokenizer::from_folder(dir.path())
            && let Ok(ids) = tokenizer.encode_alone("<|im_start|>Hello, world 12 é")
        {
            tokenizer.decode(&ids).ok();
        }
    }
}
