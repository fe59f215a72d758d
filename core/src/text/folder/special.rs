//! Collects a tokenizer's special and added tokens from the four files that can define them.
//!
//! This follows `_from_pretrained` and `TokenizersBackend.__init__` of transformers 5.23. The order
//! of the steps matters, because tokens that are added later get larger ids.

use std::collections::{BTreeMap, HashSet};

use indexmap::IndexMap;
use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer as Ids};

use super::class::Class;
use crate::error::{Error, Result};

/// The special tokens that every tokenizer can have, in the order in which they are added.
pub const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A token in one of the files: either only its text, or an object that also contains its flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenEntry {
    /// The token's text.
    Text(String),
    /// The token's text and flags.
    Token(AddedToken),
}

impl TokenEntry {
    /// The token's text.
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Token(token) => &token.content,
        }
    }

    fn read(value: &Value, special: Option<bool>, file: &str, key: &str) -> Result<Self> {
        match value {
            Value::String(text) => Ok(Self::Text(text.clone())),
            Value::Object(_) => token(value, special, file, key).map(Self::Token),
            _ => Err(Error::new(format!(
                "`{key}` in {file} must be a string or an object with `content`, got `{value}`"
            ))),
        }
    }
}

/// Reads an object with a token's text and flags. `special` overrides the `special` flag of the
/// object.
fn token(value: &Value, special: Option<bool>, file: &str, key: &str) -> Result<AddedToken> {
    let content = value.get("content").and_then(Value::as_str);
    let content = content.ok_or_else(|| {
        Error::new(format!("a token in `{key}` of {file} has no `content`: `{value}`"))
            .hint("add the text of the token as `content`")
    })?;
    let flag = |name: &str| match value.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(on)) => Ok(Some(*on)),
        Some(other) => Err(Error::new(format!(
            "`{name}` of the token `{content}` in {file} must be true or false, got `{other}`"
        ))),
    };
    let special = match special {
        Some(special) => special,
        None => flag("special")?.unwrap_or(false),
    };
    Ok(AddedToken::from(content, special)
        .single_word(flag("single_word")?.unwrap_or(false))
        .lstrip(flag("lstrip")?.unwrap_or(false))
        .rstrip(flag("rstrip")?.unwrap_or(false))
        .normalized(flag("normalized")?.unwrap_or(!special)))
}

/// The files that define special and added tokens, as JSON objects. A missing file is empty.
#[derive(Debug, Default)]
pub struct Files {
    /// tokenizer_config.json.
    pub config: Map<String, Value>,
    /// special_tokens_map.json. Only read if tokenizer_config.json does not have
    /// `added_tokens_decoder`.
    pub map: Map<String, Value>,
    /// added_tokens.json, which maps the text of each token to its id. Only read if
    /// tokenizer_config.json does not have `added_tokens_decoder`.
    pub added: Map<String, Value>,
    /// `added_tokens` of tokenizer.json.
    pub vocabulary: Vec<(u32, AddedToken)>,
}

/// The special and added tokens of a tokenizer.
#[derive(Debug)]
pub struct Tokens {
    /// The tokens in [`NAMED`] that a file sets; `None` if the file sets the token to null.
    pub named: IndexMap<String, Option<TokenEntry>>,
    /// Special tokens with a name that is not in [`NAMED`], such as `image_token`.
    pub own: IndexMap<String, TokenEntry>,
    /// Special tokens without a name.
    pub extra: Vec<TokenEntry>,
    /// Added tokens by id. The tokenizer first splits the text at these tokens, and then applies
    /// its model to the rest.
    added: BTreeMap<i64, AddedToken>,
}

const CONFIG: &str = "tokenizer_config.json";
const MAP: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";

impl Tokens {
    /// Collects the tokens from the files.
    ///
    /// # Errors
    /// Fails if a value has a type that transformers does not accept.
    pub fn read(files: &Files) -> Result<Self> {
        let mut fields: IndexMap<&str, (&Value, &'static str)> =
            files.config.iter().map(|(key, value)| (key.as_str(), (value, CONFIG))).collect();
        // `additional_special_tokens` is the older name of `extra_special_tokens`. The older field
        // is used if the newer one is missing or empty.
        if !fields.get("extra_special_tokens").is_some_and(|(value, _)| is_truthy(value))
            && let Some(older) = fields.shift_remove("additional_special_tokens")
        {
            fields.insert("extra_special_tokens", older);
        }
        let mut own = IndexMap::new();
        for (key, value) in files.config.iter().filter(|(key, _)| has_own_name(key)) {
            if let Value::String(text) = value {
                own.insert(key.clone(), TokenEntry::Text(text.clone()));
            }
        }
        // The list `additional_special_tokens` is also used if `extra_special_tokens` is not a
        // list.
        let mut extra: Option<Vec<TokenEntry>> = None;
        let mut older = fields
            .get("additional_special_tokens")
            .map(|(value, file)| list(value, None, file, "additional_special_tokens"))
            .transpose()?;
        match fields.get("extra_special_tokens") {
            Some((Value::Object(tokens), file)) => {
                for (key, value) in tokens {
                    own.insert(key.clone(), TokenEntry::read(value, None, file, key)?);
                }
            }
            Some((value, file)) => extra = Some(list(value, None, file, "extra_special_tokens")?),
            None => {}
        }

        let mut added = BTreeMap::new();
        if let Some(value) = files.config.get("added_tokens_decoder") {
            let tokens = value.as_object().ok_or_else(|| {
                Error::new(format!(
                    "`added_tokens_decoder` in {CONFIG} must be an object, got `{value}`"
                ))
            })?;
            for (id, value) in tokens {
                let number = id.trim().parse::<i64>().map_err(|_| {
                    Error::new(format!(
                        "`added_tokens_decoder` in {CONFIG} has the id `{id}`, which is not a \
                            number"
                    ))
                })?;
                added.insert(number, token(value, None, CONFIG, "added_tokens_decoder")?);
            }
        } else {
            for (key, value) in &files.map {
                match (key.as_str(), value) {
                    ("extra_special_tokens", Value::Array(_)) => {
                        let extra = extra.get_or_insert_default();
                        for token in list(value, Some(true), MAP, key)? {
                            if !extra.contains(&token) {
                                extra.push(token);
                            }
                        }
                    }
                    ("extra_special_tokens", Value::Object(tokens)) => {
                        extra = None;
                        for (key, value) in tokens {
                            own.insert(key.clone(), TokenEntry::read(value, None, MAP, key)?);
                        }
                    }
                    ("additional_special_tokens", value) => {
                        older = Some(list(value, Some(true), MAP, key)?)
                    }
                    _ => {
                        fields.insert(key, (value, MAP));
                    }
                }
            }
        }

        let extra = extra.or(older).unwrap_or_default();
        let mut named = IndexMap::new();
        for key in NAMED {
            let Some((value, file)) = fields.get(key) else { continue };
            let special = (*file == MAP).then_some(true);
            named.insert(
                key.to_owned(),
                if value.is_null() {
                    None
                } else {
                    Some(TokenEntry::read(value, special, file, key)?)
                },
            );
        }
        // Tokens from special_tokens_map.json come first, and so do tokens that are objects with
        // flags. Tokens that tokenizer_config.json defines as plain text follow.
        let mut first = 0;
        for (key, (value, file)) in fields.iter().filter(|(key, _)| has_own_name(key)) {
            if (value.is_object() || (value.is_string() && *file == MAP)) && !own.contains_key(*key)
            {
                own.shift_insert(
                    first,
                    (*key).to_owned(),
                    TokenEntry::read(value, (*file == MAP).then_some(true), file, key)?,
                );
                first += 1;
            }
        }

        if !files.config.contains_key("added_tokens_decoder") {
            // As in transformers, a token that tokenizer_config.json defines as an object is not
            // treated as special here.
            let of_map = |key: &str| fields.get(key).is_some_and(|(_, file)| *file == MAP);
            let named = named.iter().filter_map(|(key, token)| {
                token.as_ref().filter(|t| matches!(t, TokenEntry::Text(_)) || of_map(key))
            });
            let listed = extra.iter().filter(|token| {
                matches!(token, TokenEntry::Text(_))
                    || files.map.contains_key("extra_special_tokens")
            });
            let special: HashSet<&str> = named.chain(listed).map(TokenEntry::text).collect();
            for (text, id) in &files.added {
                let id = id.as_i64().ok_or_else(|| {
                    Error::new(format!(
                        "the id of `{text}` in {ADDED} must be an integer, got `{id}`"
                    ))
                })?;
                added.insert(id, AddedToken::from(text.as_str(), special.contains(text.as_str())));
            }
            added
                .extend(files.vocabulary.iter().map(|(id, token)| (i64::from(*id), token.clone())));
        }
        // The flags of an added token override those of the special token with the same text.
        for token in named.values_mut().flatten() {
            if let Some(known) = added.values().rev().find(|known| known.content == token.text()) {
                *token = TokenEntry::Token(known.clone());
            }
        }
        Ok(Self { named, own, extra, added })
    }

    /// Adds the default special tokens of `class` that are not set in any file.
    pub fn default_to(&mut self, class: &Class) {
        for (key, text) in class.defaults {
            self.named
                .entry((*key).to_owned())
                .or_insert_with(|| text.map(|text| TokenEntry::Text(text.to_owned())));
        }
    }

    /// The text of the token `key`, which must be in [`NAMED`]; `None` if it is missing or empty.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.named.get(key)?.as_ref().map(TokenEntry::text).filter(|text| !text.is_empty())
    }

    /// All named special tokens, in the order in which they are added.
    fn special(&self) -> impl Iterator<Item = &TokenEntry> {
        let named = NAMED.iter().filter_map(|key| self.named.get(*key)?.as_ref());
        named.chain(self.own.values())
    }

    /// Adds missing tokens to `ids`, and updates the flags of existing ones. If `resets_flags` is
    /// true, all special tokens get the default flags.
    ///
    /// # Errors
    /// Fails if the tokenizer rejects a token.
    pub fn add_to(&self, ids: &mut Ids, resets_flags: bool) -> tokenizers::Result<()> {
        let there: HashSet<AddedToken> = ids.get_added_tokens_decoder().into_values().collect();
        let mut adding: Vec<TokenEntry> = self
            .added
            .values()
            .filter(|token| !there.contains(*token))
            .cloned()
            .map(TokenEntry::Token)
            .collect();
        let known: HashSet<String> = there
            .iter()
            .map(|t| t.content.clone())
            .chain(adding.iter().map(|t| t.text().to_owned()))
            .collect();
        for token in self.special().chain(&self.extra) {
            if !known.contains(token.text()) && !adding.contains(token) {
                adding.push(token.clone());
            }
        }
        let special: HashSet<&str> = self.special().map(TokenEntry::text).collect();
        let adding = adding.into_iter().map(|token| match token {
            TokenEntry::Text(text) => AddedToken::from(text, true),
            TokenEntry::Token(token) => {
                let special = token.special || special.contains(token.content.as_str());
                token.special(special)
            }
        });
        ids.add_tokens(adding.collect::<Vec<_>>())?;
        if resets_flags {
            let all: IndexMap<&str, ()> =
                self.special().chain(&self.extra).map(|t| (t.text(), ())).collect();
            ids.add_tokens(
                all.into_keys().map(|text| AddedToken::from(text, true)).collect::<Vec<_>>(),
            )?;
        }
        Ok(())
    }
}

/// True if a field defines a special token that is not in [`NAMED`], such as `image_token`.
fn has_own_name(key: &str) -> bool {
    key.ends_with("_token") && !NAMED.contains(&key)
}

/// Reads a list of tokens. `special` overrides the flag of tokens that are objects.
fn list(value: &Value, special: Option<bool>, file: &str, key: &str) -> Result<Vec<TokenEntry>> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(tokens) => {
            tokens.iter().map(|token| TokenEntry::read(token, special, file, key)).collect()
        }
        other => {
            Err(Error::new(format!("`{key}` in {file} must be a list of tokens, got `{other}`")))
        }
    }
}

/// True if Python treats the value as true in a condition.
pub fn is_truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}
