//! Messages of conversations, and the tools and variables of chat templates.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Context, Error, Result, nearest};

/// One message of a conversation, with all of its fields in their original order.
///
/// The chat template receives every field: `tool_calls`, `tool_call_id`, `name`,
/// `reasoning_content` and any other field of the data set. As in transformers, a field that is
/// null is treated as missing. Two messages are equal if all their fields are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub struct Message(Map<String, Value>);

impl Message {
    /// Names of columns and message fields that contain images, audio or video.
    pub const OTHER_MODALITIES: [&'static str; 6] =
        ["image", "images", "audio", "audios", "video", "videos"];

    /// Creates a message with a role (`system`, `user`, `assistant`, `tool`) and text content.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self(
            [("role", role.into()), ("content", content.into())]
                .map(|(name, text)| (name.to_owned(), text.into()))
                .into_iter()
                .collect(),
        )
    }

    /// Reads a message from its fields.
    ///
    /// # Errors
    /// Fails if `role` is missing or is not text, if `content` is neither text nor a list of parts,
    /// or if a part is an image, audio or video. Also fails if there is no `content`, and no other
    /// field that replaces it, such as `tool_calls`.
    pub fn from_fields(fields: Map<String, Value>) -> Result<Self> {
        let mut fields: Map<String, Value> =
            fields.into_iter().filter(|(_, value)| !value.is_null()).collect();
        match fields.get("role") {
            Some(Value::String(_)) => {}
            Some(other) => {
                return Err(Error::new(format!("`role` is {}, not text", json_kind(other))));
            }
            None => return Err(Error::new("there is no `role`")),
        }
        match fields.get_mut("content") {
            Some(Value::String(_)) => {}
            Some(Value::Array(parts)) => {
                for (i, part) in parts.iter_mut().enumerate() {
                    check_part(part)
                        .within(|| format!("part {} of `content` cannot be used", i + 1))?;
                }
            }
            Some(other) => {
                return Err(Error::new(format!("`content` is {}, not text", json_kind(other)))
                    .hint(
                        "write the content as a string, or as a list of {type: \"text\", text}",
                    ));
            }
            None => {
                let others: Vec<String> = fields
                    .keys()
                    .filter(|name| !matches!(name.as_str(), "role" | "name"))
                    .cloned()
                    .collect();
                let missing = Error::new("there is no `content`");
                if let Some(near) = nearest("content", &others) {
                    return Err(missing.hint(format!("rename `{near}` to `content`")));
                }
                if others.is_empty() {
                    return Err(missing);
                }
            }
        }
        Self::check_text_only(fields.iter().map(|(name, value)| (name.as_str(), value)))?;
        Ok(Self(fields))
    }

    /// Checks that the fields of a message, or the columns of a row, contain no image, audio or
    /// video.
    ///
    /// # Errors
    /// Fails if one of [`OTHER_MODALITIES`](Self::OTHER_MODALITIES) is present and not empty. The
    /// error names the field.
    pub fn check_text_only<'a>(
        fields: impl IntoIterator<Item = (&'a str, &'a Value)>,
    ) -> Result<()> {
        let other = fields
            .into_iter()
            .find(|(name, value)| Self::OTHER_MODALITIES.contains(name) && !is_blank(value));
        other.map_or(Ok(()), |(name, _)| Err(Self::not_text(name)))
    }

    /// Returns the error for a column, field or part `name` that does not contain text.
    pub fn not_text(name: &str) -> Error {
        Error::new(format!("`{name}` contains something other than text")).hint(format!(
            "reprpo trains language models on text only; remove `{name}` if the \
                pairs make sense without it"
        ))
    }

    /// Adds a field to the message, or replaces its value.
    ///
    /// # Errors
    /// Fails in the same cases as [`from_fields`](Self::from_fields).
    pub fn with(self, name: impl Into<String>, value: impl Into<Value>) -> Result<Self> {
        let mut fields = self.0;
        fields.insert(name.into(), value.into());
        Self::from_fields(fields)
    }

    /// The role: `system`, `user`, `assistant`, `tool`, or any other role that the model's chat
    /// template supports.
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// The text of the content. If the content is a list of parts, the text of all parts is
    /// concatenated. If the message has no content, the result is empty.
    pub fn text(&self) -> Cow<'_, str> {
        match self.0.get("content") {
            Some(Value::String(text)) => Cow::Borrowed(text),
            Some(Value::Array(parts)) => {
                Cow::Owned(parts.iter().filter_map(|part| part.get("text")?.as_str()).collect())
            }
            _ => Cow::Borrowed(""),
        }
    }

    /// The parts of the content, or `None` if the content is not a list of parts.
    pub fn parts(&self) -> Option<&[Value]> {
        self.0.get("content")?.as_array().map(Vec::as_slice)
    }

    /// All fields, in their original order.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }

    /// The fields other than `role` and `content`.
    pub fn extras(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value))
            .filter(|(name, _)| !matches!(*name, "role" | "content"))
    }
}

impl TryFrom<Map<String, Value>> for Message {
    type Error = Error;

    fn try_from(fields: Map<String, Value>) -> Result<Self> {
        Self::from_fields(fields)
    }
}

impl From<Message> for Map<String, Value> {
    fn from(message: Message) -> Self {
        message.0
    }
}

/// True if a value is null, an empty string, an empty object, or a list of such values.
fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.iter().all(is_blank),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// Checks one part of a message's content, and removes its null fields. If a data set is stored as
/// a table, every part has the same fields, and unused fields are null.
fn check_part(part: &mut Value) -> Result<()> {
    let Value::Object(fields) = part else {
        return Err(Error::new(format!("a part must be an object, got {}", json_kind(part)))
            .hint("write it as {\"type\": \"text\", \"text\": \"…\"}"));
    };
    fields.retain(|_, value| !value.is_null());
    let of = match fields.get("type") {
        Some(Value::String(of)) => of.clone(),
        Some(other) => return Err(Error::new(format!("`type` is {}, not text", json_kind(other)))),
        None => String::new(),
    };
    let other = |name: &&String| {
        ["image", "audio", "video"].iter().any(|m| name.to_lowercase().contains(m))
    };
    if let Some(name) = Some(&of).filter(other).or_else(|| fields.keys().find(other)) {
        return Err(Message::not_text(name));
    }
    match (of.as_str(), fields.get("text")) {
        ("", _) => Err(Error::new("there is no `type`")
            .hint("write it as {\"type\": \"text\", \"text\": \"…\"}")),
        ("text", None) => Err(Error::new("there is no `text`")),
        ("text", Some(text)) if !text.is_string() => {
            Err(Error::new(format!("`text` is {}, not text", json_kind(text))))
        }
        _ => Ok(()),
    }
}

/// Names the type of a JSON value for an error message, e.g. `a list`.
pub fn json_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The tools and variables that a chat template receives in addition to the messages.
///
/// A data set stores them in the columns `tools` and `chat_template_kwargs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Columns", into = "Columns")]
pub struct TemplateArgs {
    tools: Option<Vec<Value>>,
    variables: Map<String, Value>,
}

/// The serialised form of [`TemplateArgs`]: two columns of a row.
#[derive(Serialize, Deserialize)]
struct Columns {
    #[serde(default, skip_serializing_if = "Value::is_null")]
    tools: Value,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    chat_template_kwargs: Value,
}

const TOOLS: &str = TemplateArgs::COLUMNS[0];
const KWARGS: &str = TemplateArgs::COLUMNS[1];

/// Template arguments that TRL sets itself. As in TRL, a row must not set them.
const TAKEN: [&str; 8] = [
    "add_generation_prompt",
    "conversation",
    "conversations",
    "messages",
    "processing_class",
    "return_dict",
    "self",
    "tokenize",
];

/// Arguments of `apply_chat_template` that change the tokenisation and are not passed to the
/// template.
const NOT_VARIABLES: [&str; 8] = [
    "continue_final_message",
    "max_length",
    "padding",
    "return_assistant_tokens_mask",
    "return_tensors",
    "sanitize_control_tokens",
    "tokenizer_kwargs",
    "truncation",
];

impl TemplateArgs {
    /// Names of the columns of a data set that store the tools and the variables.
    pub const COLUMNS: [&'static str; 2] = ["tools", "chat_template_kwargs"];

    /// Reads the columns `tools` (a list of JSON schemas) and `chat_template_kwargs` (an object).
    /// Both may be encoded as JSON text. Null is equivalent to a missing column.
    ///
    /// # Errors
    /// Fails if a column has the wrong type, or if a variable has the name of an argument of
    /// `apply_chat_template`.
    pub fn new(tools: Value, kwargs: Value) -> Result<Self> {
        let mut variables = match from_json_text(KWARGS, kwargs)? {
            Value::Null => Map::new(),
            Value::Object(variables) => variables,
            other => {
                return Err(Error::new(format!(
                    "`{KWARGS}` is {}, not an object",
                    json_kind(&other)
                )));
            }
        };
        if let Some(name) = variables.keys().find(|name| TAKEN.contains(&name.as_str())) {
            return Err(Error::new(format!(
                "`{KWARGS}` sets `{name}`, which is not a template variable"
            ))
            .hint(format!("remove `{name}`")));
        }
        let switched_off = |value: &Value| matches!(value, Value::Null | Value::Bool(false));
        if let Some((name, value)) = variables
            .iter()
            .find(|(name, value)| NOT_VARIABLES.contains(&name.as_str()) && !switched_off(value))
        {
            return Err(Error::new(format!(
                "`{KWARGS}` sets `{name}` to `{value}`, which changes \
                the token ids and not the template"
            ))
            .hint(format!("remove `{name}`; lengths are set by `train.max_length`")));
        }
        variables.retain(|name, _| !NOT_VARIABLES.contains(&name.as_str()));
        // As in TRL, the variable `tools` takes precedence over the column.
        let tools = variables.shift_remove(TOOLS).unwrap_or(tools);
        let tools = match from_json_text(TOOLS, tools)? {
            Value::Null => None,
            Value::Array(tools) => Some(tools),
            other => {
                return Err(Error::new(format!("`{TOOLS}` is {}, not a list", json_kind(&other))));
            }
        };
        if let Some((i, tool)) =
            tools.iter().flatten().enumerate().find(|(_, tool)| !tool.is_object())
        {
            return Err(Error::new(format!(
                "tool {} of `{TOOLS}` is {}, not a JSON schema",
                i + 1,
                json_kind(tool)
            ))
            .hint("write each tool as an object: {\"type\": \"function\", \"function\": {…}}"));
        }
        match variables.get("documents") {
            None | Some(Value::Null) => {}
            Some(Value::Array(all)) if all.iter().all(Value::is_object) => {}
            Some(_) => {
                return Err(Error::new(format!(
                    "`documents` in `{KWARGS}` must be a list of objects"
                )));
            }
        }
        match variables.get("chat_template") {
            None | Some(Value::Null | Value::String(_)) => {}
            Some(other) => {
                return Err(Error::new(format!(
                    "`chat_template` in `{KWARGS}` is {}, not text",
                    json_kind(other)
                )));
            }
        }
        Ok(Self { tools, variables })
    }

    /// The tools, as JSON schemas.
    pub fn tools(&self) -> Option<&[Value]> {
        self.tools.as_deref()
    }

    /// The variables by name.
    pub fn variables(&self) -> &Map<String, Value> {
        &self.variables
    }

    /// True if there are neither tools nor variables.
    pub fn is_empty(&self) -> bool {
        self.tools.is_none() && self.variables.is_empty()
    }
}

/// Parses a column that may be encoded as JSON text. An empty cell (blank text) becomes null.
fn from_json_text(column: &str, value: Value) -> Result<Value> {
    match value {
        Value::String(text) if text.trim().is_empty() => Ok(Value::Null),
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|e| Error::new(format!("`{column}` is not valid JSON: {e}"))),
        other => Ok(other),
    }
}

impl TryFrom<Columns> for TemplateArgs {
    type Error = Error;

    fn try_from(columns: Columns) -> Result<Self> {
        Self::new(columns.tools, columns.chat_template_kwargs)
    }
}

impl From<TemplateArgs> for Columns {
    fn from(args: TemplateArgs) -> Self {
        let chat_template_kwargs =
            if args.variables.is_empty() { Value::Null } else { Value::Object(args.variables) };
        Self { tools: args.tools.map_or(Value::Null, Value::Array), chat_template_kwargs }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(value: Value) -> Result<Message> {
        match value {
            Value::Object(fields) => Message::from_fields(fields),
            other => panic!("{other} is not an object"),
        }
    }

    #[test]
    fn every_field_is_kept_in_order_and_counts_in_equality() {
        let call = |city: &str| {
            message(
                json!({"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f",
                    "arguments": {"city": city}}}]}),
            )
        };
        assert_ne!(call("Oslo").unwrap(), call("Rome").unwrap());
        let all = message(json!({"name": "n", "role": "tool", "tool_call_id": "1", "content": "c",
            "unused": null}))
        .unwrap();
        assert_eq!(
            all.fields().keys().collect::<Vec<_>>(),
            ["name", "role", "tool_call_id", "content"]
        );
        assert_eq!(
            message(json!({"role": "user", "content": "c", "name": null})).unwrap(),
            Message::new("user", "c")
        );
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(text, r#"{"name":"n","role":"tool","tool_call_id":"1","content":"c"}"#);
        assert_eq!(serde_json::from_str::<Message>(&text).unwrap(), all);
        assert_eq!(
            Message::new("user", "c").with("name", "n").unwrap(),
            message(json!({"role": "user", "content": "c", "name": "n"})).unwrap()
        );
    }

    #[test]
    fn content_may_be_missing_if_the_message_has_another_field() {
        let call = message(json!({"role": "assistant", "content": null,
            "tool_calls": [{"function": {"name": "f"}}]}))
        .unwrap();
        assert!(call.text().is_empty());
        let e = |value: Value| format!("{:?}", message(value).unwrap_err());
        assert_eq!(e(json!({"role": "user", "content": null})), "there is no `content`");
        assert_eq!(e(json!({"role": "user", "name": "n"})), "there is no `content`");
        assert_eq!(
            e(json!({"role": "user", "contents": "n"})),
            "there is no `content`\n  hint: rename `contents` to `content`"
        );
        assert_eq!(e(json!({"role": 1, "content": "n"})), "`role` is a number, not text");
        assert!(
            e(json!({"role": "user", "content": 7}))
                .starts_with("`content` is a number, not text\n")
        );
    }

    #[test]
    fn parts_are_text_and_another_modality_is_named() {
        let joined = message(json!({"role": "user", "content": [{"type": "text", "text": "a",
            "image": null}, {"type": "text", "text": "b"}]}))
        .unwrap();
        assert_eq!(
            (joined.text(), joined.parts().unwrap()[0].clone()),
            ("ab".into(), json!({"type": "text", "text": "a"}))
        );
        let e = |part: Value| {
            format!(
                "{:?}",
                message(json!({"role": "user", "content": [{"type": "text", "text": "a"}, part]}))
                    .unwrap_err()
            )
        };
        for (part, name) in [
            (json!({"type": "image"}), "image"),
            (json!({"type": "image_url", "image_url": {"url": "x"}}), "image_url"),
            (json!({"type": "input_audio"}), "input_audio"),
            (json!({"type": "video"}), "video"),
            (json!({"type": "text", "text": "a", "image": "x.png"}), "image"),
        ] {
            let e = e(part);
            assert!(
                e.starts_with("part 2 of `content` cannot be used\n")
                    && e.contains(&format!("`{name}` contains something other than text")),
                "{e}"
            );
        }
        assert!(e(json!("words")).contains("a part must be an object, got text"));
        assert!(e(json!({"type": "text"})).contains("there is no `text`"));
        assert!(e(json!({"text": "a"})).contains("there is no `type`"));
        let e = message(json!({"role": "user", "content": "a", "images": ["x.png"]})).unwrap_err();
        assert!(e.message().starts_with("`images` contains"), "{e:?}");
    }

    #[test]
    fn tools_may_be_a_list_or_json_text() {
        let tool = json!([{"type": "function", "function": {"name": "f"}}]);
        let args = TemplateArgs::new(tool.clone(), Value::Null).unwrap();
        assert_eq!(args.tools().unwrap(), tool.as_array().unwrap().as_slice());
        assert_eq!(TemplateArgs::new(tool.to_string().into(), Value::Null).unwrap(), args);
        assert_eq!(
            TemplateArgs::new(Value::Null, json!({"tools": tool})).unwrap(),
            args,
            "the variable must take precedence over the column"
        );
        assert!(TemplateArgs::new(Value::Null, Value::Null).unwrap().is_empty());
        assert!(TemplateArgs::new("".into(), "null".into()).unwrap().is_empty());
        assert_eq!(
            TemplateArgs::new(json!([]), Value::Null).unwrap().tools(),
            Some(&[][..]),
            "an empty list must not become `None`"
        );
        let e =
            |tools: Value| TemplateArgs::new(tools, Value::Null).unwrap_err().message().to_owned();
        assert_eq!(e(json!({"name": "f"})), "`tools` is an object, not a list");
        assert_eq!(e(json!(["f"])), "tool 1 of `tools` is text, not a JSON schema");
        assert!(e("[{".into()).starts_with("`tools` is not valid JSON: "));
    }

    #[test]
    fn names_that_are_not_template_variables_are_rejected() {
        let args = |kwargs: Value| TemplateArgs::new(Value::Null, kwargs);
        let kept = args(json!({"enable_thinking": false, "x": null, "truncation": false})).unwrap();
        assert_eq!(
            Value::Object(kept.variables().clone()),
            json!({"enable_thinking": false, "x": null})
        );
        for (kwargs, name) in [
            (json!({"add_generation_prompt": true}), "add_generation_prompt"),
            (json!({"continue_final_message": true}), "continue_final_message"),
        ] {
            assert!(
                args(kwargs).unwrap_err().message().contains(&format!("sets `{name}`")),
                "{name}"
            );
        }
        assert!(
            args(json!({"documents": ["a"]})).is_err()
                && args(json!({"chat_template": 1})).is_err()
                && args(json!([1])).is_err()
        );
    }
}
