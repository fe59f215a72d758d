//! The tokenizer of a Hugging Face folder.

use std::path::Path;

use serde_json::Value;
use tokenizers::Tokenizer as Ids;

use super::{Extras, guarded};
use crate::error::{Context, Error, Result};
use crate::files::{read_bounded, read_json};

/// Of tokenizer.json; Gemma's has a quarter of it.
const MOST_BYTES: u64 = 1 << 27;

/// Reads the vocabulary and what stands beside it.
pub(super) fn read(dir: &Path) -> Result<(Ids, Extras)> {
    let path = dir.join("tokenizer.json");
    if !path.is_file() {
        let e = Error::new(format!("`{}` is missing", path.display()));
        return Err(if dir.join("tokenizer.model").exists() {
            e.hint("the folder has a SentencePiece tokenizer.model alone; in Python, AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes tokenizer.json")
        } else {
            e.hint("take the tokenizer from the folder that the model was fetched from")
        });
    }
    let bytes = read_bounded(&path, MOST_BYTES)?;
    let ids = guarded(|| Ids::from_bytes(&bytes)).within(|| format!("`{}` is no valid tokenizer", path.display()))?;

    let config = optional(&dir.join("tokenizer_config.json"))?;
    let map = optional(&dir.join("special_tokens_map.json"))?;
    let special = |key: &str| special(&config, key).or_else(|| special(&map, key));
    let others = ["unk_token", "sep_token", "cls_token", "mask_token"].into_iter().filter_map(|key| Some((key, special(key)?))).collect();
    let (chat_template, named_templates) = chat_templates(dir, &config)?;
    let extras = Extras {
        bos: special("bos_token"),
        eos: special("eos_token"),
        pad: special("pad_token"),
        others,
        chat_template,
        named_templates,
        ..Extras::default()
    };
    Ok((ids, extras))
}

/// A JSON file that need not be there.
fn optional(path: &Path) -> Result<Value> {
    if path.is_file() { read_json(path) } else { Ok(Value::Null) }
}

/// A special token: its text, or an object with its text.
fn special(config: &Value, key: &str) -> Option<String> {
    let token = config.get(key)?;
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
}

/// Folder of the templates that have another name than `default`, a file each.
const OTHER_TEMPLATES: &str = "additional_chat_templates";

/// The chat template and those under other names. Files go before what tokenizer_config.json says, as in transformers;
/// of several templates the one named `default` is taken.
fn chat_templates(dir: &Path, config: &Value) -> Result<(Option<String>, Vec<(String, String)>)> {
    let read = |path: &Path| {
        let bytes = read_bounded(path, MOST_BYTES)?;
        String::from_utf8(bytes).map_err(|e| Error::new(format!("`{}` is not UTF-8", path.display())).because(e))
    };
    let path = dir.join("chat_template.jinja");
    if path.is_file() {
        let mut others = Vec::new();
        let folder = dir.join(OTHER_TEMPLATES);
        if folder.is_dir() {
            for entry in std::fs::read_dir(&folder).within(|| format!("cannot read `{}`", folder.display()))? {
                let path = entry.within(|| format!("cannot read `{}`", folder.display()))?.path();
                if path.extension().is_some_and(|ending| ending == "jinja") {
                    others.push((path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), read(&path)?));
                }
            }
        }
        others.sort();
        return Ok((Some(read(&path)?), others));
    }
    Ok(match config.get("chat_template") {
        Some(Value::String(template)) => (Some(template.clone()), Vec::new()),
        Some(Value::Array(named)) => {
            let text = |template: &Value, key: &str| template.get(key).and_then(Value::as_str).map(str::to_owned);
            let all = named.iter().filter_map(|template| Some((text(template, "name")?, text(template, "template")?)));
            let (default, others): (Vec<_>, Vec<_>) = all.partition(|(name, _)| name == "default");
            (default.into_iter().next().map(|(_, template)| template), others)
        }
        _ => (None, Vec::new()),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use crate::api::TemplateArgs;
    use crate::error::Fault;
    use crate::testing;
    use crate::text::Tokenizer;

    fn folder_with(config: &str) -> Option<tempfile::TempDir> {
        let shared = testing::shared()?;
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(shared.join("golden/tokenizer/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        Some(dir)
    }

    #[test]
    fn special_tokens_are_texts_or_objects_or_in_a_file_of_their_own() {
        let Some(dir) = folder_with(r#"{"eos_token": {"content": "<|im_end|>", "lstrip": false}, "bos_token": null, "pad_token": "<no such token>"}"#) else {
            return;
        };
        std::fs::write(dir.path().join("special_tokens_map.json"), r#"{"bos_token": "<|im_start|>"}"#).unwrap();
        let tokenizer = Tokenizer::from_folder(dir.path()).unwrap();
        assert_eq!(tokenizer.eos().map(|s| s.id), Some(2));
        assert_eq!(tokenizer.bos().map(|s| s.id), Some(1));
        assert_eq!(tokenizer.pad(), None);
        assert!(!tokenizer.has_chat_template());
        assert!(tokenizer.render_chat(&[], true).unwrap_err().message().contains("no chat template"));
    }

    #[test]
    fn an_end_of_sequence_token_that_is_no_token_is_an_error() {
        let Some(dir) = folder_with(r#"{"eos_token": "</s>"}"#) else { return };
        assert!(Tokenizer::from_folder(dir.path()).unwrap_err().message().contains("`</s>`"));
    }

    #[test]
    fn the_template_named_default_is_taken_and_a_file_goes_before_it() {
        let Some(dir) = folder_with(r#"{"chat_template": [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]}"#) else {
            return;
        };
        assert_eq!(Tokenizer::from_folder(dir.path()).unwrap().render_chat(&[], false).unwrap(), "plain");
        std::fs::write(dir.path().join("chat_template.jinja"), "file").unwrap();
        assert_eq!(Tokenizer::from_folder(dir.path()).unwrap().render_chat(&[], false).unwrap(), "file");
    }

    #[test]
    fn the_template_named_tool_use_is_taken_where_there_are_tools() {
        let Some(dir) = folder_with(
            r#"{"unk_token": "<unk>", "chat_template": [{"name": "tool_use", "template": "tools{{ unk_token }}"}, {"name": "default", "template": "plain"}]}"#,
        ) else {
            return;
        };
        let tools = TemplateArgs::new(json!([{"function": {"name": "f"}}]), Value::Null).unwrap();
        let named = TemplateArgs::new(Value::Null, json!({"chat_template": "tool_use"})).unwrap();
        let own = TemplateArgs::new(Value::Null, json!({"chat_template": "own {{ x }}", "x": 1})).unwrap();
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
        std::fs::write(dir.path().join("additional_chat_templates/tool_use.jinja"), "tools{{ unk_token }}").unwrap();
        check(&Tokenizer::from_folder(dir.path()).unwrap());
    }

    #[test]
    fn a_broken_tokenizer_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Tokenizer::from_folder(dir.path()).unwrap_err().message().contains("is missing"));
        let long_merge = r#"{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":["a b"]}}"#;
        let empty = r#"{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{},"merges":[]}}"#;
        for text in ["", "{}", "[1", long_merge, empty] {
            std::fs::write(dir.path().join("tokenizer.json"), text).unwrap();
            assert!(Tokenizer::from_folder(dir.path()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_pattern_that_gives_up_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let vocabulary = r#"{"version":"1.0","added_tokens":[],
            "pre_tokenizer":{"type":"Split","pattern":{"Regex":"(x+x+)+y"},"behavior":"Isolated","invert":false},
            "model":{"type":"BPE","vocab":{"x":0},"merges":[]}}"#;
        std::fs::write(dir.path().join("tokenizer.json"), vocabulary).unwrap();
        let tokenizer = Tokenizer::from_folder(dir.path()).unwrap();
        assert_eq!(tokenizer.encode("xx").unwrap(), [0, 0]);
        let e = tokenizer.encode(&"x".repeat(4000)).unwrap_err();
        assert!(e.message().contains("the model's tokenizer panicked") && e.fault() == Fault::Input, "{e:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn a_tokenizer_file_with_bytes_changed_makes_a_tokenizer_or_an_error(
            changes in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(b"\"{}[]:,0-9e\\ntaru\xff".to_vec())), 1..4),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let Some(dir) = folder_with("{}") else { return Ok(()) };
            let path = dir.path().join("tokenizer.json");
            let mut bytes = std::fs::read(&path).unwrap();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Some(keep) = cut {
                bytes.truncate(keep.index(bytes.len()));
            }
            // The copy is as unwritable as the original.
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, bytes).unwrap();
            if let Ok(tokenizer) = Tokenizer::from_folder(dir.path())
                && let Ok(ids) = tokenizer.encode_alone("<|im_start|>Hello, world 12 é")
            {
                tokenizer.decode(&ids).ok();
            }
        }
    }
}
