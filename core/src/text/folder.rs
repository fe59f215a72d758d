//! Reads the tokenizer from a Hugging Face model folder in the same way as `AutoTokenizer` in
//! transformers 5.23.

mod class;
mod special;

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::Tokenizer as Ids;
use tokenizers::tokenizer::AddedToken;

use super::{Extras, catch_panics};
use crate::error::{Context, Error, Result};
use crate::files::{read_bounded, read_json};
use class::{Candidates, Options};
use special::{Files, TokenEntry, Tokens, is_truthy};

/// Maximum size of tokenizer.json in bytes. Gemma's file is about a quarter of this size.
const MAX_FILE_BYTES: u64 = 1 << 27;

/// Reads the vocabulary, the special tokens and the chat templates.
pub(super) fn read(dir: &Path) -> Result<(Ids, Extras)> {
    let path = dir.join("tokenizer.json");
    if !path.is_file() {
        let e = Error::new(format!("`{}` is missing", path.display()));
        return Err(if dir.join("tokenizer.model").exists() {
            e.hint(
                "the folder only has a SentencePiece tokenizer.model; run \
                `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)` in Python to \
                write tokenizer.json",
            )
        } else {
            e.hint("copy the tokenizer from the folder or repository that the model comes from")
        });
    }
    let bytes = read_bounded(&path, MAX_FILE_BYTES)?;
    let file = catch_panics(|| Ids::from_bytes(&bytes))
        .within(|| format!("`{}` is not a valid tokenizer", path.display()))?;

    let config = object(dir, "tokenizer_config.json")?;
    let model = object(dir, "config.json")?;
    refuse(&config, &model, &file)?;
    let text = |of: &'_ Map<String, Value>, key: &str| {
        of.get(key).and_then(Value::as_str).map(str::to_owned)
    };
    let (model_type, tokenizer, of_model) = (
        text(&model, "model_type"),
        text(&config, "tokenizer_class"),
        text(&model, "tokenizer_class"),
    );
    let class = class::choose(&Candidates {
        model_type: model_type.as_deref(),
        tokenizer: tokenizer.as_deref(),
        model: of_model.as_deref(),
        custom_code: custom_code(&config),
        byte_level: bytes.windows(BYTE_LEVEL.len()).any(|w| w == BYTE_LEVEL),
    })?;

    let mut tokens = Tokens::read(&Files {
        map: object(dir, "special_tokens_map.json")?,
        added: object(dir, "added_tokens.json")?,
        vocabulary: in_order(&file),
        config: config.clone(),
    })?;
    if let Some(class) = class {
        tokens.default_to(class);
    }
    // If no other file defines the padding token, use the one in the padding settings of
    // tokenizer.json.
    if let Some(padding) = file.get_padding() {
        tokens
            .named
            .entry("pad_token".to_owned())
            .or_insert_with(|| Some(TokenEntry::Text(padding.pad_token.clone())));
    }
    let add_prefix_space = config.get("add_prefix_space").and_then(Value::as_bool);
    let ids = match class {
        None => {
            let mut ids = file;
            catch_panics(|| tokens.add_to(&mut ids, false))?;
            ids
        }
        Some(class) => {
            let options =
                Options { add_prefix_space, legacy: config.get("legacy").is_some_and(is_truthy) };
            let unknown =
                tokens.named.get("unk_token").and_then(Option::as_ref).map(TokenEntry::text);
            let mut ids = class.build(&file, unknown, &options)?;
            catch_panics(|| tokens.add_to(&mut ids, class.resets_flags))?;
            warn_if_ids_change(class.name, &file, &ids);
            ids
        }
    };
    let of_templates = ["unk_token", "sep_token", "cls_token", "mask_token"];
    let others = of_templates
        .into_iter()
        .filter_map(|key| Some((key, tokens.text(key)?.to_owned())))
        .collect();
    let (chat_template, named_templates) = chat_templates(dir, &config)?;
    let splits = config.get("split_special_tokens").is_some_and(is_truthy);
    let mut extra_fields = Map::new();
    for (key, token) in tokens
        .named
        .iter()
        .filter(|(key, _)| !matches!(key.as_str(), "bos_token" | "eos_token" | "pad_token"))
    {
        extra_fields
            .insert(key.clone(), token.as_ref().map_or(Value::Null, |token| token.text().into()));
    }
    extra_fields.extend(tokens.own.iter().map(|(key, token)| (key.clone(), token.text().into())));
    extra_fields.extend(add_prefix_space.map(|on| ("add_prefix_space".to_owned(), on.into())));
    let text = |key: &str| tokens.text(key).map(str::to_owned);
    let extras = Extras {
        bos: text("bos_token"),
        eos: text("eos_token"),
        pad: text("pad_token"),
        others,
        chat_template,
        named_templates,
        splits_special: splits,
        extra_fields,
        ..Extras::default()
    };
    Ok((ids, extras))
}

const BYTE_LEVEL: &[u8] = b"\"ByteLevel\"";

/// The added tokens of tokenizer.json, sorted by id.
fn in_order(file: &Ids) -> Vec<(u32, AddedToken)> {
    let mut tokens: Vec<(u32, AddedToken)> = file.get_added_tokens_decoder().into_iter().collect();
    tokens.sort_by_key(|(id, _)| *id);
    tokens
}

/// True if the folder has custom Python code for its tokenizer.
fn custom_code(config: &Map<String, Value>) -> bool {
    match config.get("auto_map") {
        Some(Value::Array(_)) => true,
        Some(map) => map.get("AutoTokenizer").is_some_and(|class| !class.is_null()),
        None => false,
    }
}

/// Rejects unsupported fields of tokenizer_config.json that change token ids.
fn refuse(config: &Map<String, Value>, model: &Map<String, Value>, file: &Ids) -> Result<()> {
    let refused = |field: &str, why: &str| {
        Err(Error::new(format!("`{field}` in tokenizer_config.json is not supported: {why}")))
    };
    let versions = config.get("fast_tokenizer_files").and_then(Value::as_array);
    if let Some(other) = versions
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .find(|f| f.starts_with("tokenizer.") && *f != "tokenizer.json")
    {
        return refused(
            "fast_tokenizer_files",
            &format!("transformers reads `{other}` instead of tokenizer.json"),
        )
        .map_err(|e| {
            e.hint(format!("replace tokenizer.json with `{other}` and remove the field"))
        });
    }
    if config.get("init_inputs").is_some_and(is_truthy) {
        return refused("init_inputs", "the meaning of its positional arguments is unknown")
            .map_err(|e| e.hint("remove the field, or set its values as named fields"));
    }
    for field in ["split_special_tokens", "add_prefix_space", "legacy"] {
        if let Some(value) =
            config.get(field).filter(|value| !value.is_boolean() && !value.is_null())
        {
            return Err(Error::new(format!(
                "`{field}` in tokenizer_config.json must be true or false, got `{value}`"
            )));
        }
    }
    // With `fix_mistral_regex`, transformers corrects the pre-tokenizer of some Mistral models. The
    // conditions below are the same as in transformers.
    let mistral = model.get("model_type").is_none_or(|m| {
        m.as_str().is_some_and(|m| {
            ["mistral", "mistral3", "voxtral", "ministral", "pixtral"].contains(&m)
        })
    });
    let major = model
        .get("transformers_version")
        .and_then(Value::as_str)
        .and_then(|v| v.split('.').next()?.parse::<u32>().ok());
    if config.get("fix_mistral_regex").is_some_and(is_truthy)
        && mistral
        && major.is_none_or(|major| major < 5)
        && file.get_vocab_size(true) > 100_000
    {
        return refused("fix_mistral_regex", "it changes how transformers splits text into words")
            .map_err(|e| {
                e.hint(
                "run `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)` in Python to \
                write the corrected tokenizer.json, then remove the field",
            )
            });
    }
    Ok(())
}

/// Warns if `built`, the rebuilt tokenizer, and `file`, the unmodified tokenizer.json, produce
/// different token ids.
fn warn_if_ids_change(class: &str, file: &Ids, built: &Ids) {
    const SAMPLE: &str = "Hello, world! 1234 it's\n\n\tsome  more é 漢字 naïve\u{301} text.  ";
    let ids =
        |of: &Ids| catch_panics(|| of.encode_fast(SAMPLE, true)).ok().map(|e| e.get_ids().to_vec());
    if let (Some(before), Some(now)) = (ids(file), ids(built))
        && before != now
    {
        tracing::warn!(
            "tokenizer_config.json selects the class `{class}`, for which transformers 5 replaces \
            parts of tokenizer.json; the token ids follow transformers and differ from \
            tokenizer.json"
        );
    }
}

/// Reads a JSON object. Returns an empty object if the file does not exist.
fn object(dir: &Path, name: &str) -> Result<Map<String, Value>> {
    let path = dir.join(name);
    if !path.is_file() {
        return Ok(Map::new());
    }
    match read_json(&path)? {
        Value::Object(map) => Ok(map),
        _ => Err(Error::new(format!("`{}` is not a JSON object", path.display()))),
    }
}

/// Folder with one file for each chat template other than the default one.
const OTHER_TEMPLATES: &str = "additional_chat_templates";

/// The default chat template, and the name and source of each additional one.
type Templates = (Option<String>, Vec<(String, String)>);

/// Reads the chat templates. Template files take precedence over tokenizer_config.json, as in
/// transformers. If tokenizer_config.json has several templates, the one named `default` is the
/// default.
fn chat_templates(dir: &Path, config: &Map<String, Value>) -> Result<Templates> {
    let read = |path: &Path| {
        let bytes = read_bounded(path, MAX_FILE_BYTES)?;
        String::from_utf8(bytes)
            .map_err(|e| Error::new(format!("`{}` is not UTF-8", path.display())).because(e))
    };
    let path = dir.join("chat_template.jinja");
    if path.is_file() {
        let mut others = Vec::new();
        let folder = dir.join(OTHER_TEMPLATES);
        if folder.is_dir() {
            for entry in std::fs::read_dir(&folder)
                .within(|| format!("cannot read `{}`", folder.display()))?
            {
                let path = entry.within(|| format!("cannot read `{}`", folder.display()))?.path();
                if path.extension().is_some_and(|ending| ending == "jinja") {
                    others.push((
                        path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
                        read(&path)?,
                    ));
                }
            }
        }
        others.sort();
        return Ok((Some(read(&path)?), others));
    }
    Ok(match config.get("chat_template") {
        Some(Value::String(template)) => (Some(template.clone()), Vec::new()),
        Some(Value::Array(named)) => {
            let text = |template: &Value, key: &str| {
                template.get(key).and_then(Value::as_str).map(str::to_owned)
            };
            let all = named.iter().filter_map(|template| {
                Some((text(template, "name")?, text(template, "template")?))
            });
            let (default, others): (Vec<_>, Vec<_>) = all.partition(|(name, _)| name == "default");
            (default.into_iter().next().map(|(_, template)| template), others)
        }
        _ => (None, Vec::new()),
    })
}

#[cfg(test)]
mod tests;
