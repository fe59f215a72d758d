use std::path::Path;

use proptest::prelude::*;
use serde_json::Value;

use crate::error::Result;
use crate::testing::{
    self,
    gguf::{Writer, numbers, text, texts},
};
use crate::text::{Special, Tokenizer};
use crate::weights::Metadata;

/// Encodes an entry of a GGUF header: a key, a type and the bytes of the value.
fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key), &kind.to_le_bytes()[..], value].concat()
}

fn tokenizer_of(entries: Vec<Vec<u8>>) -> Result<Tokenizer> {
    read(&Writer::with_settings(entries))
}

fn read(bytes: &[u8]) -> Result<Tokenizer> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    std::fs::write(&path, bytes).unwrap();
    Tokenizer::from_gguf(&Metadata::open(&path)?)
}

/// Encodes the header entries of a file with a vocabulary from `fixtures/make.py`.
fn entries(vocabulary: &Value, keys: &Value) -> Vec<Vec<u8>> {
    let strings = |v: &Value| {
        v.as_array().unwrap().iter().map(|t| t.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let mut all = vec![entry("tokenizer.ggml.tokens", 9, &texts(&strings(&vocabulary["tokens"])))];
    let types: Vec<[u8; 4]> = vocabulary["token_type"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| (s.as_i64().unwrap() as i32).to_le_bytes())
        .collect();
    all.push(entry("tokenizer.ggml.token_type", 9, &numbers(5, types.into_iter())));
    if vocabulary["merges"].is_array() {
        all.push(entry("tokenizer.ggml.merges", 9, &texts(&strings(&vocabulary["merges"]))));
    }
    if let Some(scores) = vocabulary["scores"].as_array() {
        let scores: Vec<[u8; 4]> =
            scores.iter().map(|s| (s.as_f64().unwrap() as f32).to_le_bytes()).collect();
        all.push(entry("tokenizer.ggml.scores", 9, &numbers(6, scores.into_iter())));
    }
    for (key, name) in [
        ("model", "tokenizer.ggml.model"),
        ("pre", "tokenizer.ggml.pre"),
        ("architecture", "general.architecture"),
    ] {
        all.extend(keys[key].as_str().map(|value| entry(name, 8, &text(value))));
    }
    all.extend(
        keys["add_space_prefix"]
            .as_bool()
            .map(|value| entry("tokenizer.ggml.add_space_prefix", 7, &[value.into()])),
    );
    all
}

fn fixture() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/text/gguf/fixtures/tokenizers.json");
    let mut fixture: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let vocabularies = &mut fixture["vocabularies"];
    let mut with_spaces = vocabularies["pieces"].clone();
    for at in vocabularies["pieces with spaces"]["spaces"].as_array().unwrap() {
        let at = at.as_u64().unwrap() as usize;
        with_spaces["tokens"][at] =
            Value::from(with_spaces["tokens"][at].as_str().unwrap().replace('▁', " "));
        with_spaces["token_type"][at] = Value::from(4);
    }
    // Gemma's merges are ordered by token ids, so the scores must not matter.
    with_spaces["scores"].as_array_mut().unwrap().fill(Value::from(0.0));
    vocabularies["pieces with spaces"] = with_spaces;
    fixture
}

fn case<'a>(fixture: &'a Value, name: &str) -> (&'a Value, &'a Value) {
    let case = fixture["cases"].as_array().unwrap().iter().find(|c| c["name"] == name).unwrap();
    (&fixture["vocabularies"][case["vocabulary"].as_str().unwrap()], &case["keys"])
}

fn ids(v: &Value) -> Vec<i64> {
    v.as_array().unwrap().iter().map(|i| i.as_i64().unwrap()).collect()
}

#[test]
fn every_type_of_tokenizer_gives_the_same_ids_as_in_transformers() {
    let fixture = fixture();
    for case in fixture["cases"].as_array().unwrap() {
        let vocabulary = &fixture["vocabularies"][case["vocabulary"].as_str().unwrap()];
        let tokenizer = tokenizer_of(entries(vocabulary, &case["keys"])).unwrap();
        for (text, expected) in
            fixture["texts"].as_array().unwrap().iter().zip(case["ids"].as_array().unwrap())
        {
            let text = text.as_str().unwrap();
            assert_eq!(
                tokenizer.encode(text).unwrap(),
                ids(expected),
                "tokenizer {}, text {text:?}",
                case["name"]
            );
        }
    }
}

#[test]
fn gemma3_gives_the_same_ids_as_in_transformers() {
    let (Some(shared), Some(model)) =
        (testing::golden::shared("golden/gemma3_270m"), testing::gemma3())
    else {
        return;
    };
    let tokenizer = Tokenizer::from_gguf(&Metadata::open(&model).unwrap()).unwrap();
    let golden: Vec<Value> = serde_json::from_slice(
        &std::fs::read(shared.join("golden/gemma3_270m/tokens.json")).unwrap(),
    )
    .unwrap();
    assert!(golden.len() >= 6);
    for line in &golden {
        let (text, expected) = (line["text"].as_str().unwrap(), ids(&line["ids"]));
        assert_eq!(tokenizer.encode(text).unwrap(), expected, "{text:?}");
        assert_eq!(tokenizer.decode(&expected).unwrap(), text);
        assert_eq!(tokenizer.encode_alone(text).unwrap(), [vec![2], expected].concat());
    }
    assert_eq!(tokenizer.bos(), Some(&Special { text: "<bos>".into(), id: 2 }));
    assert_eq!(tokenizer.eos().map(|s| s.id), Some(1));
    assert_eq!(tokenizer.pad().map(|s| s.id), Some(0));
    assert_eq!(tokenizer.vocab_size(), 262_144);
    assert!(!tokenizer.has_chat_template());
}

#[test]
fn decoding_reverses_encoding() {
    let fixture = fixture();
    for name in ["gpt-2", "tekken", "llama", "llama without a space before the text", "gemma"] {
        let (vocabulary, keys) = case(&fixture, name);
        let tokenizer = tokenizer_of(entries(vocabulary, keys)).unwrap();
        for text in ["Hello world", "a\n\tb", "日本語 😀", "x<|end|>y"] {
            assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text, "{name}");
        }
    }
}

#[test]
fn encode_alone_adds_the_special_tokens_that_the_file_sets() {
    let fixture = fixture();
    let alone = |name: &str, more: Vec<Vec<u8>>| {
        let (vocabulary, keys) = case(&fixture, name);
        let all = [entries(vocabulary, keys), more].concat();
        let tokenizer = tokenizer_of(all).unwrap();
        let (ids, plain) = (tokenizer.encode_alone("a").unwrap(), tokenizer.encode("a").unwrap());
        let at = ids.windows(plain.len()).position(|w| w == plain).unwrap();
        (ids[..at].to_vec(), ids[at + plain.len()..].to_vec())
    };
    let id = |what: &str, id: u32| {
        entry(&format!("tokenizer.ggml.{what}_token_id"), 4, &id.to_le_bytes())
    };
    let flag =
        |what: &str, on: bool| entry(&format!("tokenizer.ggml.add_{what}_token"), 7, &[on.into()]);
    let both = || vec![id("bos", 1), id("eos", 2)];
    assert_eq!(alone("llama", both()), (vec![1], vec![]));
    assert_eq!(alone("llama-bpe", both()), (vec![1], vec![]));
    assert_eq!(alone("qwen2", both()), (vec![], vec![]));
    assert_eq!(
        alone("llama", [both(), vec![flag("bos", false), flag("eos", true)]].concat()),
        (vec![], vec![2])
    );
    assert_eq!(alone("llama", vec![]), (vec![], vec![]), "no BOS token if the file sets none");
}

#[test]
fn pairs_of_plain_text_begin_with_the_bos_if_the_file_sets_it() {
    use crate::api::PreferencePair;
    use crate::text::{Limits, whole_pair};

    let fixture = fixture();
    let (vocabulary, keys) = case(&fixture, "llama-bpe");
    let pair = PreferencePair::new("Hello", " world", " you");
    let prompt = |add_bos: bool, special_tokens: bool| {
        let id = |what: &str, id: u32| {
            entry(&format!("tokenizer.ggml.{what}_token_id"), 4, &id.to_le_bytes())
        };
        let more = vec![
            id("bos", 1),
            id("eos", 2),
            entry("tokenizer.ggml.add_bos_token", 7, &[add_bos.into()]),
        ];
        let tokenizer = tokenizer_of([entries(vocabulary, keys), more].concat()).unwrap();
        let (pair, _) =
            whole_pair(&tokenizer, 0, 0, &pair, &Limits { special_tokens, ..Limits::NONE })
                .unwrap()
                .unwrap();
        assert_eq!((pair.chosen.last(), pair.rejected.last()), (Some(&2), Some(&2)));
        (pair.prompt, tokenizer.encode("Hello").unwrap())
    };
    let (with_bos, bare) = prompt(true, true);
    assert_eq!(with_bos, [vec![1], bare].concat());
    for (add_bos, special_tokens) in [(true, false), (false, true)] {
        let (prompt, bare) = prompt(add_bos, special_tokens);
        assert_eq!(prompt, bare);
    }
}

#[test]
fn a_file_without_a_pre_tokenizer_causes_a_warning() {
    let fixture = fixture();
    let (vocabulary, keys) = case(&fixture, "gpt-2");
    let mut without_pre = keys.clone();
    without_pre.as_object_mut().unwrap().remove("pre");
    let (assumed, warnings) =
        testing::warnings::warnings(|| tokenizer_of(entries(vocabulary, &without_pre)).unwrap());
    assert!(
        warnings.len() == 1
            && warnings[0].contains("`tokenizer.ggml.pre`")
            && warnings[0].contains("GPT-2"),
        "{warnings:?}"
    );
    let (explicit, warnings) =
        testing::warnings::warnings(|| tokenizer_of(entries(vocabulary, keys)).unwrap());
    assert!(warnings.is_empty(), "{warnings:?}");
    let text = "What's 1234?\n\n  é";
    assert_eq!(assumed.encode(text).unwrap(), explicit.encode(text).unwrap());
    // SentencePiece tokenizers do not split text into words. They do not need `tokenizer.ggml.pre`.
    let (vocabulary, keys) = case(&fixture, "llama");
    assert!(
        testing::warnings::warnings(|| tokenizer_of(entries(vocabulary, keys)).unwrap())
            .1
            .is_empty()
    );
}

#[test]
fn an_inconsistent_vocabulary_is_refused() {
    let fixture = fixture();
    let refused = |name: &str, change: &dyn Fn(&mut Value, &mut Value)| {
        let (vocabulary, keys) = case(&fixture, name);
        let (mut vocabulary, mut keys) = (vocabulary.clone(), keys.clone());
        change(&mut vocabulary, &mut keys);
        format!("{:?}", tokenizer_of(entries(&vocabulary, &keys)).unwrap_err())
    };
    let twice = refused("llama", &|v, _| v["tokens"][300] = v["tokens"][299].clone());
    assert!(twice.contains("twice, with the ids 299 and 300"), "{twice}");
    assert!(
        refused("llama", &|v, _| v["scores"] = Value::from(vec![1.0]))
            .contains("tokens but 1 scores")
    );
    assert!(
        refused("llama", &|v, _| v["scores"] = Value::Null).contains("`tokenizer.ggml.scores`")
    );
    assert!(
        refused("llama", &|v, _| v["token_type"] = Value::from(vec![1]))
            .contains("tokens but 1 token types")
    );
    assert!(
        refused("llama", &|v, _| v["tokens"][300] = Value::from("x".repeat(40_000)))
            .contains("tokens of up to 40000 bytes, which is too long")
    );
    assert!(
        refused("gpt-2", &|v, _| v["merges"][0] = Value::from("ab"))
            .contains("is not a pair of tokens")
    );
    assert!(
        refused("gpt-2", &|v, _| v["merges"][0] = Value::from("a <|end|>"))
            .contains("`a <|end|>` requires a token that is not in the vocabulary")
    );
    assert!(
        refused("gpt-2", &|v, _| v["merges"] = Value::Null).contains("`tokenizer.ggml.merges`")
    );
    let pre = refused("gpt-2", &|_, k| k["pre"] = "llama-pbe".into());
    assert!(
        pre.contains("did you mean `llama-bpe`?")
            && pre.contains("tekken")
            && pre.contains("qwen2"),
        "{pre}"
    );
    let model = refused("gpt-2", &|_, k| k["model"] = "t5".into());
    assert!(model.contains("`t5`") && model.contains("gpt2, llama"), "{model}");
}

#[test]
fn phi3s_special_tokens_remove_the_spaces_that_follow_them() {
    let fixture = fixture();
    let (vocabulary, keys) = case(&fixture, "phi3");
    let tokenizer = tokenizer_of(entries(vocabulary, keys)).unwrap();
    assert_eq!(
        tokenizer.encode("<|user|> \n Hi").unwrap(),
        tokenizer.encode("<|user|>Hi").unwrap()
    );
    assert_ne!(tokenizer.encode("<s> Hi").unwrap(), tokenizer.encode("<s>Hi").unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_corrupted_file_never_causes_a_panic(
        pieces: bool,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let fixture = fixture();
        let (vocabulary, keys) = case(&fixture, if pieces { "llama" } else { "llama-bpe" });
        let id = entry("tokenizer.ggml.bos_token_id", 4, &1u32.to_le_bytes());
        let template = entry("tokenizer.chat_template", 8, &text("{% for m in messages %}{{ \
            m.content }}{% endfor %}"));
        let settings = [entries(vocabulary, keys), vec![id, template]].concat();
        let mut bytes = Writer::with_settings(settings);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(tokenizer) = read(&bytes) {
            let ids = tokenizer.encode_alone("Hello <|user|> world 12 日本").unwrap();
            tokenizer.decode(&ids).unwrap();
        }
    }
}
