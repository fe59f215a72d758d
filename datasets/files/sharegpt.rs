//! Converts rows in the format of ShareGPT and LLaMA-Factory to TRL's columns and messages. A
//! ShareGPT message is `{"from": "human", "value": "…"}` instead of `{"role": "user", "content":
//! "…"}`. The prompt is in the column `conversations`.

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::{self, Map, Value, json};

use super::row::Columns;

/// Column with the messages of the prompt.
pub const CONVERSATIONS: &str = "conversations";
/// Column with the system prompt.
const SYSTEM: &str = "system";

/// Maps ShareGPT's speakers to TRL's roles.
const SPEAKERS: [(&str, &str); 12] = [
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("assistant", "assistant"),
    ("system", "system"),
    ("developer", "developer"),
    ("tool", "tool"),
    ("observation", "tool"),
    ("function_response", "tool"),
    ("tool_response", "tool"),
    ("function_call", CALL),
    ("tool_call", CALL),
];

/// Pseudo-role of a function call. The call becomes an assistant message with `tool_calls`.
const CALL: &str = "call";

/// Returns the ShareGPT columns to build the prompt from. The result is empty if the row has a
/// prompt column. `has(column)` is true if the row has this column.
pub fn columns(has: impl Fn(&str) -> bool, columns: &Columns) -> Vec<&'static str> {
    let used = columns.prompt.as_ref().is_some_and(|prompt| !has(prompt)) && has(CONVERSATIONS);
    [CONVERSATIONS, SYSTEM].into_iter().filter(|name| used && has(name)).collect()
}

/// Converts a row from ShareGPT's format to TRL's. Does not change rows in other formats.
///
/// # Errors
/// Fails if a speaker is unknown, if a message cannot be converted, if the prompt ends with an
/// assistant message, or if the prompt's system message differs from the system column.
pub fn convert(row: &mut Map<String, Value>, columns: &Columns) -> Result<()> {
    for column in columns.names() {
        if let Some(value) = row.get_mut(column) {
            messages(value).within(|| format!("`{column}` cannot be read"))?;
        }
    }
    let Some(prompt) = columns.prompt.as_ref().filter(|p| !row.contains_key(*p)) else {
        return Ok(());
    };
    if !row.get(CONVERSATIONS).is_some_and(Value::is_array) {
        return Ok(());
    }
    let system = match row.get(SYSTEM) {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) if text.is_empty() => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(other) => {
            return Err(Error::new(format!("`{SYSTEM}` is {}, not text", json_kind(other))));
        }
    };
    let mut conversation = row.remove(CONVERSATIONS).unwrap_or_default();
    prompt_of(&mut conversation, system).within(|| format!("`{CONVERSATIONS}` cannot be read"))?;
    row.remove(SYSTEM);
    row.insert(prompt.clone(), conversation);
    Ok(())
}

/// Converts a conversation to a prompt that starts with the system prompt.
fn prompt_of(conversation: &mut Value, system: Option<String>) -> Result<()> {
    messages(conversation)?;
    let Value::Array(turns) = conversation else { return Ok(()) };
    let role = |message: &Value| {
        message.get("role").and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let Some(last) = turns.last() else { return Err(Error::new("it has no messages")) };
    if role(last) == "assistant" {
        return Err(Error::new(
            "it ends with an assistant message, but the completions must be in separate columns",
        )
        .hint(
            "remove the last message, or set a different prompt column with `--columns \
                prompt=NAME`",
        ));
    }
    if let Some(system) = system {
        let first = turns.first().filter(|first| role(first) == "system");
        match first.map(|first| first.get("content").and_then(Value::as_str) == Some(&system)) {
            Some(true) => {}
            Some(false) => {
                return Err(Error::new(format!(
                    "its system message differs from the column `{SYSTEM}`"
                )));
            }
            None => turns.insert(0, json!({"role": "system", "content": system})),
        }
    }
    Ok(())
}

/// Converts a list of messages, or a single message, to TRL's format.
fn messages(value: &mut Value) -> Result<()> {
    let is_message = |value: &Value| {
        let has = |key: &str| value.get(key).is_some();
        (has("from") && has("value") && !has("role")) || (has("role") && has("content"))
    };
    if value.is_object() && is_message(value) {
        *value = Value::Array(vec![value.take()]);
    }
    let Value::Array(items) = value else { return Ok(()) };
    for (i, item) in items.iter_mut().enumerate() {
        if let Value::Object(fields) = item
            && fields.contains_key("from")
            && !fields.contains_key("role")
        {
            *item = message(fields).within(|| format!("message {} is invalid", i + 1))?;
        }
    }
    Ok(())
}

fn message(fields: &mut Map<String, Value>) -> Result<Value> {
    let mut take = |name: &str| match fields.remove(name) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(Error::new(format!("`{name}` is {}, not text", json_kind(&other)))),
        None => Err(Error::new(format!("there is no `{name}`"))),
    };
    let (from, value) = (take("from")?, take("value")?);
    let role = SPEAKERS.iter().find(|(name, _)| *name == from).map(|(_, role)| *role);
    let role =
        role.ok_or_else(|| Error::unknown("speaker", &from, SPEAKERS.map(|(name, _)| name)))?;
    let mut converted = Map::new();
    if role == CALL {
        converted.insert("role".to_owned(), "assistant".into());
        converted.insert("content".to_owned(), "".into());
        converted.insert("tool_calls".to_owned(), calls(&value)?);
    } else {
        converted.insert("role".to_owned(), role.into());
        converted.insert("content".to_owned(), value.into());
    }
    // Keep the remaining fields of the message, because the chat template may read them.
    converted.extend(std::mem::take(fields));
    Ok(Value::Object(converted))
}

/// Parses `{"name": …, "arguments": …}`, or a list of such objects, and converts it to the
/// `tool_calls` of a message.
fn calls(text: &str) -> Result<Value> {
    let wrong = || {
        Error::new("a function call is not JSON with `name` and `arguments`")
            .hint(r#"write it as {"name": "…", "arguments": {…}}, or as a list of such objects"#)
    };
    let calls = match serde_json::from_str(text).map_err(|_| wrong())? {
        Value::Array(calls) => calls,
        call => vec![call],
    };
    if calls.is_empty() {
        return Err(wrong());
    }
    let call = |call: Value| match (call.get("name"), call.get("arguments")) {
        (Some(Value::String(name)), Some(arguments @ (Value::Object(_) | Value::String(_)))) => {
            Ok(json!({"type": "function", "function": {"name": name, "arguments": arguments}}))
        }
        _ => Err(wrong()),
    };
    calls.into_iter().map(call).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(row: Value) -> Result<Value> {
        let Value::Object(mut row) = row else { panic!("{row} is not a row") };
        convert(&mut row, &Columns::default()).map(|()| Value::Object(row))
    }

    fn error(row: Value) -> String {
        format!("{:?}", converted(row).unwrap_err())
    }

    #[test]
    fn a_ranked_pair_of_llama_factory_becomes_a_pair_of_trl() {
        let turn = |role: &str, content: &str| json!({"role": role, "content": content});
        let row = json!({
            "conversations": [
                {"from": "human", "value": "Sky?"},
                {"from": "gpt", "value": "Which?", "weight": 1},
                {"from": "human", "value": "Ours."},
            ],
            "chosen": {"from": "gpt", "value": "blue"},
            "rejected": {"from": "gpt", "value": "green"},
            "system": "Be brief.",
            "tools": "[]",
        });
        let want = json!({
            "chosen": [turn("assistant", "blue")],
            "rejected": [turn("assistant", "green")],
            "tools": "[]",
            "prompt": [
                turn("system", "Be brief."),
                turn("user", "Sky?"),
                {"role": "assistant", "content": "Which?", "weight": 1},
                turn("user", "Ours."),
            ],
        });
        assert_eq!(converted(row).unwrap(), want);
        // This row uses TRL's role names. It has a `prompt` column, so `conversations` is ignored.
        let row = json!({
            "prompt": [{"from": "system", "value": "s"}, {"from": "user", "value": "p"}],
            "chosen": [{"from": "assistant", "value": "c"}],
            "rejected": {"role": "assistant", "content": "r"},
            "conversations": "kept",
        });
        let want = json!({
            "prompt": [turn("system", "s"), turn("user", "p")],
            "chosen": [turn("assistant", "c")],
            "rejected": [turn("assistant", "r")],
            "conversations": "kept",
        });
        assert_eq!(converted(row).unwrap(), want);
    }

    #[test]
    fn a_function_call_becomes_an_assistants_tool_call() {
        let row = json!({
            "conversations": [
                {"from": "human", "value": "Weather?"},
                {"from": "function_call",
                "value": "{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}"},
                {"from": "observation", "value": "rain"},
            ],
            "chosen": {"from": "gpt", "value": "It rains."},
            "rejected": {"from": "gpt", "value": "Sun."},
        });
        let want = json!([
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "", "tool_calls": [
                {"type": "function", "function": {"name": "weather",
                "arguments": {"city": "Oslo"}}},
            ]},
            {"role": "tool", "content": "rain"},
        ]);
        assert_eq!(converted(row).unwrap()["prompt"], want);
    }

    #[test]
    fn rows_in_another_format_stay_as_they_are() {
        for row in [
            json!({"prompt": "p", "chosen": "c", "rejected": "r", "system": 3}),
            json!({"prompt": [{"role": "user", "content": "p", "from": "x"}], "chosen": "c",
                "rejected": "r"}),
            json!({"prompt": "p", "chosen": {"role": "assistant"}, "rejected": {"from": "gpt"}}),
            json!({"conversations": "not a list", "chosen": "ab", "rejected": "ac"}),
        ] {
            assert_eq!(converted(row.clone()).unwrap(), row);
        }
    }

    #[test]
    fn the_error_names_a_speaker_or_a_message_without_a_counterpart() {
        let row = |from: &str, value: Value| {
            json!({"conversations": [{"from": from, "value": value}],
                "chosen": {"from": "gpt", "value": "c"}, "rejected": "r"})
        };
        let e = error(row("humn", "x".into()));
        assert!(
            e.starts_with(
                "`conversations` cannot be read\n  because message 1 is invalid\n  because unknown \
                speaker `humn`"
            ),
            "{e}"
        );
        assert!(
            e.contains("did you mean `human`?")
                && e.contains("function_call, function_response, gpt"),
            "{e}"
        );
        assert!(error(row("human", json!(["x"]))).contains("`value` is a list, not text"));
        assert!(error(row("gpt", "x".into())).contains("it ends with an assistant message"));
        assert!(
            error(row("function_call", "go".into()))
                .contains("is not JSON with `name` and `arguments`")
        );
        let mut two = row("system", "a".into());
        two["system"] = "b".into();
        assert!(error(two).contains("its system message differs from the column `system`"));
        assert!(
            error(json!({"conversations": [], "chosen": "c", "rejected": "r"}))
                .contains("has no messages")
        );
    }
}
