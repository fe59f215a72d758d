//! Converts text to values. The text can be TOML, or a number in Python's notation.

use serde_json::Value;

/// True if two values are equal. Numbers are compared by value, so 32 equals 32.0.
pub(crate) fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, a)| b.get(k).is_some_and(|b| equal(a, b)))
        }
        _ => a == b,
    }
}

/// Rewrites numbers that are valid in Python but not in TOML (`.5`, `5.`, `1.e-3`, `007`), except
/// inside quotes. Returns `None` if there are no such numbers.
pub(super) fn toml_numbers(text: &str) -> Option<String> {
    let mut written = String::with_capacity(text.len() + 8);
    let (mut rest, mut changed) = (text, false);
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' | '\'' => rest[1..].find(first).map_or(rest.len(), |at| at + 2),
            c if is_of_word(c) => rest.find(|c| !is_of_word(c)).unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        let (word, after) = rest.split_at(length);
        let number = toml_number(word);
        changed |= number.as_ref().is_some_and(|number| number != word);
        written.push_str(number.as_deref().unwrap_or(word));
        rest = after;
    }
    changed.then_some(written)
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || "+-._".contains(c)
}

/// Rewrites a decimal number from Python's notation to TOML's. Returns `None` if the text is not a
/// number.
fn toml_number(text: &str) -> Option<String> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let sign = if text.starts_with('-') { "-" } else { "" };
    let (mantissa, exponent) =
        unsigned.split_once(['e', 'E']).map_or((unsigned, None), |(m, e)| (m, Some(e)));
    let (whole, part) = mantissa.split_once('.').map_or((mantissa, None), |(w, p)| (w, Some(p)));
    // As in Python, `_` is only valid between two digits.
    let digits = |text: &str| {
        text.split('_').all(|run| !run.is_empty() && run.bytes().all(|b| b.is_ascii_digit()))
    };
    let fits = |text: &str| text.is_empty() || digits(text);
    let any = !whole.is_empty() || part.is_some_and(|part| !part.is_empty());
    let exponent_fits = exponent.is_none_or(|e| digits(e.strip_prefix(['+', '-']).unwrap_or(e)));
    if !any || !fits(whole) || !part.is_none_or(fits) || !exponent_fits {
        return None;
    }
    let whole = whole.replace('_', "");
    let trimmed = whole.trim_start_matches('0');
    let whole = if trimmed.is_empty() { "0" } else { trimmed };
    let part = part
        .map_or_else(String::new, |part| format!(".{}", if part.is_empty() { "0" } else { part }));
    let exponent = exponent.map_or_else(String::new, |e| format!("e{e}"));
    Some(format!("{sign}{whole}{part}{exponent}"))
}

/// Parses the right-hand side of a TOML assignment; `None` if it is not valid TOML.
pub(super) fn parse(text: &str) -> Option<Value> {
    let table: toml::Table =
        toml::from_str(&format!("value = {text}")).ok().filter(|t: &toml::Table| t.len() == 1)?;
    table.into_iter().next().map(|(_, v)| json(v))
}

/// Converts TOML to JSON. Dates, infinities and NaN become strings, because JSON has no syntax for
/// them.
pub(crate) fn json(value: toml::Value) -> Value {
    match value {
        toml::Value::String(s) => Value::String(s),
        toml::Value::Integer(i) => i.into(),
        toml::Value::Float(f) => serde_json::Number::from_f64(f)
            .map_or_else(|| Value::String(f.to_string()), Value::Number),
        toml::Value::Boolean(b) => b.into(),
        toml::Value::Datetime(d) => Value::String(d.to_string()),
        toml::Value::Array(list) => list.into_iter().map(json).collect(),
        toml::Value::Table(table) => {
            Value::Object(table.into_iter().map(|(k, v)| (k, json(v))).collect())
        }
    }
}
