//! The fields of a configuration section, read from its JSON schema. They are used to check names,
//! to convert text to values, and to print `reprpo explain`.

use serde::Serialize;
use serde_json::{Map, Value};

use super::flag::{FLAGS, Flag};
use super::value::{equal, parse, toml_numbers};
use crate::error::Result;
use crate::registry::About;

/// One value of an enumeration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Word {
    /// The value as written in a configuration.
    pub value: String,
    /// Documentation of the value; empty if there is none.
    pub describes: String,
}

/// One field of a configuration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Field {
    /// Name of the field.
    pub name: String,
    /// Human-readable type, e.g. `number` or `list of text`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The values of an enumeration; empty for other types.
    pub choices: Vec<Word>,
    /// True if the value `none` clears the field.
    pub optional: bool,
    /// Default value.
    pub default: Value,
    /// Documentation, including the unit.
    pub description: String,
    /// The fields of a table; empty for other types.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<Field>,
    /// True if the value is a path, i.e. if the schema has the format `path`.
    #[serde(skip)]
    pub path: bool,
    /// The command-line flags that the field declares.
    #[serde(skip)]
    pub(super) flags: Vec<Flag>,
    #[serde(skip)]
    text: bool,
    #[serde(skip)]
    types: Vec<String>,
    /// True if the value is a list whose order does not matter.
    #[serde(skip)]
    unordered: bool,
}

impl Field {
    /// Parses user input as a TOML value. Input that is not valid TOML becomes a string. If the
    /// field accepts text but not numbers, `10` becomes a string too. The same applies to all other
    /// types that the field does not accept.
    ///
    /// If the field is optional, `none` and `null` clear it.
    pub fn read(&self, text: &str) -> Value {
        if self.optional && matches!(text.trim(), "null" | "none") {
            return Value::Null;
        }
        let as_text = || Value::String(text.to_owned());
        match parse(text).or_else(|| parse(&toml_numbers(text)?)) {
            Some(Value::String(s)) => Value::String(s),
            Some(value) if self.takes(&value) || !self.text => value,
            _ => as_text(),
        }
    }

    /// Converts a value from a file. TOML has no null, so `"none"` and `"null"` mean null in an
    /// optional field.
    pub fn take(&self, value: Value) -> Value {
        match &value {
            Value::String(s) if self.optional && matches!(s.as_str(), "none" | "null") => {
                Value::Null
            }
            _ => value,
        }
    }

    /// True if the schema does not allow the type of `value`.
    pub fn refuses(&self, value: &Value) -> bool {
        !self.types.is_empty() && !self.takes(value)
    }

    /// True if two values of this field are equivalent. Numbers are compared by value. The order of
    /// a table does not matter, nor does the order of a list with `uniqueItems` in its schema.
    pub fn same(&self, a: &Value, b: &Value) -> bool {
        match (a, b) {
            (Value::Array(a), Value::Array(b)) if self.unordered => {
                let within =
                    |a: &[Value], b: &[Value]| a.iter().all(|x| b.iter().any(|y| equal(x, y)));
                within(a, b) && within(b, a)
            }
            _ => equal(a, b),
        }
    }

    /// True if the field accepts numbers but not text.
    pub(super) fn is_number(&self) -> bool {
        !self.text && self.types.iter().any(|t| t == "number" || t == "integer")
    }

    /// True if the field accepts a list but not text.
    pub(super) fn is_list(&self) -> bool {
        !self.text && self.types.iter().any(|t| t == "array")
    }

    fn takes(&self, value: &Value) -> bool {
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => return self.types.iter().any(|t| t == "number" || t == "integer"),
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        self.types.iter().any(|t| t == kind)
    }
}

/// The fields of `schema`, in the same order. Their default values come from `defaults`.
pub fn fields(schema: &Value, defaults: &Map<String, Value>) -> Vec<Field> {
    fields_of(schema, schema, defaults)
}

/// The fields of a plugin's configuration.
///
/// # Errors
/// Fails if the plugin's defaults are not a JSON object, or if its schema cannot be read.
pub fn plugin_fields(about: &About) -> Result<Vec<Field>> {
    Ok(fields(&about.schema()?, &about.defaults()?))
}

/// The fields of the schema `table`. References in `table` are relative to `root`.
fn fields_of(root: &Value, table: &Value, defaults: &Map<String, Value>) -> Vec<Field> {
    let none = Map::new();
    let properties = table.get("properties").and_then(Value::as_object).unwrap_or(&none);
    properties
        .iter()
        .map(|(name, property)| {
            field(root, name, property, defaults.get(name).cloned().unwrap_or(Value::Null))
        })
        .collect()
}

fn field(root: &Value, name: &str, property: &Value, default: Value) -> Field {
    let mut shape = Shape::default();
    shape.add(root, property, 0);
    shape.types.dedup();
    let optional = shape.types.iter().any(|t| t == "null");
    let mut words: Vec<String> = shape.words.iter().map(|w| w.value.clone()).collect();
    if words.is_empty() {
        words = shape.names;
    }
    words.dedup();
    let mut kind = words.join(" | ");
    if optional {
        kind.push_str(" | none");
    }
    let description = property
        .get("description")
        .and_then(Value::as_str)
        .unwrap_or(&shape.description)
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    let text = shape.types.iter().any(|t| t == "string") || shape.types.is_empty();
    let table = property
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|r| root.pointer(r.strip_prefix('#')?));
    let fields = match (&default, table) {
        (Value::Object(defaults), Some(table)) => fields_of(root, table, defaults),
        _ => Vec::new(),
    };
    let path = property.get("format").and_then(Value::as_str) == Some("path");
    let flags = property
        .get(FLAGS)
        .and_then(|flags| serde_json::from_value(flags.clone()).ok())
        .unwrap_or_default();
    let Shape { words: choices, types, unordered, .. } = shape;
    Field {
        name: name.to_owned(),
        path,
        flags,
        kind,
        choices,
        optional,
        default,
        description,
        fields,
        text,
        types,
        unordered,
    }
}

/// The types and values that a property allows, collected from its references and alternatives.
#[derive(Default)]
struct Shape {
    types: Vec<String>,
    names: Vec<String>,
    words: Vec<Word>,
    description: String,
    unordered: bool,
}

impl Shape {
    fn add(&mut self, root: &Value, schema: &Value, depth: usize) {
        // Limit the depth, because the schema of a recursive type refers to itself.
        if depth > 8 {
            return;
        }
        if let Some(target) = schema
            .get("$ref")
            .and_then(Value::as_str)
            .and_then(|r| root.pointer(r.trim_start_matches('#')))
        {
            self.add(root, target, depth + 1);
        }
        self.unordered |= schema.get("uniqueItems") == Some(&Value::Bool(true));
        let describes = schema.get("description").and_then(Value::as_str).unwrap_or_default();
        if self.description.is_empty() && depth > 0 {
            self.description = describes.to_owned();
        }
        if let Some(value) = schema.get("const").and_then(Value::as_str) {
            self.word(value, describes);
        } else if let Some(list) = schema.get("enum").and_then(Value::as_array) {
            list.iter().filter_map(Value::as_str).for_each(|v| self.word(v, ""));
        } else {
            match schema.get("type") {
                Some(Value::String(t)) => self.name(root, schema, t, depth),
                Some(Value::Array(list)) => list
                    .iter()
                    .filter_map(Value::as_str)
                    .for_each(|t| self.name(root, schema, t, depth)),
                _ => {}
            }
        }
        for key in ["anyOf", "oneOf", "allOf"] {
            for part in schema.get(key).and_then(Value::as_array).into_iter().flatten() {
                self.add(root, part, depth + 1);
            }
        }
    }

    fn word(&mut self, value: &str, describes: &str) {
        self.types.push("string".to_owned());
        self.words.push(Word {
            value: value.to_owned(),
            describes: describes.split_whitespace().collect::<Vec<_>>().join(" "),
        });
    }

    fn name(&mut self, root: &Value, schema: &Value, kind: &str, depth: usize) {
        self.types.push(kind.to_owned());
        let name = match kind {
            "null" => return,
            "number" => "number".to_owned(),
            "integer" => "whole number".to_owned(),
            "boolean" => "true | false".to_owned(),
            "string" => "text".to_owned(),
            "array" => {
                let mut items = Shape::default();
                items.add(root, schema.get("items").unwrap_or(&Value::Null), depth + 1);
                if items.names.is_empty() {
                    "list".to_owned()
                } else {
                    format!("list of {}", items.names.join(" | "))
                }
            }
            _ => "table".to_owned(),
        };
        self.names.push(name);
    }
}

#[cfg(test)]
mod tests {
    use schemars::JsonSchema;
    use serde_json::json;

    use super::*;

    #[derive(JsonSchema)]
    #[allow(dead_code)]
    enum Fall {
        /// Straight.
        #[serde(rename = "linear")]
        Linear,
        /// Round.
        #[serde(rename = "cosine")]
        Cosine,
    }

    #[derive(JsonSchema)]
    #[allow(dead_code)]
    struct Config {
        /// Strength, in nats.
        beta: f64,
        rank: Option<usize>,
        fall: Fall,
        layers: String,
        targets: Option<Vec<String>>,
        on: bool,
        #[schemars(extend("uniqueItems" = true))]
        blocks: Option<Vec<usize>>,
        grid: Vec<f64>,
    }

    fn of(name: &str) -> Field {
        let defaults = json!({ "beta": 0.1 });
        let all = fields(
            &schemars::schema_for!(Config).to_value(),
            defaults.as_object().expect("a table"),
        );
        all.into_iter().find(|f| f.name == name).expect(name)
    }

    #[test]
    fn types_of_a_schema_are_shown_in_words() {
        let kinds: Vec<String> = ["beta", "rank", "fall", "layers", "targets", "on"]
            .iter()
            .map(|n| of(n).kind)
            .collect();
        assert_eq!(
            kinds,
            [
                "number",
                "whole number | none",
                "linear | cosine",
                "text",
                "list of text | none",
                "true | false"
            ]
        );
        assert_eq!(of("beta").description, "Strength, in nats.");
        assert_eq!(of("beta").default, json!(0.1));
        assert_eq!(
            of("fall").choices[1],
            Word { value: "cosine".into(), describes: "Round.".into() }
        );
    }

    #[test]
    fn numbers_may_be_written_as_in_python() {
        let cases = [
            (".0001", json!(0.0001)),
            ("-.5", json!(-0.5)),
            ("+.5", json!(0.5)),
            ("1.", json!(1.0)),
            ("1.e-3", json!(0.001)),
            ("+1e-3", json!(0.001)),
            ("1E-4", json!(0.0001)),
            (".5e+2", json!(50.0)),
            ("1_000.", json!(1000.0)),
            ("007", json!(7)),
            ("00.5", json!(0.5)),
        ];
        for (text, want) in cases {
            assert_eq!(of("beta").read(text), want, "{text}");
            let python: f64 = text.replace('_', "").parse().unwrap();
            assert_eq!(of("beta").read(text).as_f64(), Some(python), "{text}");
        }
        assert_eq!(of("rank").read("+8"), json!(8));
        assert_eq!(of("grid").read("[.1, 1., -.5]"), json!([0.1, 1.0, -0.5]));
        assert_eq!(of("targets").read("[\".5\", 'a.']"), json!([".5", "a."]));
        for text in
            [".", "-", "+", "1e", "e5", "1..2", "1.2.3", "._5", "5_", "1__0", "--1", ".5x", "1.0.0"]
        {
            assert_eq!(of("beta").read(text), json!(text), "{text} is not a number");
        }
    }

    #[test]
    fn text_is_converted_to_the_type_of_the_field() {
        assert_eq!(of("beta").read("1e-3"), json!(0.001));
        assert_eq!(of("beta").read("abc"), json!("abc"));
        assert_eq!(of("rank").read("none"), Value::Null);
        assert_eq!(of("rank").read("null"), Value::Null);
        assert_eq!(of("layers").read("10"), json!("10"));
        assert_eq!(of("layers").read("0.3,0.6"), json!("0.3,0.6"));
        assert_eq!(of("layers").read("\"-1\""), json!("-1"));
        assert_eq!(of("layers").read("none"), json!("none"));
        assert_eq!(of("targets").read("[\"q_proj\"]"), json!(["q_proj"]));
        assert_eq!(of("on").read("false"), json!(false));
        assert_eq!(of("layers").read(".5"), json!(".5"), "text is not converted");
        assert_eq!(of("layers").read("a\nb = 2"), json!("a\nb = 2"));
    }

    #[test]
    fn equivalent_values_are_equal() {
        assert!(
            of("beta").same(&json!(32), &json!(32.0)) && !of("beta").same(&json!(32), &json!(31))
        );
        assert!(
            of("blocks").same(&json!([2, 0]), &json!([0, 2]))
                && !of("blocks").same(&json!([2]), &json!([0, 2]))
        );
        assert!(!of("targets").same(&json!(["a", "b"]), &json!(["b", "a"])));
        assert!(
            of("targets").same(&json!(null), &json!(null))
                && !of("targets").same(&json!(null), &json!([]))
        );
    }
}
