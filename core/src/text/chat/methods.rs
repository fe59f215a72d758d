//! Methods of Python's strings, dicts and lists, for use in templates.

use minijinja::value::{Kwargs, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// Calls a method of a value, with the same result as in Python. If the method is unknown, the
/// error names it.
pub fn of_python(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match (value.as_str(), value.kind()) {
        (Some(text), _) => of_text(state, value, text, method, args),
        (None, ValueKind::Map | ValueKind::Seq) if method == "copy" => {
            bind(args, [])?;
            Ok(value.clone())
        }
        (None, ValueKind::Seq) if method == "index" => {
            let [wanted] = bind(args, [""])?;
            let wanted = required(wanted, "value")?;
            let found = value.try_iter()?.position(|item| item == wanted);
            found
                .map(Value::from)
                .ok_or_else(|| failed("the list does not contain the argument of `index`"))
        }
        _ => pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// Assigns arguments to parameters, by position or by name. Parameters with an empty name are only
/// accepted by position.
pub fn bind<const N: usize>(args: &[Value], names: [&str; N]) -> Result<[Option<Value>; N], Error> {
    let (positional, named) = match args.split_last() {
        Some((last, rest)) if last.is_kwargs() => (rest, Some(Kwargs::try_from(last.clone())?)),
        _ => (args, None),
    };
    if positional.len() > N {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let mut bound = [const { None }; N];
    for (slot, value) in bound.iter_mut().zip(positional) {
        *slot = Some(value.clone());
    }
    if let Some(named) = named {
        for (slot, name) in bound.iter_mut().zip(names) {
            if !name.is_empty() && named.has(name) {
                if slot.is_some() {
                    return Err(failed(format!("`{name}` is given twice")));
                }
                *slot = Some(named.get(name)?);
            }
        }
        named.assert_all_used()?;
    }
    Ok(bound)
}

pub fn failed(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

fn required(value: Option<Value>, name: &str) -> Result<Value, Error> {
    value.ok_or_else(|| Error::new(ErrorKind::MissingArgument, format!("`{name}` is missing")))
}

/// Converts a required argument to a string.
fn text_of(value: Option<Value>, name: &str) -> Result<String, Error> {
    let value = required(value, name)?;
    value
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| failed(format!("`{name}` must be a string, got {}", value.kind())))
}

/// Converts an optional argument to a string; `None` if it is missing or is Jinja's `none`.
fn text_or_none(value: Option<Value>, name: &str) -> Result<Option<String>, Error> {
    match value {
        Some(value) if !value.is_none() => text_of(Some(value), name).map(Some),
        _ => Ok(None),
    }
}

fn number_or(value: Option<Value>, name: &str, default: i64) -> Result<i64, Error> {
    value.map_or(Ok(default), |value| {
        value
            .as_i64()
            .ok_or_else(|| failed(format!("`{name}` must be a whole number, got {}", value.kind())))
    })
}

/// True for characters that Python's string methods treat as whitespace.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Splits text into lines as Python's `splitlines` does. Returns each line and its line ending.
pub fn lines(text: &str) -> Vec<(&str, &str)> {
    let is_end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut all = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let line = rest.find(is_end).unwrap_or(rest.len());
        let behind = &rest[line..];
        let end = if behind.starts_with("\r\n") {
            2
        } else {
            behind.chars().next().map_or(0, char::len_utf8)
        };
        all.push((&rest[..line], &behind[..end]));
        rest = &behind[end..];
    }
    all
}

/// Returns `text[start:end]` and the index of its first character. Indices count characters, as in
/// Python. Returns `None` if the range is reversed or starts after the end of the text.
fn part<'a>(
    text: &'a str,
    start: Option<&Value>,
    end: Option<&Value>,
) -> Result<Option<(&'a str, usize)>, Error> {
    let given = |value: Option<&Value>, name: &str| match value {
        Some(value) if !value.is_none() => number_or(Some(value.clone()), name, 0).map(Some),
        _ => Ok(None),
    };
    let (start, end) = (given(start, "start")?, given(end, "end")?);
    if start.is_none() && end.is_none() {
        return Ok(Some((text, 0)));
    }
    let len = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    let place = |at: i64| if at < 0 { (len + at).max(0) } else { at };
    let (start, end) = (place(start.unwrap_or(0)), place(end.unwrap_or(len)).min(len));
    if start > len || start > end {
        return Ok(None);
    }
    let byte = |at: i64| {
        text.char_indices()
            .nth(usize::try_from(at).unwrap_or(usize::MAX))
            .map_or(text.len(), |(byte, _)| byte)
    };
    Ok(Some((&text[byte(start)..byte(end)], usize::try_from(start).unwrap_or_default())))
}

/// Returns the character index of the first match, or of the last one if `from_back` is true.
fn find(text: &str, args: &[Value], from_back: bool) -> Result<Option<usize>, Error> {
    let [wanted, start, end] = bind(args, [""; 3])?;
    let wanted = text_of(wanted, "sub")?;
    let Some((within, before)) = part(text, start.as_ref(), end.as_ref())? else { return Ok(None) };
    let byte = if from_back { within.rfind(&wanted) } else { within.find(&wanted) };
    Ok(byte.map(|byte| before + within[..byte].chars().count()))
}

/// Implements `startswith` and `endswith`. The argument is a string or a tuple of strings. One
/// matching string is enough.
fn edge(text: &str, args: &[Value], fits: fn(&str, &str) -> bool) -> Result<Value, Error> {
    let [wanted, start, end] = bind(args, [""; 3])?;
    let wanted = required(wanted, "prefix")?;
    let within = part(text, start.as_ref(), end.as_ref())?;
    let fits = |wanted: &Value| -> Result<bool, Error> {
        Ok(within.is_some_and(|(within, _)| fits(within, wanted.as_str().unwrap_or_default())))
    };
    if wanted.as_str().is_some() {
        return fits(&wanted).map(Value::from);
    }
    if !wanted.is_tuple() {
        return Err(failed(format!(
            "the argument must be a string or a tuple of strings, got {}",
            wanted.kind()
        )));
    }
    let mut any = false;
    for wanted in wanted.try_iter()? {
        any |= fits(&Value::from(text_of(Some(wanted), "prefix")?))?;
    }
    Ok(any.into())
}

/// Splits text at whitespace, at most `most` times, starting from the front.
fn words(text: &str, most: usize) -> Vec<&str> {
    let mut all = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let end = if all.len() == most { None } else { rest.find(is_space) };
        all.push(&rest[..end.unwrap_or(rest.len())]);
        rest = end.map_or("", |end| rest[end..].trim_start_matches(is_space));
    }
    all
}

/// Splits text at whitespace, at most `most` times, starting from the back.
fn words_from_back(text: &str, most: usize) -> Vec<&str> {
    let mut all = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while !rest.is_empty() {
        let blank =
            rest.char_indices().rev().find(|(_, c)| is_space(*c)).filter(|_| all.len() < most);
        let start = blank.map_or(0, |(at, c)| at + c.len_utf8());
        all.push(&rest[start..]);
        rest = blank.map_or("", |(at, _)| rest[..at].trim_end_matches(is_space));
    }
    all.reverse();
    all
}

fn split(state: &State, text: &str, args: &[Value], from_back: bool) -> Result<Value, Error> {
    let [between, most] = bind(args, ["sep", "maxsplit"])?;
    let between = text_or_none(between, "sep")?;
    let most = usize::try_from(number_or(most, "maxsplit", -1)?).unwrap_or(usize::MAX);
    let pieces: Vec<&str> = match (&between, from_back) {
        (Some(between), _) if between.is_empty() => return Err(failed("empty separator")),
        (Some(between), false) => text.splitn(most.saturating_add(1), between.as_str()).collect(),
        (Some(between), true) => {
            let mut pieces: Vec<&str> =
                text.rsplitn(most.saturating_add(1), between.as_str()).collect();
            pieces.reverse();
            pieces
        }
        (None, false) => words(text, most),
        (None, true) => words_from_back(text, most),
    };
    // Charge fuel before the parts are converted to values. minijinja only charges fuel afterwards.
    // A string can have as many parts as characters.
    state.consume_fuel(2 * pieces.len() as u64)?;
    Ok(pieces.into_iter().map(Value::from).collect())
}

/// Implements `partition` and `rpartition`: returns the text before the separator, the separator,
/// and the text after it.
fn partition(text: &str, args: &[Value], from_back: bool) -> Result<Value, Error> {
    let [between] = bind(args, [""])?;
    let between = text_of(between, "sep")?;
    if between.is_empty() {
        return Err(failed("empty separator"));
    }
    let found = if from_back { text.rsplit_once(&between) } else { text.split_once(&between) };
    let three = match found {
        Some((before, behind)) => [before, between.as_str(), behind],
        None if from_back => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Value::from(Tuple::from(three.map(Value::from))))
}

/// Pads text to a width with spaces or another fill character. `sides` returns how many fill
/// characters to put before and after the text.
fn pad(
    state: &State,
    text: &str,
    args: &[Value],
    sides: fn(missing: usize, width: usize) -> (usize, usize),
) -> Result<Value, Error> {
    let [width, fill] = bind(args, [""; 2])?;
    let width =
        usize::try_from(number_or(Some(required(width, "width")?), "width", 0)?).unwrap_or(0);
    let fill = text_or_none(fill, "fillchar")?.unwrap_or_else(|| " ".to_owned());
    if fill.chars().count() != 1 {
        return Err(failed("the fill character must be exactly one character long"));
    }
    let missing = width.saturating_sub(text.chars().count());
    super::use_fuel(state, missing.saturating_mul(fill.len()))?;
    let (before, behind) = sides(missing, width);
    Ok(Value::from(format!("{}{text}{}", fill.repeat(before), fill.repeat(behind))))
}

/// Distributes the padding of centred text as Python does. An extra space goes to the left if the
/// width is odd.
pub fn centred(missing: usize, width: usize) -> (usize, usize) {
    let before = missing / 2 + (missing & width & 1);
    (before, missing - before)
}

fn strip(text: &str, args: &[Value], front: bool, back: bool) -> Result<Value, Error> {
    let [chars] = bind(args, [""])?;
    let chars = text_or_none(chars, "chars")?;
    let drop = |c: char| chars.as_ref().map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if front { text.trim_start_matches(drop) } else { text };
    Ok(Value::from(if back { text.trim_end_matches(drop) } else { text }))
}

/// Implements Python's `title`: converts the first letter of each word to upper case and the others
/// to lower case.
fn title(text: &str) -> String {
    let mut out = String::new();
    let mut within = false;
    for c in text.chars() {
        let cased = c.is_lowercase() || c.is_uppercase();
        if cased && !within {
            out.extend(c.to_uppercase());
        } else {
            out.extend(c.to_lowercase());
        }
        within = cased;
    }
    out
}

fn of_text(
    state: &mut State,
    value: &Value,
    text: &str,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    super::use_fuel(state, text.len())?;
    match method {
        "split" => split(state, text, args, false),
        "rsplit" => split(state, text, args, true),
        "partition" => partition(text, args, false),
        "rpartition" => partition(text, args, true),
        "strip" => strip(text, args, true, true),
        "lstrip" => strip(text, args, true, false),
        "rstrip" => strip(text, args, false, true),
        "startswith" => edge(text, args, |text, wanted| text.starts_with(wanted)),
        "endswith" => edge(text, args, |text, wanted| text.ends_with(wanted)),
        "find" => Ok(find(text, args, false)?.map_or(Value::from(-1), Value::from)),
        "rfind" => Ok(find(text, args, true)?.map_or(Value::from(-1), Value::from)),
        "index" | "rindex" => find(text, args, method == "rindex")?
            .map(Value::from)
            .ok_or_else(|| failed("substring not found")),
        "count" => {
            let [wanted, start, end] = bind(args, [""; 3])?;
            let wanted = text_of(wanted, "sub")?;
            Ok(part(text, start.as_ref(), end.as_ref())?
                .map_or(0, |(within, _)| within.matches(wanted.as_str()).count())
                .into())
        }
        "removeprefix" => {
            let [prefix] = bind(args, [""])?;
            Ok(Value::from(text.strip_prefix(text_of(prefix, "prefix")?.as_str()).unwrap_or(text)))
        }
        "removesuffix" => {
            let [suffix] = bind(args, [""])?;
            Ok(Value::from(text.strip_suffix(text_of(suffix, "suffix")?.as_str()).unwrap_or(text)))
        }
        "splitlines" => {
            let [keep] = bind(args, ["keepends"])?;
            let keep = keep.is_some_and(|keep| keep.is_true());
            let lines = lines(text);
            state.consume_fuel(2 * lines.len() as u64)?;
            Ok(lines
                .into_iter()
                .map(|(line, end)| {
                    Value::from(if keep { [line, end].concat() } else { line.to_owned() })
                })
                .collect())
        }
        "join" => {
            let [parts] = bind(args, [""])?;
            let mut out = String::new();
            for (i, item) in required(parts, "iterable")?.try_iter()?.enumerate() {
                let item = item.as_str().map(str::to_owned).ok_or_else(|| {
                    failed(format!("item {i} of `join` must be a string, got {}", item.kind()))
                })?;
                super::use_fuel(state, text.len() + item.len())?;
                out.push_str(if i == 0 { "" } else { text });
                out.push_str(&item);
            }
            Ok(out.into())
        }
        "center" => pad(state, text, args, centred),
        "ljust" => pad(state, text, args, |missing, _| (0, missing)),
        "rjust" => pad(state, text, args, |missing, _| (missing, 0)),
        "zfill" => {
            let [width] = bind(args, [""])?;
            let width = usize::try_from(number_or(Some(required(width, "width")?), "width", 0)?)
                .unwrap_or(0);
            let missing = width.saturating_sub(text.chars().count());
            super::use_fuel(state, missing)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            Ok(Value::from(format!("{sign}{}{digits}", "0".repeat(missing))))
        }
        "title" => bind(args, []).map(|[]| title(text).into()),
        "casefold" if text.is_ascii() => bind(args, []).map(|[]| text.to_ascii_lowercase().into()),
        "swapcase" if text.is_ascii() => {
            let swapped = text.chars().map(|c| {
                if c.is_ascii_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() }
            });
            bind(args, []).map(|[]| swapped.collect::<String>().into())
        }
        "isspace" => {
            bind(args, []).map(|[]| (!text.is_empty() && text.chars().all(is_space)).into())
        }
        "isdecimal" if text.is_ascii() => bind(args, [])
            .map(|[]| (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).into()),
        "isidentifier" if text.is_ascii() => bind(args, []).map(|[]| {
            let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            (begins && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')).into()
        }),
        "istitle" => bind(args, []).map(|[]| {
            (text.chars().any(|c| c.is_lowercase() || c.is_uppercase()) && title(text) == text)
                .into()
        }),
        _ => pycompat::unknown_method_callback(state, value, method, args),
    }
}
