//! Rows with several answers: a column contains a list of completions instead of one completion.

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::Value;

use super::row::{Columns, Row};

/// Splits a row whose chosen or rejected column is a list of answers into one row for each chosen
/// and rejected answer, in order. Returns `None` if both columns contain a single completion.
///
/// An answer is text or a list of messages. A list of messages alone is a single completion.
///
/// # Errors
/// Fails if an answer is neither text nor a list, or if the answers of a column differ in type.
pub fn rows(row: &Row, columns: &Columns) -> Result<Option<Vec<Row>>> {
    let chosen = answers(row, &columns.chosen)?;
    let rejected = answers(row, &columns.rejected)?;
    if chosen.is_none() && rejected.is_none() {
        return Ok(None);
    }
    let of = |list: Option<Vec<Value>>, column: &str| {
        list.or_else(|| row.get(column).map(|one| vec![one.clone()])).unwrap_or_default()
    };
    let (chosen, rejected) = (of(chosen, &columns.chosen), of(rejected, &columns.rejected));
    if chosen.is_empty() || rejected.is_empty() {
        // The error about the missing column is the same as for a row with one pair.
        return Ok(None);
    }
    let with = |chosen: &Value, rejected: &Value| {
        let mut row = row.clone();
        row.insert(columns.chosen.clone(), chosen.clone());
        row.insert(columns.rejected.clone(), rejected.clone());
        row
    };
    Ok(Some(
        chosen
            .iter()
            .flat_map(|c| rejected.iter().map(move |r| (c, r)))
            .map(|(c, r)| with(c, r))
            .collect(),
    ))
}

/// The answers in a column; `None` if the column contains a single completion.
fn answers(row: &Row, column: &str) -> Result<Option<Vec<Value>>> {
    let Some(Value::Array(items)) = row.get(column) else { return Ok(None) };
    let is_answer = |item: &Value| item.is_string() || item.is_array();
    if !items.iter().any(is_answer) {
        return Ok(None);
    }
    let first = items[0].is_string();
    for (i, item) in items.iter().enumerate() {
        if !is_answer(item) || item.is_string() != first {
            return Err(Error::new(format!(
                "answer {} of `{column}` is {}, but answer 1 is {}",
                i + 1,
                json_kind(item),
                json_kind(&items[0])
            ))
            .hint("make all answers plain text, or all lists of {role, content}"));
        }
    }
    Ok(Some(items.clone()))
}

#[cfg(test)]
mod tests {
    use reprpo_plugin::serde_json::json;

    use super::super::pairs;
    use super::*;

    fn row(value: Value) -> Row {
        match value {
            Value::Object(row) => row.into_iter().collect(),
            other => panic!("{other} is not a row"),
        }
    }

    fn read(value: Value) -> Result<Vec<PreferencePair>> {
        pairs(row(value), &Columns::default())
    }

    fn texts(pairs: &[PreferencePair]) -> Vec<[Text; 2]> {
        pairs.iter().map(|pair| [pair.chosen.clone(), pair.rejected.clone()]).collect()
    }

    #[test]
    fn each_rejected_answer_is_a_pair() {
        let found =
            read(json!({"prompt": "p", "chosen": "c", "rejected": ["a", "b", "a"]})).unwrap();
        let expected = [["c", "a"], ["c", "b"], ["c", "a"]].map(|pair| pair.map(Text::from));
        assert_eq!(texts(&found), expected);
        assert!(found.iter().all(|pair| pair.prompt == Text::from("p")));
    }

    #[test]
    fn each_chosen_answer_is_paired_with_each_rejected_one() {
        let found =
            read(json!({"prompt": "p", "chosen": ["c", "d"], "rejected": ["a", "b"]})).unwrap();
        let expected = [["c", "a"], ["c", "b"], ["d", "a"], ["d", "b"]];
        assert_eq!(texts(&found), expected.map(|pair| pair.map(Text::from)));
    }

    #[test]
    fn an_answer_can_be_a_conversation() {
        let turn = |text: &str| json!([{"role": "assistant", "content": text}]);
        let asked = json!([{"role": "user", "content": "p"}]);
        let found =
            read(json!({"prompt": asked, "chosen": turn("c"), "rejected": [turn("a"), turn("b")]}))
                .unwrap();
        assert_eq!(found.len(), 2);
        // A list of messages is one completion.
        let one = read(json!({"prompt": asked, "chosen": turn("c"), "rejected": turn("a")}));
        assert_eq!(one.unwrap(), found[..1]);
    }

    #[test]
    fn answers_of_different_types_are_refused() {
        for rejected in [json!(["a", 1]), json!([["a"], "b"]), json!(["a", null])] {
            let e = read(json!({"prompt": "p", "chosen": "c", "rejected": rejected})).unwrap_err();
            assert!(e.to_string().contains("answer 2 of `rejected` is "), "{e}");
        }
        assert!(read(json!({"prompt": "p", "chosen": "c", "rejected": []})).is_err());
    }
}
