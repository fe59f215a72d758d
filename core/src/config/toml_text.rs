//! Writes an experiment as TOML text, optionally with the origin of each value.

use serde_json::Value;

use super::Origins;

/// Writes `experiment` as TOML: first all top-level values, then the sections. A value with an
/// entry in `origins` is followed by a comment that names its origin.
pub(super) fn write(experiment: &Value, origins: &Origins) -> String {
    let Some(root) = experiment.as_object() else { return String::new() };
    let mut text = String::new();
    let top: Vec<_> = root.iter().filter(|(_, v)| !v.is_object()).collect();
    lines(&mut text, "", &top, origins);
    for (section, value) in root {
        if let Some(map) = value.as_object() {
            text.push_str(&format!("\n[{section}]\n"));
            lines(&mut text, &format!("{section}."), &map.iter().collect::<Vec<_>>(), origins);
        }
    }
    text
}

fn lines(text: &mut String, prefix: &str, values: &[(&String, &Value)], origins: &Origins) {
    let written: Vec<String> = values
        .iter()
        .map(|(key, value)| format!("{} = {}", self::key(key), self::value(value)))
        .collect();
    // Align the comments, but ignore very long values, which would push all comments off the
    // screen.
    let width = written.iter().map(|w| w.chars().count()).filter(|w| *w <= 48).max().unwrap_or(0);
    for ((key, _), line) in values.iter().zip(written) {
        match origins.get(&format!("{prefix}{key}")) {
            Some(origin) => text.push_str(&format!("{line:<width$}  # {origin}\n")),
            None => text.push_str(&format!("{line}\n")),
        }
    }
}

fn key(key: &str) -> String {
    let bare =
        !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare { key.to_owned() } else { toml::Value::String(key.to_owned()).to_string() }
}

fn value(value: &Value) -> String {
    match value {
        Value::Null => "\"none\"".to_owned(),
        Value::Bool(b) => b.to_string(),
        // serde_json writes large numbers such as `1e300` without a decimal point. This is valid
        // TOML. JSON numbers are never infinite.
        Value::Number(n) => n.to_string(),
        Value::String(s) => toml::Value::String(s.clone()).to_string(),
        Value::Array(list) => format!(
            "[{}]",
            list.iter().filter(|v| !v.is_null()).map(self::value).collect::<Vec<_>>().join(", ")
        ),
        Value::Object(map) => {
            let inner: Vec<String> = map
                .iter()
                .filter(|(_, v)| !v.is_null())
                .map(|(k, v)| format!("{} = {}", key(k), self::value(v)))
                .collect();
            if inner.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", inner.join(", ")) }
        }
    }
}
