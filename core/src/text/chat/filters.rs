//! Jinja2 filters and tests that minijinja lacks or implements differently.

use std::borrow::Cow;

use minijinja::filters;
use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, Value};

use super::methods::{bind, centred, failed, lines};
use super::python::{
    Generator, check_iterable, check_ordered, check_searched, is_number, python_str, type_name,
};
use super::rewrite;

/// Filters of minijinja that Jinja2 lacks or implements differently. They are removed, so a
/// template that uses one fails.
const FOREIGN_FILTERS: [&str; 7] = ["attr", "bool", "chain", "lines", "pprint", "split", "zip"];
/// Tests of minijinja that Jinja2 lacks. They are removed, so a template that uses one fails.
const FOREIGN_TESTS: [&str; 4] = ["endingwith", "int", "safe", "startingwith"];

type ValueResult = Result<Value, Error>;
type TestResult = Result<bool, Error>;
type Arguments = Rest<ValueOrKwargs>;

/// Removes the filters and tests that Jinja2 does not have, and adds the filters and tests of this
/// module.
pub fn add(environment: &mut Environment) {
    FOREIGN_FILTERS.into_iter().for_each(|name| environment.remove_filter(name));
    FOREIGN_TESTS.into_iter().for_each(|name| environment.remove_test(name));
    environment.remove_global("debug");
    add_operators(environment);
    add_generators(environment);
    add_filters(environment);
    add_tests(environment);
}

fn add_operators(environment: &mut Environment) {
    environment.add_filter(rewrite::REMAINDER, remainder);
    environment.add_filter(
        rewrite::CONCATENATE,
        |state: &State, a: &Value, b: &Value| -> Result<String, Error> {
            Ok(python_str(state, a)? + &python_str(state, b)?)
        },
    );
    environment.add_filter(rewrite::CONTAINED, contained);
    environment.add_filter(rewrite::LESS, |a: &Value, b: &Value| -> TestResult {
        check_ordered(a, b).map(|()| a < b)
    });
    environment.add_filter(rewrite::LESS_OR_EQUAL, |a: &Value, b: &Value| -> TestResult {
        check_ordered(a, b).map(|()| a <= b)
    });
    environment.add_filter(rewrite::GREATER, |a: &Value, b: &Value| -> TestResult {
        check_ordered(a, b).map(|()| a > b)
    });
    environment.add_filter(rewrite::GREATER_OR_EQUAL, |a: &Value, b: &Value| -> TestResult {
        check_ordered(a, b).map(|()| a >= b)
    });
    environment.add_filter(rewrite::ITERABLE, |state: &State, x: Value| -> ValueResult {
        check_iterable(&x)?;
        // In Jinja2, `loop.length` and `loop.last` also work in a loop over a generator.
        if x.downcast_object_ref::<Generator>().is_some() {
            list(state, &x).map(Value::from)
        } else {
            Ok(x)
        }
    });
    environment.add_filter(rewrite::DEFINED, |x: Value| -> ValueResult {
        if x.is_undefined() || x.is_none() {
            Err(failed(format!("cannot slice a value of type `{}`", type_name(&x))))
        } else {
            Ok(x)
        }
    });
    // In minijinja, slices and sums of lists are lazy iterables. Convert them to lists, as in
    // Jinja2.
    environment.add_filter(rewrite::LIST, |state: &State, x: Value| -> ValueResult {
        let lazy =
            x.kind() == ValueKind::Iterable && x.downcast_object_ref::<Generator>().is_none();
        if lazy { list(state, &x).map(Value::from) } else { Ok(x) }
    });
    environment.add_filter(rewrite::INDEX, |x: Value| -> ValueResult {
        if is_float(&x) { Err(failed("an index must not be a float")) } else { Ok(x) }
    });
    environment.add_filter(rewrite::TEXT, |state: &State, x: &Value| -> ValueResult {
        if x.as_str().is_some() { Ok(x.clone()) } else { python_str(state, x).map(Value::from) }
    });
}

/// Collects the items of a value. Items consume fuel, so that a template cannot create huge lists.
/// The fuel is consumed in advance, for a few items at a time.
fn list(state: &State, x: &Value) -> Result<Vec<Value>, Error> {
    const AT_A_TIME: usize = 8;
    let mut items = Vec::new();
    for item in x.try_iter()? {
        if items.len() % AT_A_TIME == 0 {
            super::use_fuel(state, AT_A_TIME * size_of::<Value>())?;
        }
        items.push(item);
    }
    Ok(items)
}

/// `a % b`: the remainder of numbers, or Python's formatting if `a` is a string.
fn remainder(state: &mut State, a: &Value, b: &Value) -> ValueResult {
    let Some(text) = a.as_str() else {
        if !is_number(a) || !is_number(b) {
            return Err(failed(format!(
                "`%` is not defined for `{}` and `{}`",
                type_name(a),
                type_name(b)
            )));
        }
        return number_remainder(a, b);
    };
    let values: Vec<Value> = if b.is_tuple() { b.try_iter()?.collect() } else { vec![b.clone()] };
    formatted(state, text, &values, b)
}

fn number_remainder(a: &Value, b: &Value) -> ValueResult {
    let zero = || failed("division by zero");
    let whole = |x: &Value| {
        if x.kind() == ValueKind::Bool {
            Some(i128::from(x.is_true()))
        } else {
            i128::try_from(x.clone()).ok()
        }
    };
    if !is_float(a) && !is_float(b) {
        let (a, b) =
            whole(a).zip(whole(b)).ok_or_else(|| failed("the operands of `%` are too large"))?;
        let rest = a.checked_rem(b).ok_or_else(zero)?;
        return Ok(Value::from(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }));
    }
    let (a, b) = (float(a)?, float(b)?);
    if b == 0.0 {
        return Err(zero());
    }
    let rest = a % b;
    Ok(Value::from(if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }))
}

fn is_float(x: &Value) -> bool {
    x.kind() == ValueKind::Number && !x.is_integer()
}

fn float(x: &Value) -> Result<f64, Error> {
    if x.kind() == ValueKind::Bool {
        Ok(f64::from(u8::from(x.is_true())))
    } else {
        f64::try_from(x.clone())
    }
}

/// Implements Python's `text % whole`. `values` are the items of `whole` if it is a tuple.
/// Otherwise, the only value is `whole`.
fn formatted(state: &mut State, text: &str, values: &[Value], whole: &Value) -> ValueResult {
    let (mut rest, mut width) = (text, 0usize);
    // The conversion type of each positional value. Named values come from a dict instead.
    let (mut kinds, mut named) = (Vec::new(), false);
    while let Some((_, behind)) = rest.split_once('%') {
        let mut behind = behind;
        if let Some(name) = behind.strip_prefix('(') {
            named = true;
            behind = name
                .split_once(')')
                .map(|(_, behind)| behind)
                .ok_or_else(|| failed("incomplete format key"))?;
        }
        let flags = behind.trim_start_matches(['#', '0', '-', ' ', '+']);
        let spec = flags.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.' || c == '*');
        let given = &flags[..flags.len() - spec.len()];
        kinds.extend(given.matches('*').map(|_| '*'));
        let digits = |text: &str| text.parse::<usize>().unwrap_or(usize::MAX);
        width = given
            .split(['.', '*'])
            .filter(|n| !n.is_empty())
            .map(digits)
            .fold(width, usize::saturating_add);
        let spec = spec.trim_start_matches(['h', 'l', 'L']);
        let kind = spec.chars().next().ok_or_else(|| failed("incomplete format"))?;
        if kind != '%' {
            kinds.push(kind);
        }
        rest = &spec[kind.len_utf8()..];
    }
    super::use_fuel(state, width)?;
    // As in Python, values in a dict or a list may be unused.
    if !named
        && kinds.len() < values.len()
        && (whole.is_tuple() || !matches!(whole.kind(), ValueKind::Map | ValueKind::Seq))
    {
        return Err(failed("not all arguments converted during string formatting"));
    }
    let mut texts = Vec::with_capacity(values.len());
    for (i, value) in values.iter().enumerate() {
        super::use_fuel_for_value(state, value, 0)?;
        texts.push(match kinds.get(i) {
            _ if named => value.clone(),
            Some('s') => Value::from(python_str(state, value)?),
            Some('d' | 'i' | 'u') if is_float(value) => int(value, &[])?,
            _ => value.clone(),
        });
    }
    format(FormatStyle::Printf, text, &texts).map(Value::from)
}

fn contained(item: &Value, container: &Value) -> TestResult {
    check_searched(item, container)?;
    match container.kind() {
        ValueKind::String => Ok(container
            .as_str()
            .is_some_and(|text| text.contains(item.as_str().unwrap_or_default()))),
        ValueKind::Map => {
            let found = container.get_item(item)?;
            // A key can have an undefined value, so also search the keys themselves.
            Ok(!found.is_undefined() || container.try_iter()?.any(|key| key == *item))
        }
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Undefined => {
            Ok(container.try_iter()?.any(|other| other == *item))
        }
        _ => Err(failed(format!("`in` does not support `{}`", type_name(container)))),
    }
}

/// Adds the filters that return a generator in Python. The items of a generator can only be read
/// once.
fn add_generators(environment: &mut Environment) {
    type Name<'a> = Option<Cow<'a, str>>;
    environment.add_filter("map", |state: &mut State, x: Value, args: Arguments| -> ValueResult {
        if !x.is_true() {
            Ok(Generator::of(Vec::new()))
        } else {
            filters::map(state, x, args).map(Generator::of)
        }
    });
    environment.add_filter(
        "select",
        |state: &mut State, x: Value, test: Name, args: Arguments| -> ValueResult {
            if !x.is_true() {
                Ok(Generator::of(Vec::new()))
            } else {
                filters::select(state, x, test, args).map(Generator::of)
            }
        },
    );
    environment.add_filter(
        "reject",
        |state: &mut State, x: Value, test: Name, args: Arguments| -> ValueResult {
            if !x.is_true() {
                Ok(Generator::of(Vec::new()))
            } else {
                filters::reject(state, x, test, args).map(Generator::of)
            }
        },
    );
    environment.add_filter(
        "selectattr",
        |state: &mut State,
         x: Value,
         attr: Cow<'_, str>,
         test: Name,
         args: Arguments|
         -> ValueResult {
            if !x.is_true() {
                Ok(Generator::of(Vec::new()))
            } else {
                filters::selectattr(state, x, attr, test, args).map(Generator::of)
            }
        },
    );
    environment.add_filter(
        "rejectattr",
        |state: &mut State,
         x: Value,
         attr: Cow<'_, str>,
         test: Name,
         args: Arguments|
         -> ValueResult {
            if !x.is_true() {
                Ok(Generator::of(Vec::new()))
            } else {
                filters::rejectattr(state, x, attr, test, args).map(Generator::of)
            }
        },
    );
    environment.add_filter(
        "batch",
        |state: &State, x: Value, count: usize, fill: Option<Value>| -> ValueResult {
            check_iterable(&x)?;
            list(state, &filters::batch(state, x, count, fill)?).map(Generator::of)
        },
    );
    environment.add_filter(
        "slice",
        |state: &State, x: Value, count: usize, fill: Option<Value>| -> ValueResult {
            check_iterable(&x)?;
            list(state, &filters::slice(state, x, count, fill)?).map(Generator::of)
        },
    );
    environment.add_filter("unique", |state: &State, x: Value, kwargs: Kwargs| -> ValueResult {
        check_iterable(&x)?;
        list(state, &filters::unique(state, x, kwargs)?).map(Generator::of)
    });
    environment.add_filter("items", |state: &State, x: &Value| -> ValueResult {
        match x.kind() {
            ValueKind::Undefined => Ok(Generator::of(Vec::new())),
            ValueKind::Map => list(state, &filters::items(x)?).map(Generator::of),
            _ => Err(failed(format!("`items` needs a dict, got `{}`", type_name(x)))),
        }
    });
    environment.add_filter("reverse", |state: &State, x: &Value| -> ValueResult {
        if let Some(text) = x.as_str() {
            super::use_fuel(state, text.len())?;
            return Ok(text.chars().rev().collect::<String>().into());
        }
        check_iterable(x)?;
        let mut items = list(state, x)?;
        items.reverse();
        Ok(Generator::of(items))
    });
}

fn add_filters(environment: &mut Environment) {
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("int", |x: &Value, args: Arguments| -> ValueResult {
        int(x, &args.into_values())
    });
    environment.add_filter("float", |x: &Value, args: Arguments| -> ValueResult {
        let [default] = bind(&args.into_values(), ["default"])?;
        Ok(to_float(x)?.map_or_else(|| default.unwrap_or_else(|| Value::from(0.0)), Value::from))
    });
    environment.add_filter("abs", |x: Value| -> ValueResult {
        filters::abs(if x.kind() == ValueKind::Bool {
            Value::from(i64::from(x.is_true()))
        } else {
            x
        })
    });
    environment.add_filter("round", |x: Value, args: Arguments| -> ValueResult {
        let [precision, method] = bind(&args.into_values(), ["precision", "method"])?;
        let precision = precision.map_or(Ok(0), i32::try_from)?;
        let method = method.as_ref().map_or(Some("common"), Value::as_str).unwrap_or_default();
        if !is_number(&x) {
            return Err(failed(format!("`{}` cannot be rounded", type_name(&x))));
        }
        let scale = 10f64.powi(precision);
        match method {
            "common" => filters::round(
                x,
                Some(precision),
                None,
                Kwargs::from_iter([("", Value::UNDEFINED); 0]),
            ),
            "ceil" => Ok(Value::from((float(&x)? * scale).ceil() / scale)),
            "floor" => Ok(Value::from((float(&x)? * scale).floor() / scale)),
            other => Err(failed(format!(
                "the method of `round` must be `common`, `ceil` or `floor`, got `{other}`"
            ))),
        }
    });
    environment.add_filter("sort", |state: &State, x: Value, kwargs: Kwargs| -> ValueResult {
        check_iterable(&x)?;
        let items = list(state, &x)?;
        if !kwargs.has("attribute") {
            items.windows(2).try_for_each(|two| check_ordered(&two[0], &two[1]))?;
        }
        filters::sort(state, Value::from(items), kwargs)
    });
    environment.add_filter("min", |state: &State, x: Value, kwargs: Kwargs| {
        extreme(state, &x, kwargs, filters::min)
    });
    environment.add_filter("max", |state: &State, x: Value, kwargs: Kwargs| {
        extreme(state, &x, kwargs, filters::max)
    });
    environment.add_filter("last", |x: Value| -> ValueResult {
        check_iterable(&x)?;
        if x.downcast_object_ref::<Generator>().is_some() {
            return Err(failed("`last` does not work on a generator; apply `list` first"));
        }
        filters::last(x)
    });
    environment.add_filter("string", |state: &State, x: &Value| -> ValueResult {
        if x.as_str().is_some() { Ok(x.clone()) } else { python_str(state, x).map(Value::from) }
    });
    environment.add_filter("indent", |state: &State, x: &Value, args: Arguments| {
        indent(state, x, &args.into_values())
    });
    environment.add_filter("center", |state: &State, x: &Value, args: Arguments| -> ValueResult {
        let [width] = bind(&args.into_values(), ["width"])?;
        let text = python_str(state, x)?;
        let width = width.map_or(Ok(80), usize::try_from)?;
        let missing = width.saturating_sub(text.chars().count());
        super::use_fuel(state, missing)?;
        let (before, behind) = centred(missing, width);
        Ok(Value::from(format!("{}{text}{}", " ".repeat(before), " ".repeat(behind))))
    });
    environment.add_filter("wordcount", |state: &State, x: &Value| -> ValueResult {
        let text = python_str(state, x)?;
        Ok(text
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|word| !word.is_empty())
            .count()
            .into())
    });
    for name in ["e", "escape", "forceescape"] {
        environment.add_filter(name, move |state: &State, x: &Value| -> ValueResult {
            if name != "forceescape" && x.is_safe() { Ok(x.clone()) } else { escaped(state, x) }
        });
    }
    environment.add_filter(
        "format",
        |state: &mut State, text: &str, args: Arguments| -> ValueResult {
            let args = args.into_values();
            match args.split_last() {
                Some((named, [])) if named.is_kwargs() => {
                    formatted(state, text, std::slice::from_ref(named), named)
                }
                Some((named, _)) if named.is_kwargs() => {
                    Err(failed("`format` takes positional or named values, not both"))
                }
                _ => formatted(state, text, &args, &Value::from(Tuple::from(args.clone()))),
            }
        },
    );
}

fn default(x: &Value, args: Arguments) -> ValueResult {
    let [value, boolean] = bind(&args.into_values(), ["default_value", "boolean"])?;
    let missing = x.is_undefined() || (boolean.is_some_and(|b| b.is_true()) && !x.is_true());
    Ok(if missing { value.unwrap_or_else(|| Value::from("")) } else { x.clone() })
}

fn extreme(
    state: &State,
    x: &Value,
    kwargs: Kwargs,
    of: fn(&State, Value, Kwargs) -> ValueResult,
) -> ValueResult {
    check_iterable(x)?;
    let items = list(state, x)?;
    if !kwargs.has("attribute") {
        items.windows(2).try_for_each(|two| check_ordered(&two[0], &two[1]))?;
    }
    of(state, Value::from(items), kwargs)
}

/// Python's `float(x)`; `None` if Python would raise a `TypeError` or `ValueError`.
fn to_float(x: &Value) -> Result<Option<f64>, Error> {
    if x.is_undefined() {
        return Err(failed("cannot convert an undefined value to a number"));
    }
    if is_number(x) {
        return float(x).map(Some);
    }
    let Some(text) = x.as_str().map(|text| text.trim().to_lowercase()) else { return Ok(None) };
    let digits = |c: char| c.is_ascii_digit();
    // Python only allows underscores between two digits.
    let joined = text.split('_').collect::<Vec<_>>();
    if joined.len() > 1
        && !joined.windows(2).all(|two| two[0].ends_with(digits) && two[1].starts_with(digits))
    {
        return Ok(None);
    }
    Ok(joined.concat().parse().ok())
}

fn int(x: &Value, args: &[Value]) -> ValueResult {
    let [default, base] = bind(args, ["default", "base"])?;
    let base = base.map_or(Ok(10), u32::try_from)?;
    if x.kind() == ValueKind::Number && x.is_integer() {
        return Ok(x.clone());
    }
    let number = match x.as_str().map(|text| text.trim().to_lowercase()) {
        None => None,
        Some(text) => {
            let (minus, digits) = text
                .strip_prefix('-')
                .map_or((false, text.strip_prefix('+').unwrap_or(&text)), |digits| (true, digits));
            let marked = match base {
                16 => digits.strip_prefix("0x"),
                8 => digits.strip_prefix("0o"),
                2 => digits.strip_prefix("0b"),
                _ => None,
            };
            let digits = marked.unwrap_or(digits);
            if digits.starts_with('_')
                || digits.ends_with('_')
                || digits.contains("__")
                || digits.starts_with(['+', '-'])
                || !(2..=36).contains(&base)
            {
                None
            } else {
                i128::from_str_radix(&digits.replace('_', ""), base)
                    .ok()
                    .map(|n| if minus { -n } else { n })
            }
        }
    };
    if let Some(number) = number {
        return Ok(Value::from(number));
    }
    #[expect(clippy::cast_possible_truncation, reason = "Python's int() truncates")]
    let whole = to_float(x)?
        .filter(|x| x.is_finite() && x.abs() < 1e38)
        .map(|x| Value::from(x.trunc() as i128));
    Ok(whole.or(default).unwrap_or_else(|| Value::from(0)))
}

fn indent(state: &State, x: &Value, args: &[Value]) -> ValueResult {
    let [width, first, blank] = bind(args, ["width", "first", "blank"])?;
    let Some(text) = x.as_str() else {
        return Err(failed(format!("`indent` expects a string, got `{}`", type_name(x))));
    };
    let by = match &width {
        None => " ".repeat(4),
        Some(width) => match width.as_str() {
            Some(by) => by.to_owned(),
            None => {
                let width = usize::try_from(width.clone())?;
                super::use_fuel(state, width)?;
                " ".repeat(width)
            }
        },
    };
    let given = |flag: Option<Value>| flag.is_some_and(|flag| flag.is_true());
    let (first, blank) = (given(first), given(blank));
    let text = format!("{text}\n");
    let lines = lines(&text);
    super::use_fuel(state, text.len().saturating_add(lines.len().saturating_mul(by.len())))?;
    let mut out = String::with_capacity(text.len());
    for (i, (line, _)) in lines.into_iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if (i == 0 && first) || (i > 0 && (blank || !line.is_empty())) {
            out.push_str(&by);
        }
        out.push_str(line);
    }
    Ok(out.into())
}

fn escaped(state: &State, x: &Value) -> ValueResult {
    let text = python_str(state, x)?;
    super::use_fuel(state, 4 * text.len())?;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    Ok(Value::from_safe_string(out))
}

fn add_tests(environment: &mut Environment) {
    // Jinja2 tests whether Python's `iter(x)` works.
    environment.add_test("iterable", |x: &Value| {
        !x.is_none() && (x.is_undefined() || (x.try_iter().is_ok() && !is_number(x)))
    });
    // As in Jinja2, a dict is a sequence too, because it has a length and can be indexed.
    environment.add_test("sequence", |x: &Value| {
        matches!(
            x.kind(),
            ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined
        )
    });
    environment.add_test("callable", |x: &Value| {
        matches!(x.kind(), ValueKind::Plain | ValueKind::Undefined)
    });
    environment.add_test("lower", |state: &State, x: &Value| -> TestResult {
        Ok(is_cased(&python_str(state, x)?, char::is_lowercase, char::is_uppercase))
    });
    environment.add_test("upper", |state: &State, x: &Value| -> TestResult {
        Ok(is_cased(&python_str(state, x)?, char::is_uppercase, char::is_lowercase))
    });
    environment.add_test("odd", |x: &Value| -> TestResult {
        Ok(whole_remainder(x, &Value::from(2))? == Value::from(1))
    });
    environment.add_test("even", |x: &Value| -> TestResult {
        Ok(whole_remainder(x, &Value::from(2))? == Value::from(0))
    });
    environment.add_test("divisibleby", |x: &Value, by: &Value| -> TestResult {
        Ok(whole_remainder(x, by)? == Value::from(0))
    });
    environment.add_test("in", contained);
    for name in ["lt", "lessthan", "<"] {
        environment.add_test(name, |a: &Value, b: &Value| -> TestResult {
            check_ordered(a, b).map(|()| a < b)
        });
    }
    for name in ["le", "<="] {
        environment.add_test(name, |a: &Value, b: &Value| -> TestResult {
            check_ordered(a, b).map(|()| a <= b)
        });
    }
    for name in ["gt", "greaterthan", ">"] {
        environment.add_test(name, |a: &Value, b: &Value| -> TestResult {
            check_ordered(a, b).map(|()| a > b)
        });
    }
    for name in ["ge", ">="] {
        environment.add_test(name, |a: &Value, b: &Value| -> TestResult {
            check_ordered(a, b).map(|()| a >= b)
        });
    }
}

fn whole_remainder(x: &Value, by: &Value) -> ValueResult {
    if !is_number(x) || !is_number(by) {
        return Err(failed(format!("`{}` cannot be divided", type_name(x))));
    }
    number_remainder(x, by)
}

fn is_cased(text: &str, wanted: fn(char) -> bool, other: fn(char) -> bool) -> bool {
    text.chars().any(wanted) && !text.chars().any(other)
}
