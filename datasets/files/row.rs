//! One row becomes one pair, whatever file it came from: the rules for columns stand here and nowhere else.

use reprpo_plugin::error::nearest;
use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::{Map, Value};

/// A row by column.
pub type Row = Map<String, Value>;

/// The columns that a pair is made of.
pub const COLUMNS: [&str; 3] = ["prompt", "chosen", "rejected"];

/// The pair in a row; columns besides [`COLUMNS`] are ignored.
///
/// # Errors
/// A column that is missing, that is neither text nor a list of messages, or that differs in this from the others.
pub fn pair(mut row: Row) -> Result<PreferencePair> {
    for column in COLUMNS {
        if !row.contains_key(column) {
            return Err(missing(column, row.keys()));
        }
    }
    let mut take = |column| text(column, row.remove(column).unwrap_or_default());
    let pair = PreferencePair { prompt: take("prompt")?, chosen: take("chosen")?, rejected: take("rejected")? };
    for (column, other) in [("chosen", &pair.chosen), ("rejected", &pair.rejected)] {
        if form(&pair.prompt) != form(other) {
            return Err(Error::new(format!("`prompt` is {}, but `{column}` is {}", form(&pair.prompt), form(other)))
                .hint("all three are plain text, or all three are lists of {role, content}"));
        }
    }
    Ok(pair)
}

/// The error for a column that is not there: names the nearest that is, and all of them.
pub fn missing<S: AsRef<str>>(column: &str, there: impl IntoIterator<Item = S>) -> Error {
    let there: Vec<String> = there.into_iter().map(|s| s.as_ref().to_owned()).collect();
    let spare: Vec<String> = there.iter().filter(|name| !COLUMNS.contains(&name.as_str())).cloned().collect();
    let mut e = Error::new(format!("there is no column `{column}`"));
    if let Some(near) = nearest(column, &spare) {
        e = e.hint(format!("should `{near}` be called `{column}`?"));
    }
    if there.is_empty() { e.hint("there are no columns at all") } else { e.hint(format!("columns there: {}", there.join(", "))) }
}

fn form(text: &Text) -> &'static str {
    match text {
        Text::Plain(_) => "plain text",
        Text::Messages(_) => "a list of messages",
    }
}

fn text(column: &str, value: Value) -> Result<Text> {
    match value {
        Value::String(text) => Ok(Text::Plain(text)),
        Value::Array(items) if items.is_empty() => Err(Error::new(format!("`{column}` is an empty list of messages"))),
        Value::Array(items) => {
            let messages = items.into_iter().enumerate().map(|(i, item)| message(item).within(|| format!("message {} of `{column}` is not right", i + 1)));
            Ok(Text::Messages(messages.collect::<Result<_>>()?))
        }
        other => Err(Error::new(format!("`{column}` is {}, not text", kind(&other))).hint("a text is a string, or a list of {role, content}")),
    }
}

fn message(value: Value) -> Result<Message> {
    let Value::Object(mut fields) = value else {
        return Err(Error::new(format!("it is {}, not an object with `role` and `content`", kind(&value))));
    };
    let mut take = |name: &str| match fields.remove(name) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(Error::new(format!("`{name}` is {}, not text", kind(&other)))),
        None => Err(Error::new(format!("there is no `{name}`"))),
    };
    Ok(Message { role: take("role")?, content: take("content")? })
}

/// What a value is, for a sentence.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use reprpo_plugin::serde_json::json;

    use super::*;

    fn row(value: Value) -> Row {
        match value {
            Value::Object(row) => row,
            other => panic!("{other} is no row"),
        }
    }

    fn error(value: Value) -> String {
        format!("{:?}", pair(row(value)).unwrap_err())
    }

    #[test]
    fn other_columns_are_ignored() {
        let got = pair(row(json!({"id": 7, "prompt": "p", "chosen": "c", "rejected": "r"}))).unwrap();
        assert_eq!(got, PreferencePair { prompt: "p".into(), chosen: "c".into(), rejected: "r".into() });
    }

    #[test]
    fn messages_stay_messages() {
        let said = |role: &str, content: &str| json!([{"role": role, "content": content, "name": null}]);
        let got = pair(row(json!({"prompt": said("user", "p"), "chosen": said("assistant", "c"), "rejected": said("assistant", "r")}))).unwrap();
        assert_eq!(got.chosen, Text::Messages(vec![Message { role: "assistant".into(), content: "c".into() }]));
    }

    #[test]
    fn a_missing_column_brings_the_nearest_and_all_that_are_there() {
        assert_eq!(
            error(json!({"prompt": "p", "choosen": "c", "rejected": "r"})),
            "there is no column `chosen`\n  hint: should `choosen` be called `chosen`?\n  hint: columns there: prompt, choosen, rejected"
        );
    }

    #[test]
    fn a_column_that_is_present_is_no_guess_for_one_that_is_not() {
        assert_eq!(error(json!({"prompt": "p", "chosen": "c"})), "there is no column `rejected`\n  hint: columns there: prompt, chosen");
    }

    #[test]
    fn what_is_not_text_is_named() {
        assert!(error(json!({"prompt": "p", "chosen": 3, "rejected": "r"})).starts_with("`chosen` is a number, not text"));
        assert!(error(json!({"prompt": "p", "chosen": null, "rejected": "r"})).starts_with("`chosen` is null, not text"));
        assert!(error(json!({"prompt": [], "chosen": "c", "rejected": "r"})).starts_with("`prompt` is an empty list"));
        assert_eq!(
            error(json!({"prompt": [{"role": "user"}], "chosen": "c", "rejected": "r"})),
            "message 1 of `prompt` is not right\n  because there is no `content`"
        );
    }

    #[test]
    fn plain_text_and_messages_do_not_mix_in_a_row() {
        let said = json!([{"role": "assistant", "content": "c"}]);
        assert!(error(json!({"prompt": "p", "chosen": "c", "rejected": said})).starts_with("`prompt` is plain text, but `rejected` is a list of messages"));
    }
}
