//! Reads the `configs` field in a data set's README. The field assigns files to splits. The hub's
//! API returns the field as JSON, but a cache that another tool has filled only contains the
//! README.

use std::borrow::Cow;

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

const CONFIGS: &str = "configs";
/// Maximum nesting depth of the value of `configs`. Actual data sets use four levels.
const MAX_DEPTH: usize = 16;
/// Maximum number of YAML events in `configs`. A data set with a thousand configurations needs
/// about a tenth of this.
const MAX_EVENTS: usize = 100_000;

/// Parses the `configs` field of a README. Returns `{"configs": […]}`, or null if the front matter
/// does not contain the field.
///
/// # Errors
/// Fails if the field is not valid YAML, uses an alias, is nested too deeply, or is too long.
pub(super) fn of_readme(text: &str) -> Result<Value> {
    let Some(field) = front_matter(text).and_then(|lines| field(&lines)) else {
        return Ok(Value::Null);
    };
    parse(&field)
}

/// Returns the lines between the first two `---`. Returns `None` if the text does not begin with
/// `---`, or if the second `---` is missing.
fn front_matter(text: &str) -> Option<Vec<&str>> {
    let mut lines = text.strip_prefix('\u{feff}').unwrap_or(text).lines();
    if lines.next()?.trim_end() != "---" {
        return None;
    }
    let mut found = Vec::new();
    for line in lines {
        if line.trim_end() == "---" {
            return Some(found);
        }
        found.push(line);
    }
    None
}

/// Returns the lines of the `configs` field. The rest of the front matter is not parsed, so syntax
/// errors there do not matter.
fn field(lines: &[&str]) -> Option<String> {
    let key = |line: &str| {
        line.strip_prefix(CONFIGS).is_some_and(|rest| rest.trim_start().starts_with(':'))
    };
    let start = lines.iter().position(|line| key(line))?;
    // In YAML, the items of a list may start in the same column as its key.
    let inner = |line: &&&str| line.is_empty() || line.starts_with([' ', '\t', '-', '#', ']', '}']);
    let rest = lines[start + 1..].iter().take_while(inner);
    Some(std::iter::once(&lines[start]).chain(rest).map(|line| format!("{line}\n")).collect())
}

/// A list or mapping that is not yet complete. The second field of `Table` is the key of the next
/// value. It is `None` if a key comes next.
enum Open {
    List(Vec<Value>),
    Table(Map<String, Value>, Option<String>),
}

impl Open {
    fn add(&mut self, value: Value) {
        match self {
            Open::List(items) => items.push(value),
            Open::Table(entries, key) => match key.take() {
                None => {
                    *key = Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
                }
                Some(key) => drop(entries.insert(key, value)),
            },
        }
    }
}

fn parse(text: &str) -> Result<Value> {
    let wrong = |why: &str| {
        Error::new(format!(
            "`{CONFIGS}` in the front matter of `README.md` cannot be parsed as YAML: {why}"
        ))
    };
    let mut open: Vec<Open> = Vec::new();
    let mut whole = Value::Null;
    for (count, event) in Parser::new_from_str(text).enumerate() {
        let (event, _) = event.map_err(|e| wrong(&e.to_string()))?;
        if count > MAX_EVENTS || open.len() > MAX_DEPTH {
            return Err(wrong("it is too long or too deeply nested"));
        }
        let value = match event {
            Event::Alias(_) => {
                return Err(wrong("it uses an alias").hint(
                    "replace the alias, which begins with `*`, with the value it refers to",
                ));
            }
            Event::Scalar(text, style, ..) => scalar(text, style),
            Event::SequenceStart(..) => {
                open.push(Open::List(Vec::new()));
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Open::Table(Map::new(), None));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(items)) => Value::Array(items),
                Some(Open::Table(entries, _)) => Value::Object(entries),
                None => continue,
            },
            _ => continue,
        };
        match open.last_mut() {
            Some(outer) => outer.add(value),
            None => whole = value,
        }
    }
    Ok(whole)
}

/// Converts a scalar. Numbers in `configs` stay strings, because they are names of configurations
/// or files.
fn scalar(text: Cow<'_, str>, style: ScalarStyle) -> Value {
    match (style, &*text) {
        (ScalarStyle::Plain, "true" | "True" | "TRUE") => Value::Bool(true),
        (ScalarStyle::Plain, "false" | "False" | "FALSE") => Value::Bool(false),
        (ScalarStyle::Plain, "" | "~" | "null" | "Null" | "NULL") => Value::Null,
        _ => Value::String(text.into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_field_is_parsed_as_on_the_hub() {
        let readme = "---\nlicense: mit\nconfigs:\n- config_name: prefs  # the good ones\n  \
            default: true\n  data_files:\n  - split: train\n    \
            path: \"prefs_v2.jsonl\"\n  - split: test\n    path:\n    - a-*.parquet\n    - \
            'it''s.parquet'\n- config_name: 2024\n  data_dir: raw\n\
            dataset_info:\n  features: *anywhere\ntags: [a, b]\n---\n# Text\n---\nconfigs: none\n";
        let want = json!({"configs": [
            {"config_name": "prefs", "default": true, "data_files": [
                {"split": "train", "path": "prefs_v2.jsonl"},
                {"split": "test", "path": ["a-*.parquet", "it's.parquet"]},
            ]},
            {"config_name": "2024", "data_dir": "raw"},
        ]});
        assert_eq!(of_readme(readme).unwrap(), want);
        assert_eq!(of_readme(&format!("\u{feff}{}", readme.replace('\n', "\r\n"))).unwrap(), want);
        let flow = "---\nconfigs: [{config_name: a, data_files: {train: 'x/*'}}]\n---\n";
        assert_eq!(
            of_readme(flow).unwrap(),
            json!({"configs": [{"config_name": "a", "data_files": {"train": "x/*"}}]})
        );
    }

    #[test]
    fn a_readme_without_the_field_has_no_card() {
        for text in [
            "",
            "# Title\n---\nconfigs:\n- a\n---\n",
            "---\nlicense: mit\n---\nconfigs: x\n",
            "---\nconfigs:\n- never ended\n",
        ] {
            assert_eq!(of_readme(text).unwrap(), Value::Null, "{text}");
        }
    }

    #[test]
    fn a_field_that_cannot_be_read_as_yaml_is_an_error() {
        for text in [
            "configs:\n- a: [1\n",
            "configs:\n- &a x\n- *a\n",
            &format!("configs: {}\n", "[".repeat(10_000)),
            "configs:\n  - a: b: c\n",
        ] {
            let e = of_readme(&format!("---\n{text}---\n")).unwrap_err();
            assert!(
                e.message().starts_with(
                    "`configs` in the front matter of `README.md` cannot be parsed as YAML: "
                ),
                "{e:?}"
            );
        }
    }
}
