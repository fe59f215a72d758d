//! Methods of Python's strings that templates call.

use minijinja::value::from_args;
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// The methods that minijinja-contrib knows, and those that it does not.
pub fn of_python(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else { return pycompat::unknown_method_callback(state, value, method, args) };
    super::pay(state, text.len())?;
    // The price of the parts is asked for when they are there, and a text may have as many as it has letters.
    let parts = match (method, args.first().and_then(Value::as_str)) {
        ("split", Some(between)) => text.matches(between).count(),
        ("split", None) => text.split_whitespace().count(),
        ("splitlines", _) => text.lines().count(),
        _ => 0,
    };
    state.consume_fuel(2 * parts as u64)?;
    match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        "index" => {
            let (part,): (&str,) = from_args(args)?;
            let found = text.find(part).ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "substring not found"))?;
            Ok(Value::from(text[..found].chars().count()))
        }
        _ => pycompat::unknown_method_callback(state, value, method, args),
    }
}
