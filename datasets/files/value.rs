//! Parses untrusted JSON. The number of values is limited, because a parsed value can take a
//! hundred times as much memory as its text.

use std::cell::{Cell, RefCell};
use std::fmt;

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use reprpo_plugin::serde_json::{self, Map, Value};

use super::flaws::{Flaw, LostValue, Row, Step};
use super::python;

/// Maximum number of JSON values in one row. This many values take about 40 MB of memory.
const MOST: usize = 500_000;

/// serde_json parses an integer of more than 64 bits as a rounded float. A float of at least this
/// absolute value may be such an integer.
const ROUNDED: f64 = i64::MAX as f64;

/// Parses JSON, including the non-standard values that Python's `json` module accepts: `NaN`,
/// `Infinity`, lone surrogates and integers of any length. The result contains replacements for
/// these values. Each original value is returned as a [`Flaw`] with its path.
///
/// # Errors
/// Fails if the text is not UTF-8 or not JSON, is nested too deeply, or has too many values.
fn parse(bytes: &[u8]) -> Result<(Value, Vec<Flaw>)> {
    let text = std::str::from_utf8(bytes).map_err(|e| not_utf8(e.valid_up_to()))?;
    let strict = Walk::of(&[]);
    match strict.read(text) {
        Ok(value) if !strict.rounded.get() => return Ok((value, Vec::new())),
        Err(_) if strict.left.get() == 0 => {}
        outcome => {
            let (standard, lost) = python::standard_json(text);
            if lost.is_empty() {
                return outcome.map(|value| (value, Vec::new())).map_err(|e| not_json(&e));
            }
            // `standard` has the same length as `text`, so byte positions in errors are correct.
            let walk = Walk::of(&lost);
            let outcome = walk.read(&standard);
            if walk.left.get() > 0 {
                return outcome
                    .map(|value| (value, walk.flaws.into_inner()))
                    .map_err(|e| not_json(&e));
            }
        }
    }
    Err(Error::new(format!("it has more than {MOST} values"))
        .hint(r#"a row is {"prompt": "…", "chosen": "…", "rejected": "…"}"#))
}

/// Returns the error for invalid JSON. Line numbers are relative to the start of the parsed text;
/// the caller adds the location of the text in the file.
fn not_json(e: &serde_json::Error) -> Error {
    let message = e.to_string();
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(head, _)| head);
    let line = if e.line() > 1 { format!(" of its line {}", e.line()) } else { String::new() };
    Error::new(format!("it is not JSON: {message}, at byte {}{line}", e.column()))
}

/// Parses one JSON text as a row.
///
/// # Errors
/// Fails for the same reasons as [`parse`], or if the text is not an object.
pub fn parse_row(bytes: &[u8]) -> Result<Row> {
    match parse(bytes)? {
        (Value::Object(cells), flaws) => Ok(Row::new(cells, flaws)),
        (other, _) => Err(not_a_row(&other)),
    }
}

/// Returns the error for a value that is not a row.
pub fn not_a_row(value: &Value) -> Error {
    Error::new(format!("it is {}, not an object", json_kind(value)))
        .hint(r#"a row is {"prompt": "…", "chosen": "…", "rejected": "…"}"#)
}

/// Returns the error for invalid UTF-8 after the first `valid` bytes.
pub fn not_utf8(valid: usize) -> Error {
    Error::new(format!("it is not UTF-8: byte {} is invalid", valid + 1))
        .hint("save the file as UTF-8")
}

/// Builds a value while counting its nested values and recording the paths of replaced values.
struct Walk<'a> {
    /// Remaining number of values before the limit is reached.
    left: Cell<usize>,
    /// Number of values and keys so far.
    count: Cell<usize>,
    /// Replaced values that have not been reached yet, each with the `count` at which it occurs.
    lost: Cell<&'a [(usize, LostValue)]>,
    /// True if any value was replaced.
    any_lost: bool,
    /// Path of the current value; only tracked if `any_lost` is true.
    path: RefCell<Vec<Step>>,
    flaws: RefCell<Vec<Flaw>>,
    /// True if serde_json may have rounded a number.
    rounded: Cell<bool>,
}

impl<'a> Walk<'a> {
    fn of(lost: &'a [(usize, LostValue)]) -> Self {
        Self {
            left: Cell::new(MOST),
            count: Cell::new(0),
            lost: Cell::new(lost),
            any_lost: !lost.is_empty(),
            path: RefCell::default(),
            flaws: RefCell::default(),
            rounded: Cell::new(false),
        }
    }

    fn read(&self, text: &str) -> Result<Value, serde_json::Error> {
        let mut json = serde_json::Deserializer::from_str(text);
        let value = self.deserialize(&mut json)?;
        json.end().map(|()| value)
    }

    /// Counts the next value or key. If it was replaced, returns the original.
    fn next(&self) -> Option<LostValue> {
        let count = self.count.get();
        self.count.set(count + 1);
        let lost = self.lost.get();
        let (_, value) = lost.first().filter(|(at, _)| *at == count)?;
        self.lost.set(&lost[1..]);
        Some(value.clone())
    }

    fn add_flaw(&self, value: LostValue) {
        self.flaws.borrow_mut().push(Flaw { path: self.path.borrow().clone(), value });
    }

    /// Calls `read` with `step` added to the current path.
    fn within<T>(&self, step: impl FnOnce() -> Step, read: impl FnOnce() -> T) -> T {
        if !self.any_lost {
            return read();
        }
        self.path.borrow_mut().push(step());
        let value = read();
        self.path.borrow_mut().pop();
        value
    }
}

impl<'de> DeserializeSeed<'de> for &Walk<'_> {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        self.left.set(self.left.get().saturating_sub(1));
        if self.left.get() == 0 {
            return Err(de::Error::custom("too many values"));
        }
        if let Some(lost) = self.next() {
            // Keep strings, because `python::standard_json` has already replaced lone surrogates in
            // them by U+FFFD. Replace numbers by null.
            let kept = matches!(lost, LostValue::Surrogate(_));
            self.add_flaw(lost);
            let value = from.deserialize_any(self)?;
            return Ok(if kept { value } else { Value::Null });
        }
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &Walk<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, x: bool) -> Result<Value, E> {
        Ok(x.into())
    }

    fn visit_i64<E>(self, x: i64) -> Result<Value, E> {
        Ok(x.into())
    }

    fn visit_u64<E>(self, x: u64) -> Result<Value, E> {
        Ok(x.into())
    }

    fn visit_f64<E>(self, x: f64) -> Result<Value, E> {
        if x.abs() >= ROUNDED {
            self.rounded.set(true);
        }
        Ok(x.into())
    }

    fn visit_str<E>(self, x: &str) -> Result<Value, E> {
        Ok(x.into())
    }

    fn visit_string<E>(self, x: String) -> Result<Value, E> {
        Ok(x.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(item) =
            self.within(|| Step::Index(all.len()), || items.next_element_seed(self))?
        {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let lost = self.next();
            if self.any_lost && all.contains_key(&key) {
                // If a key occurs several times, the last value wins. Remove the flaws that were
                // recorded for earlier values of this key.
                let mut path = self.path.borrow().clone();
                path.push(Step::Key(key.clone()));
                self.flaws.borrow_mut().retain(|flaw| !flaw.path.starts_with(&path));
            }
            let value = self.within(
                || Step::Key(key.clone()),
                || {
                    lost.into_iter().for_each(|value| self.add_flaw(value));
                    entries.next_value_seed(self)
                },
            )?;
            all.insert(key, value);
        }
        Ok(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_json_is_parsed_as_by_serde_json() {
        let text = r#"{"b": [1, -2, 2.5, true, null, "é\n"], "a": {}}"#;
        assert_eq!(
            parse(text.as_bytes()).unwrap(),
            (serde_json::from_str::<Value>(text).unwrap(), Vec::new())
        );
        assert!(parse(b"{} {}").unwrap_err().message().contains("trailing characters"));
    }

    #[test]
    fn a_row_of_millions_of_values_is_an_error() {
        let text = format!("[{}0]", "0,".repeat(2 * MOST));
        assert_eq!(parse(text.as_bytes()).unwrap_err().message(), "it has more than 500000 values");
    }

    #[test]
    fn deep_nesting_is_an_error_instead_of_a_stack_overflow() {
        assert!(
            parse("[".repeat(100_000).as_bytes())
                .unwrap_err()
                .message()
                .contains("recursion limit")
        );
    }

    /// Parses `text` and returns the path and original of each replaced value.
    fn flaws(text: &str) -> Vec<String> {
        let (_, flaws) = parse(text.as_bytes()).unwrap_or_else(|e| panic!("{text}: {e:?}"));
        flaws.iter().map(|flaw| format!("{:?} {}", flaw.path, flaw.value)).collect()
    }

    #[test]
    fn values_that_only_python_accepts_are_replaced_and_recorded() {
        let key = |key: &str| format!("Key({key:?})");
        for (text, path, value) in [
            (r#"{"a": NaN, "b": 1}"#, key("a"), "is NaN, which is neither text nor a JSON number"),
            (
                r#"{"a":[1,-Infinity]}"#,
                format!("{}, Index(1)", key("a")),
                "is -Infinity, which is neither text nor a JSON number",
            ),
            (
                r#"{"NaN": "NaN, \" Infinity", "b":Infinity}"#,
                key("b"),
                "is Infinity, which is neither text nor a JSON number",
            ),
            (
                r#"{"x": {"n": 1e400}}"#,
                format!("{}, {}", key("x"), key("n")),
                "is the number 1e400, which is too large",
            ),
            (
                r#"{"n": 18446744073709551616}"#,
                key("n"),
                "is the number 18446744073709551616, which is too large",
            ),
            (
                r#"{"n": -9223372036854775809}"#,
                key("n"),
                "is the number -9223372036854775809, which is too large",
            ),
            (
                r#"{"t": "ok \ud83d end"}"#,
                key("t"),
                r"contains the lone surrogate `\ud83d`, which is not a character",
            ),
            (
                r#"{"t": "\uDE00\ud83d\ude00"}"#,
                key("t"),
                r"contains the lone surrogate `\uDE00`, which is not a character",
            ),
            (
                r#"{"t": "\ud83d\ud83d\ude00"}"#,
                key("t"),
                r"contains the lone surrogate `\ud83d`, which is not a character",
            ),
            (
                r#"{"a": NaN, "b": 2, "a": [NaN]}"#,
                format!("{}, Index(0)", key("a")),
                "is NaN, which is neither text nor a JSON number",
            ),
            (
                r#"{"x\ud800": 1}"#,
                key("x\u{fffd}"),
                r"contains the lone surrogate `\ud800`, which is not a character",
            ),
        ] {
            assert_eq!(flaws(text), [format!("[{path}] {value}")], "{text}");
        }
        let long = format!(r#"{{"n": {}}}"#, "7".repeat(400));
        assert_eq!(
            flaws(&long),
            [format!(
                "[{}] is the number 77777777777777777777… (400 characters), which is too large",
                key("n")
            )]
        );
        for fine in [
            r#"{"t": "\\ud83d \ud83d\ude00 \u0041 NaN"}"#,
            r#"{"n": [18446744073709551615, -9223372036854775808, 1e300, -1E30, 1e-400]}"#,
            r#"{"a": NaN, "a": 1}"#,
        ] {
            assert!(flaws(fine).is_empty(), "text {fine}: flaws {:?}", flaws(fine));
        }
        let (value, _) = parse(br#"{"a": NaN, "t": "x\ud83dy", "n": -Infinity}"#).unwrap();
        assert_eq!(value, serde_json::json!({"a": null, "t": "x\u{fffd}y", "n": null}));
    }

    #[test]
    fn an_error_in_text_that_python_also_rejects_names_the_right_byte() {
        for (text, place) in [
            (r#"{"a": NaN, "b": nan}"#, 18),
            (r#"{"a": NaN "b": 1}"#, 11),
            (r#"{"a": NaNs}"#, 7),
            (r#"{"a": -NaN}"#, 8),
            (r#"{"a": +Infinity}"#, 7),
            (r#"{"a": Infinity, "t": "\ud83"}"#, 28),
            (r#"{"a": NaN, "n": 01e400}"#, 18),
            (r#"{NaN: 1}"#, 2),
            (r#"{"a": NaN, }"#, 12),
        ] {
            let e = parse(text.as_bytes()).unwrap_err();
            assert!(e.message().ends_with(&format!(", at byte {place}")), "{text}: {e:?}");
        }
    }
}
