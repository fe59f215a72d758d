//! Compares, iterates over and prints values like Python, where minijinja behaves differently.

use std::sync::{Arc, Mutex};

use minijinja::value::{Enumerator, Object, ObjectRepr, ValueKind};
use minijinja::{Error, State, Value};

use super::methods::failed;

/// Python's name for the type of a value.
pub fn type_name(x: &Value) -> &'static str {
    match x.kind() {
        ValueKind::Undefined => "undefined",
        ValueKind::None => "None",
        ValueKind::Bool => "bool",
        ValueKind::Number => {
            if x.is_integer() {
                "int"
            } else {
                "float"
            }
        }
        ValueKind::String => "str",
        ValueKind::Bytes => "bytes",
        ValueKind::Seq => {
            if x.is_tuple() {
                "tuple"
            } else {
                "list"
            }
        }
        ValueKind::Map => "dict",
        ValueKind::Iterable => "iterator",
        ValueKind::Plain => "function",
        _ => "invalid value",
    }
}

/// True for numbers, which in Python include booleans.
pub fn is_number(x: &Value) -> bool {
    matches!(x.kind(), ValueKind::Number | ValueKind::Bool)
}

/// Checks that Python can order two values. Python can order numbers, strings, and lists of these.
///
/// # Errors
/// Fails if Python would raise an exception. minijinja orders such values by their types instead.
pub fn check_ordered(a: &Value, b: &Value) -> Result<(), Error> {
    if let Some(undefined) = [a, b].into_iter().find(|x| x.is_undefined()) {
        return Err(failed(format!(
            "a value of type `{}` cannot be compared",
            type_name(undefined)
        )));
    }
    let ordered = (is_number(a) && is_number(b))
        || (type_name(a) == type_name(b)
            && matches!(a.kind(), ValueKind::String | ValueKind::Bytes | ValueKind::Seq));
    if !ordered {
        return Err(failed(format!(
            "`{}` and `{}` cannot be compared",
            type_name(a),
            type_name(b)
        )));
    }
    if a.kind() == ValueKind::Seq {
        for (a, b) in a.try_iter()?.zip(b.try_iter()?) {
            if a != b {
                return check_ordered(&a, &b);
            }
        }
    }
    Ok(())
}

/// Checks that Python allows `item in container`.
///
/// # Errors
/// Fails if Python would raise a `TypeError`. minijinja returns false in this case.
pub fn check_searched(item: &Value, container: &Value) -> Result<(), Error> {
    if container.kind() == ValueKind::String && item.kind() != ValueKind::String {
        return Err(failed(format!(
            "`in <string>` requires a string on the left, got `{}`",
            type_name(item)
        )));
    }
    Ok(())
}

/// Checks that a value can be iterated over.
///
/// # Errors
/// Fails if the value is `None`, which minijinja treats as an empty list.
pub fn check_iterable(x: &Value) -> Result<(), Error> {
    if x.is_none() { Err(failed("`None` is not iterable")) } else { Ok(()) }
}

/// Emulates a Python generator: it has no length, it is truthy even if it is empty, and its items
/// can only be read once.
#[derive(Debug)]
pub struct Generator(Mutex<std::vec::IntoIter<Value>>);

impl Generator {
    pub fn of(items: Vec<Value>) -> Value {
        Value::from_object(Self(Mutex::new(items.into_iter())))
    }

    fn take(&self) -> Option<Value> {
        self.0.lock().ok()?.next()
    }
}

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let this = self.clone();
        Enumerator::Iter(Box::new(std::iter::from_fn(move || this.take())))
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }
}

/// Formats a value like Python's `str(x)`. Functions and similar objects are rejected. Python
/// would print their memory addresses, which no template wants.
///
/// # Errors
/// Fails for functions and iterators. Also fails for lists and dicts that contain one of these or
/// an undefined value.
pub fn python_str(state: &State, x: &Value) -> Result<String, Error> {
    if let Some(text) = x.as_str() {
        super::use_fuel(state, text.len())?;
        return Ok(text.to_owned());
    }
    let mut out = String::new();
    if !x.is_undefined() {
        super::use_fuel_for_value(state, x, 0)?;
        write_repr(&mut out, x)?;
    }
    Ok(out)
}

/// Python's `repr(x)`.
fn write_repr(out: &mut String, x: &Value) -> Result<(), Error> {
    match x.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if x.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.push_str(&number(x)?),
        ValueKind::String => {
            out.push_str(if x.is_safe() { "Markup(" } else { "" });
            write_string(out, x.as_str().unwrap_or_default());
            out.push_str(if x.is_safe() { ")" } else { "" });
        }
        ValueKind::Seq => {
            let items: Vec<Value> = x.try_iter()?.collect();
            let (open, close) = match (x.is_tuple(), items.len()) {
                (true, 1) => ('(', ",)"),
                (true, _) => ('(', ")"),
                _ => ('[', "]"),
            };
            out.push(open);
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                write_repr(out, item)?;
            }
            out.push_str(close);
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in x.try_iter()?.enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                write_repr(out, &key)?;
                out.push_str(": ");
                write_repr(out, &x.get_item(&key)?)?;
            }
            out.push('}');
        }
        _ => {
            return Err(failed(format!("a value of type `{}` cannot be printed", type_name(x))));
        }
    }
    Ok(())
}

/// Formats a number like Python. A float gets the fewest digits that parse back to the same value.
/// Floats with an exponent below -4 or above 15 are in scientific notation.
pub fn number(x: &Value) -> Result<String, Error> {
    if x.is_integer() {
        return Ok(x.to_string());
    }
    let x = f64::try_from(x.clone())?;
    if !x.is_finite() {
        return Ok(if x.is_nan() {
            "nan"
        } else if x < 0.0 {
            "-inf"
        } else {
            "inf"
        }
        .to_owned());
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return Ok(format!("{digits}e{sign}{:02}", exponent.abs()));
    }
    let plain = format!("{x}");
    Ok(if plain.contains('.') { plain } else { format!("{plain}.0") })
}

fn write_string(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => out.push_str(&match u32::from(c) {
                code @ ..=0xff => format!("\\x{code:02x}"),
                code @ ..=0xffff => format!("\\u{code:04x}"),
                code => format!("\\U{code:08x}"),
            }),
        }
    }
    out.push(quote);
}

/// False if Python's `repr` escapes the character, for example as `\x00`.
fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    // `escape_debug` always escapes a combining mark at the start of a string. Putting a letter in
    // front of the character avoids this.
    let mut pair = String::from("a");
    pair.push(c);
    pair.escape_debug().nth(1) == Some(c)
}
