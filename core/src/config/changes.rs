//! The fields in which two experiments differ.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::value::equal;

/// Flattens an experiment to a map from paths such as `train.lr` to values. `include` selects the
/// paths.
pub(crate) fn flat(experiment: &Value, include: impl Fn(&str) -> bool) -> BTreeMap<String, Value> {
    let none = Map::new();
    let mut fields = BTreeMap::new();
    for (name, value) in experiment.as_object().unwrap_or(&none) {
        match value {
            Value::Object(section) => fields.extend(
                section.iter().map(|(field, value)| (format!("{name}.{field}"), value.clone())),
            ),
            value => {
                fields.insert(name.clone(), value.clone());
            }
        }
    }
    fields.retain(|path, _| include(path));
    fields
}

/// Returns the path and both values of each changed field. A missing field counts as null.
pub(crate) fn changed_fields(
    then: &BTreeMap<String, Value>,
    now: &BTreeMap<String, Value>,
) -> Vec<(String, Value, Value)> {
    let mut paths: Vec<&String> = then.keys().chain(now.keys()).collect();
    paths.sort();
    paths.dedup();
    let value = |fields: &BTreeMap<String, Value>, path: &String| {
        fields.get(path).cloned().unwrap_or(Value::Null)
    };
    let pairs = paths.into_iter().map(|path| (path.clone(), value(then, path), value(now, path)));
    pairs.filter(|(_, then, now)| !equal(then, now)).collect()
}

/// Formats a value for messages.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => format!("`{text}`"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_compared_by_value() {
        let of = |text: &str| flat(&serde_json::from_str(text).unwrap(), |path| path != "out");
        let (a, b) = (
            of(r#"{"out": "x", "train": {"lr": 1.0, "betas": [0, 1]}}"#),
            of(r#"{"out": "y", "train": {"lr": 1, "betas": [0.0, 1]}}"#),
        );
        assert!(changed_fields(&a, &b).is_empty());
        let c = of(r#"{"train": {"lr": 2, "betas": [0, 1], "new": true}}"#);
        let changed: Vec<String> =
            changed_fields(&a, &c).into_iter().map(|(path, ..)| path).collect();
        assert_eq!(
            changed,
            ["train.lr", "train.new"],
            "a field that only one experiment has should be included"
        );
    }
}
