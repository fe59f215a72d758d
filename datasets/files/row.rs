//! Converts rows to pairs. All file formats use the same column rules.

use reprpo_plugin::error::{nearest, quoted};
use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::Value;

pub use super::flaws::Row;
use super::{answers, implicit, sharegpt};

/// Names of the columns of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Column of the prompt; `None` if the prompt is the common prefix of both completions.
    pub prompt: Option<String>,
    /// Column of the chosen completion.
    pub chosen: String,
    /// Column of the rejected completion.
    pub rejected: String,
    /// Column that names the cluster of a pair. If it is `None`, this is the column `example_id`
    /// if it exists; otherwise, the pairs with the same prompt form a cluster.
    pub cluster: Option<String>,
}

const PROMPT: &str = "prompt";

impl Default for Columns {
    fn default() -> Self {
        Self {
            prompt: Some(PROMPT.to_owned()),
            chosen: "chosen".to_owned(),
            rejected: "rejected".to_owned(),
            cluster: None,
        }
    }
}

impl Columns {
    /// Returns the names of the columns. If there is no prompt column, these are chosen and
    /// rejected.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.prompt.as_deref().into_iter().chain([self.chosen.as_str(), self.rejected.as_str()])
    }

    /// Checks that the columns exist. `there` contains the names of all columns in the file.
    /// Returns the name of the prompt column, or `None` if the prompt is the common prefix of both
    /// completions.
    ///
    /// # Errors
    /// Fails if the chosen or rejected column is missing. A missing prompt column is an error if
    /// the user set its name, or if another column probably contains the prompt. In these cases,
    /// the common prefix of the completions is probably not the prompt.
    pub fn find<'a>(&self, there: impl IntoIterator<Item = &'a str>) -> Result<Option<&str>> {
        let there: Vec<&str> = there.into_iter().collect();
        for name in [&self.chosen, &self.rejected] {
            if !there.contains(&name.as_str()) {
                return Err(self.missing(name, &there));
            }
        }
        let Some(name) = self.prompt.as_deref() else { return Ok(None) };
        if there.contains(&name) {
            return Ok(Some(name));
        }
        let spare = || there.iter().filter(|n| **n != self.chosen && **n != self.rejected);
        let like = spare().any(|n| PROMPTS.contains(&n.to_lowercase().as_str()));
        let near = nearest(name, &spare().map(|n| (*n).to_owned()).collect::<Vec<_>>()).is_some();
        if name != PROMPT || like || near { Err(self.missing(name, &there)) } else { Ok(None) }
    }

    fn missing(&self, column: &str, there: &[&str]) -> Error {
        let spare: Vec<String> = there
            .iter()
            .filter(|name| !self.names().any(|n| n == **name))
            .map(|n| (*n).to_owned())
            .collect();
        let role = if column == self.chosen {
            "chosen"
        } else if column == self.rejected {
            "rejected"
        } else {
            PROMPT
        };
        let like =
            spare.iter().find(|n| role == PROMPT && PROMPTS.contains(&n.to_lowercase().as_str()));
        let mut e = Error::new(format!("there is no column `{column}`"));
        if let Some(near) = nearest(column, &spare).or(like.map(String::as_str)) {
            e = e.hint(format!(
                "did you mean `{near}`? set it with `--columns {}`",
                quoted(format!("{role}={near}"))
            ));
        }
        if role == PROMPT {
            e = e.hint(format!(
                "use `--columns {PROMPT}=none` if the prompt is the common prefix of `{}` and \
                `{}`",
                self.chosen, self.rejected
            ));
        }
        if there.is_empty() {
            e.hint("no columns were found")
        } else {
            e.hint(format!("existing columns: {}", there.join(", ")))
        }
    }
}

/// Names that other data sets use for the prompt column.
const PROMPTS: [&str; 8] =
    ["instruction", "question", "query", "input", "prompts", "context", "problem", "user"];

/// Returns the pairs in a row. In GENIES' format, there is one pair for each worse response. If a
/// column is a list of answers, there is one pair for each chosen and rejected answer. In all other
/// formats, there is exactly one pair. Unrelated columns are ignored.
///
/// # Errors
/// Fails if a column is missing, if a column is neither text nor a list of messages, if the columns
/// have different types, or if there is no prompt column and the completions have no common prefix.
pub fn pairs(row: Row, columns: &Columns) -> Result<Vec<PreferencePair>> {
    row.check(columns)?;
    let cluster = columns.cluster_of(&row)?;
    let mut pairs = match answers::rows(&row, columns)? {
        None => without_cluster(row, columns)?,
        Some(rows) => {
            let each = rows.into_iter().map(|row| without_cluster(row, columns));
            each.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect()
        }
    };
    pairs.iter_mut().for_each(|pair| pair.cluster.clone_from(&cluster));
    Ok(pairs)
}

fn without_cluster(mut row: Row, columns: &Columns) -> Result<Vec<PreferencePair>> {
    sharegpt::convert(&mut row, columns)?;
    refuse_other_modalities(&row, columns)?;
    if !row.contains_key(&columns.chosen)
        && let Some(Value::Object(_)) = row.get(RESPONSES)
    {
        return scored(row, columns);
    }
    let prompt = columns.find(row.keys().map(String::as_str))?.map(str::to_owned);
    let args = TemplateArgs::COLUMNS.map(|column| row.remove(column).unwrap_or_default());
    let mut take = |column: &str| text(column, row.remove(column).unwrap_or_default());
    let prompt = prompt.map(|column| take(&column)).transpose()?;
    let (chosen, rejected) = (take(&columns.chosen)?, take(&columns.rejected)?);
    if form(&chosen) != form(&rejected) {
        return Err(Error::new(format!(
            "`{}` is {}, but `{}` is {}",
            columns.chosen,
            form(&chosen),
            columns.rejected,
            form(&rejected)
        ))
        .hint("make both plain text, or both lists of {role, content}"));
    }
    let pair = match prompt {
        Some(prompt) if form(&prompt) == form(&chosen) => {
            PreferencePair::new(prompt, chosen, rejected)
        }
        // If the prompt is a conversation, a plain-text completion is one assistant turn.
        Some(prompt @ Text::Messages(_)) => {
            PreferencePair::new(prompt, turn(chosen), turn(rejected))
        }
        // The prompt is plain text, but the completions are conversations. The first messages of
        // the completions already contain the prompt, so ignore the prompt column.
        other => implicit::extract(&chosen, &rejected).ok_or_else(|| match other {
            Some(prompt) => Error::new(format!(
                "`{}` is {}, but `{}` is {} and has no common prefix with `{}`",
                columns.prompt.as_deref().unwrap_or(PROMPT),
                form(&prompt),
                columns.chosen,
                form(&chosen),
                columns.rejected
            ))
            .hint("make all three plain text, or all three lists of {role, content}"),
            None => Error::new(format!(
                "there is no prompt: `{}` and `{}` have no common prefix",
                columns.chosen, columns.rejected
            ))
            .hint("set the prompt column with `--columns prompt=NAME`"),
        })?,
    };
    // The template columns only apply to conversations. They are ignored for plain text, as in TRL.
    let [tools, kwargs] = args;
    let args = if matches!(pair.prompt, Text::Messages(_)) {
        TemplateArgs::new(tools, kwargs)?
    } else {
        TemplateArgs::default()
    };
    Ok(vec![pair.with_template_args(args)])
}

/// Checks that the row does not contain images, audio or video outside the pair's columns.
fn refuse_other_modalities(row: &Row, columns: &Columns) -> Result<()> {
    let others =
        row.iter().filter(|(name, _)| !columns.names().any(|column| column == name.as_str()));
    Message::check_text_only(others.map(|(name, value)| (name.as_str(), value)))
        .within(|| "the row is not a text-only pair".to_owned())
}

/// Converts plain text to one assistant message. Returns messages unchanged.
fn turn(text: Text) -> Text {
    match text {
        Text::Plain(text) => vec![Message::new("assistant", text)].into(),
        messages => messages,
    }
}

/// Column of the scored responses in GENIES' format: `{"prompt": "…", "responses": {"a good
/// response": 1, "a worse response": 0, …}}`.
pub const RESPONSES: &str = "responses";

fn scored(mut row: Row, columns: &Columns) -> Result<Vec<PreferencePair>> {
    let Some(Value::Object(responses)) = row.remove(RESPONSES) else { return Ok(Vec::new()) };
    let column = columns.prompt.as_deref().unwrap_or(PROMPT);
    let Some(prompt) = row.remove(column) else {
        return Err(columns.missing(column, &row.keys().map(String::as_str).collect::<Vec<_>>()));
    };
    let prompt = text(column, prompt)?;
    if let Text::Messages(_) = prompt {
        return Err(Error::new(format!(
            "`{column}` is a list of messages, but `{RESPONSES}` contains plain text"
        ))
        .hint("use the columns `prompt`, `chosen` and `rejected` instead"));
    }
    let of = |score: f64| {
        responses
            .iter()
            .filter(move |(_, s)| s.as_f64() == Some(score))
            .map(|(response, _)| response.as_str())
    };
    let best: Vec<&str> = of(1.0).collect();
    let &[chosen] = best.as_slice() else {
        return Err(Error::new(format!(
            "exactly one response must have the score 1, got {}",
            best.len()
        ))
        .hint("set the score of the best response to 1, and of the worse ones to 0"));
    };
    let pairs: Vec<PreferencePair> =
        of(0.0).map(|rejected| PreferencePair::new(prompt.clone(), chosen, rejected)).collect();
    if pairs.is_empty() {
        return Err(Error::new("at least one response must have the score 0")
            .hint("set the score of the best response to 1, and of the worse ones to 0"));
    }
    Ok(pairs)
}

/// Returns "plain text" or "a list of messages", for error messages.
pub fn form(text: &Text) -> &'static str {
    match text {
        Text::Plain(_) => "plain text",
        Text::Messages(_) => "a list of messages",
    }
}

fn text(column: &str, value: Value) -> Result<Text> {
    match value {
        Value::String(text) => Ok(Text::Plain(text)),
        Value::Array(items) if items.is_empty() => {
            Err(Error::new(format!("`{column}` is an empty list of messages")))
        }
        Value::Array(items) => {
            let messages = items.into_iter().enumerate().map(|(i, item)| {
                message(item).within(|| format!("message {} of `{column}` is invalid", i + 1))
            });
            Ok(Text::Messages(messages.collect::<Result<_>>()?))
        }
        other => Err(Error::new(format!("`{column}` is {}, not text", json_kind(&other)))
            .hint("write it as a string, or as a list of {role, content}")),
    }
}

fn message(value: Value) -> Result<Message> {
    let Value::Object(fields) = value else {
        return Err(Error::new(format!(
            "the message is {}, not an object with `role` and `content`",
            json_kind(&value)
        )));
    };
    Message::from_fields(fields)
}

#[cfg(test)]
mod tests {
    use reprpo_plugin::serde_json::json;

    use super::*;

    fn row(value: Value) -> Row {
        match value {
            Value::Object(row) => row.into_iter().collect(),
            other => panic!("{other} is not a row"),
        }
    }

    fn pair(value: Value) -> Result<PreferencePair> {
        let mut all = pairs(row(value), &Columns::default())?;
        assert_eq!(all.len(), 1);
        Ok(all.remove(0))
    }

    fn error(value: Value) -> String {
        format!("{:?}", pairs(row(value), &Columns::default()).unwrap_err())
    }

    fn messages(turns: &[(&str, &str)]) -> Value {
        turns
            .iter()
            .map(|(role, content)| json!({"role": role, "content": content, "name": null}))
            .collect()
    }

    fn plain(prompt: &str, chosen: &str, rejected: &str) -> PreferencePair {
        PreferencePair::new(prompt, chosen, rejected)
    }

    #[test]
    fn other_columns_are_ignored() {
        assert_eq!(
            pair(json!({"id": 7, "prompt": "p", "chosen": "c", "rejected": "r"})).unwrap(),
            plain("p", "c", "r")
        );
    }

    #[test]
    fn messages_stay_messages() {
        let got =
            pair(json!({"prompt": messages(&[("user", "p")]), "chosen": messages(&[("assistant",
            "c")]), "rejected": messages(&[("assistant", "r")])}))
            .unwrap();
        assert_eq!(got.chosen, Text::Messages(vec![Message::new("assistant", "c")]));
    }

    #[test]
    fn columns_can_have_other_names() {
        let columns = Columns {
            prompt: Some("question".into()),
            chosen: "best".into(),
            rejected: "worst".into(),
            cluster: None,
        };
        let got = pairs(
            row(json!({"question": "p", "best": "c", "worst": "r", "prompt": "another"})),
            &columns,
        )
        .unwrap();
        assert_eq!(got, [plain("p", "c", "r")]);
        let e = format!(
            "{:?}",
            pairs(row(json!({"prompt": "p", "best": "c", "worst": "r"})), &columns).unwrap_err()
        );
        assert!(e.starts_with("there is no column `question`\n"), "{e}");
    }

    #[test]
    fn a_prompt_without_a_column_is_the_common_beginning_of_both_completions() {
        assert_eq!(
            pair(json!({"chosen": "Sky? Blue", "rejected": "Sky? Green", "score": 3})).unwrap(),
            plain("Sky?", " Blue", " Green")
        );
        let (asked, c, r) = (("user", "Sky?"), ("assistant", "Blue"), ("assistant", "Green"));
        let want = pair(json!({"prompt": messages(&[asked]), "chosen": messages(&[c]),
                "rejected": messages(&[r])}))
        .unwrap();
        assert_eq!(
            pair(json!({"chosen": messages(&[asked, c]), "rejected": messages(&[asked, r])}))
                .unwrap(),
            want
        );
        // The completions of HuggingFaceH4/ultrafeedback_binarized contain the prompt. A plain-text
        // column repeats the prompt.
        assert_eq!(
            pair(json!({"prompt": "Sky?", "chosen": messages(&[asked, c]),
            "rejected": messages(&[asked, r])}))
            .unwrap(),
            want
        );
        let none = Columns { prompt: None, ..Columns::default() };
        let got = pairs(
            row(json!({"prompt": "x", "question": "x", "chosen": "Sky? Blue",
            "rejected": "Sky? Green"})),
            &none,
        )
        .unwrap();
        assert_eq!(got, [plain("Sky?", " Blue", " Green")]);
    }

    #[test]
    fn a_column_that_could_be_the_prompt_is_an_error() {
        assert_eq!(
            error(json!({"question": "Sky?", "chosen": "It is blue", "rejected": "It is green"})),
            "there is no column `prompt`\n  hint: did you mean `question`? set it with `--columns \
                prompt=question`\n  hint: use `--columns prompt=none` if the prompt is the common \
                prefix of `chosen` and `rejected`\n  hint: existing columns: question, chosen, \
                rejected"
        );
        assert!(
            error(json!({"promt": "Sky?", "chosen": "It is blue", "rejected": "It is green"}))
                .contains("did you mean `promt`?")
        );
        assert!(
            error(json!({"chosen": "blue", "rejected": "green"}))
                .starts_with("there is no prompt: `chosen` and `rejected` have no common prefix\n")
        );
    }

    #[test]
    fn a_row_of_genies_has_a_pair_for_each_worse_response() {
        let columns = Columns::default();
        let got = pairs(
            row(json!({"prompt": "p", "responses": {"b": 0, "a": 1, "c": 0.0, "d": 0.5},
            "kind": "x"})),
            &columns,
        )
        .unwrap();
        assert_eq!(got, [plain("p", "a", "b"), plain("p", "a", "c")]);
        assert!(
            error(json!({"prompt": "p", "responses": {"b": 1, "a": 1}}))
                .starts_with("exactly one response must have the score 1, got 2\n")
        );
        assert!(
            error(json!({"prompt": "p", "responses": {"a": 1}}))
                .starts_with("at least one response must have the score 0\n")
        );
        assert!(
            error(json!({"responses": {"a": 1, "b": 0}}))
                .starts_with("there is no column `prompt`\n")
        );
        let asked =
            error(json!({"prompt": messages(&[("user", "p")]), "responses": {"a": 1, "b": 0}}));
        assert!(
            asked.starts_with(
                "`prompt` is a list of messages, but `responses` contains plain text\n"
            ),
            "{asked}"
        );
    }

    #[test]
    fn the_error_for_a_missing_column_names_the_nearest_one_and_all_others() {
        assert_eq!(
            error(json!({"prompt": "p", "choosen": "c", "rejected": "r"})),
            "there is no column `chosen`\n  hint: did you mean `choosen`? set it with `--columns \
                chosen=choosen`\n  hint: existing columns: prompt, choosen, rejected"
        );
    }

    #[test]
    fn another_column_of_the_pair_is_not_suggested_for_a_missing_one() {
        assert_eq!(
            error(json!({"prompt": "p", "chosen": "c"})),
            "there is no column `rejected`\n  hint: existing columns: prompt, chosen"
        );
    }

    #[test]
    fn the_error_names_a_column_that_is_not_text() {
        assert!(
            error(json!({"prompt": "p", "chosen": 3, "rejected": "r"}))
                .starts_with("`chosen` is a number, not text")
        );
        assert!(
            error(json!({"prompt": "p", "chosen": null, "rejected": "r"}))
                .starts_with("`chosen` is null, not text")
        );
        assert!(
            error(json!({"prompt": [], "chosen": "c", "rejected": "r"}))
                .starts_with("`prompt` is an empty list")
        );
        assert_eq!(
            error(json!({"prompt": [{"role": "user"}], "chosen": "c", "rejected": "r"})),
            "message 1 of `prompt` is invalid\n  because there is no `content`"
        );
    }

    #[test]
    fn every_field_of_a_message_is_kept() {
        let call = |city: &str| {
            json!([{"role": "assistant", "content": "",
            "tool_calls": [{"function": {"name": "f", "arguments": {"city": city}}}]}])
        };
        let ask = messages(&[("user", "Oslo?")]);
        let got =
            pair(json!({"prompt": ask, "chosen": call("Oslo"), "rejected": call("Rome")})).unwrap();
        assert_ne!(got.chosen, got.rejected);
        // The implicit prompt ends before the first message that differs in any field.
        let turns = |first: &Value, last: &Value| {
            Value::from(
                [first.as_array().unwrap().clone(), last.as_array().unwrap().clone()].concat(),
            )
        };
        let taken = pair(
            json!({"chosen": turns(&ask, &call("Oslo")), "rejected": turns(&ask, &call("Rome"))}),
        )
        .unwrap();
        assert_eq!(taken, got);
        let silent = json!([{"role": "assistant", "content": null,
            "tool_calls": [{"function": {"name": "f"}}]}]);
        assert!(
            pair(json!({"prompt": ask, "chosen": silent, "rejected": call("Rome")})).is_ok(),
            "a message with a tool call can have null as its content"
        );
    }

    #[test]
    fn tools_and_template_variables_are_read_for_conversations() {
        let tools = json!([{"type": "function", "function": {"name": "f"}}]);
        let row = |tools: Value, kwargs: Value| {
            let (p, c, r) = (
                messages(&[("user", "p")]),
                messages(&[("assistant", "c")]),
                messages(&[("assistant", "r")]),
            );
            json!({"prompt": p, "chosen": c, "rejected": r, "tools": tools,
                "chat_template_kwargs": kwargs})
        };
        let got = pair(row(tools.clone(), json!({"enable_thinking": false}))).unwrap();
        assert_eq!(
            got.template_args,
            TemplateArgs::new(tools.clone(), json!({"enable_thinking": false})).unwrap()
        );
        assert_eq!(
            pair(row(tools.to_string().into(), Value::Null)).unwrap(),
            pair(row(tools.clone(), Value::Null)).unwrap()
        );
        assert_ne!(
            pair(row(tools.clone(), Value::Null)).unwrap(),
            pair(row(Value::Null, Value::Null)).unwrap()
        );
        assert_eq!(error(row(json!({"f": 1}), Value::Null)), "`tools` is an object, not a list");
        assert!(
            error(row(Value::Null, json!({"add_generation_prompt": true})))
                .starts_with("`chat_template_kwargs` sets `add_generation_prompt`")
        );
        let plain = json!({"prompt": "p", "chosen": "c", "rejected": "r", "tools": tools});
        assert!(
            pair(plain).unwrap().template_args.is_empty(),
            "plain text does not use a template"
        );
    }

    #[test]
    fn completions_of_plain_text_in_a_conversation_are_assistant_turns() {
        let asked = messages(&[("user", "Deepest?")]);
        let got =
            pair(json!({"prompt": asked, "chosen": "Baikal", "rejected": "Balaton"})).unwrap();
        let want = json!({"prompt": asked, "chosen": messages(&[("assistant", "Baikal")]),
            "rejected": messages(&[("assistant", "Balaton")])});
        assert_eq!(got, pair(want).unwrap());
        assert!(
            error(
                json!({"prompt": asked, "chosen": "a", "rejected": messages(&[("assistant", "b")])})
            )
            .starts_with("`chosen` is plain text, but")
        );
    }

    #[test]
    fn the_error_names_a_column_of_another_modality() {
        for (column, value) in [
            ("images", json!(["cat.png"])),
            ("image", json!({"bytes": "x"})),
            ("audio", json!("a.wav")),
            ("videos", json!([[1]])),
        ] {
            let e = error(json!({"prompt": "p", "chosen": "c", "rejected": "r", column: value}));
            assert!(e.contains(&format!("`{column}` contains something other than text")), "{e}");
        }
        for nothing in [json!(null), json!([]), json!("")] {
            assert!(
                pair(json!({"prompt": "p", "chosen": "c", "rejected": "r", "images": nothing}))
                    .is_ok()
            );
        }
        let scored =
            error(json!({"prompt": "p", "responses": {"b": 0, "a": 1}, "images": ["cat.png"]}));
        assert!(scored.contains("`images` contains something other than text"), "{scored}");
        let part = json!([{"role": "user", "content": [{"type": "image"}, {"type": "text",
            "text": "What?"}]}]);
        let e = error(json!({"prompt": part, "chosen": "c", "rejected": "r"}));
        assert!(
            e.contains("message 1 of `prompt`")
                && e.contains("part 1 of `content`")
                && e.contains("`image` contains"),
            "{e}"
        );
        let text = json!([{"role": "user", "content": [{"type": "text", "text": "Who "},
            {"type": "text", "text": "is it?"}]}]);
        let Text::Messages(read) =
            pair(json!({"prompt": text, "chosen": "c", "rejected": "r"})).unwrap().prompt
        else {
            panic!("plain")
        };
        assert_eq!(
            (read[0].text(), read[0].parts().map(<[_]>::len)),
            ("Who is it?".into(), Some(2))
        );
        let columns = Columns { prompt: Some("image".into()), ..Columns::default() };
        assert!(
            pairs(row(json!({"image": "described", "chosen": "c", "rejected": "r"})), &columns)
                .is_ok(),
            "a column of the pair can be called `image`"
        );
    }

    #[test]
    fn plain_text_and_messages_do_not_mix_in_a_row() {
        let c = messages(&[("assistant", "c")]);
        assert!(
            error(json!({"prompt": "p", "chosen": "c", "rejected": c}))
                .starts_with("`chosen` is plain text, but `rejected` is a list of messages\n")
        );
        let r = messages(&[("assistant", "r")]);
        let e = error(json!({"prompt": "p", "chosen": c, "rejected": r}));
        assert!(
            e.starts_with(
                "`prompt` is plain text, but `chosen` is a list of messages and has no common \
                prefix with `rejected`\n"
            ),
            "{e}"
        );
    }
}
