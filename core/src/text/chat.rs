//! Chat templates: Jinja as transformers runs it, over the same names.
//!
//! A template comes with the weights, from anywhere. It can compute, it reaches nothing, and fuel ends one that would
//! not end. What transformers makes of such templates stands in `chat/templates`, written by Python.

mod methods;

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Value as Jinja, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind, State, context, escape_formatter};
use regex::Regex;
use serde_json::Value;

use crate::api::Message;
use crate::error::{Error, Result};

/// Steps that a template may take for one conversation: thousands of messages through the longest templates there are.
const FUEL: u64 = 500_000;
/// Bytes of what a template makes that cost as much as a step; minijinja counts so.
const BYTES_A_STEP: u64 = 64;
/// Levels of lists and maps within each other that are written out.
const DEEPEST: usize = 128;
/// Bytes of a template; those of models with tools have a thirtieth.
const LONGEST: usize = 1 << 20;

/// A compiled chat template with the special tokens in its scope.
#[derive(Debug)]
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
    bos: Option<String>,
    eos: Option<String>,
    pad: Option<String>,
}

impl ChatTemplate {
    /// Compiles it.
    ///
    /// # Errors
    /// Where it is not valid.
    pub fn new(source: String, bos: Option<String>, eos: Option<String>, pad: Option<String>) -> Result<Self> {
        if source.len() > LONGEST {
            return Err(Error::new(format!("the model's chat template has {} bytes", source.len())).hint(format!("valid: up to {LONGEST}")));
        }
        let mut environment = Environment::new();
        let syntax = environment.syntax().to_builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| Error::internal(e.to_string()))?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_formatter(|out, state, x| match x.as_str() {
            // Written out it will be paid for; there has to be as much.
            Some(text) if state.fuel_levels().is_some_and(|(_, left)| text.len() as u64 / BYTES_A_STEP > left) => Err(ErrorKind::OutOfFuel.into()),
            Some(_) => escape_formatter(out, state, x),
            None => weigh(state, x, 0).and_then(|()| escape_formatter(out, state, x)),
        });
        environment.set_unknown_method_callback(methods::of_python);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", |state: &State, format: &str| {
            // A field of two letters is written with up to nine.
            pay(state, 4 * format.len())?;
            strftime(format, now())
        });
        environment.add_filter("tojson", tojson);
        environment.add_template_owned("chat", without_training_marks(&source)?).map_err(|e| failed("the model's chat template is not valid", &e))?;
        Ok(Self { source, environment, bos, eos, pad })
    }

    /// Its own text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The conversation as text.
    ///
    /// # Errors
    /// Where the template fails, or refuses the conversation.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let messages_in_scope: Vec<Jinja> = messages.iter().map(|m| Jinja::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())])).collect();
        // A token that the model does not have is not there at all: as `none` it would be written into the text.
        let token = |text: &Option<String>| text.as_deref().map_or(Jinja::UNDEFINED, Jinja::from);
        let scope = context! {
            messages => messages_in_scope,
            add_generation_prompt,
            bos_token => token(&self.bos),
            eos_token => token(&self.eos),
            pad_token => token(&self.pad),
            tools => (),
            documents => (),
        };
        let template = self.environment.get_template("chat").map_err(|e| failed("the model's chat template is lost", &e))?;
        template.render(scope).map_err(|e| match (e.kind(), e.detail()) {
            (ErrorKind::OutOfFuel, _) => {
                Error::new(format!("the model's chat template does not end: stopped after {FUEL} steps, or {} MB of text", FUEL * BYTES_A_STEP / 1_000_000))
            }
            (ErrorKind::InvalidOperation, Some(reason)) if reason.starts_with(REFUSED) => {
                Error::new(format!("the model's chat template refuses the conversation: {}", &reason[REFUSED.len()..]))
                    .hint(format!("the roles in turn: {}", messages.iter().map(|m| m.role.as_str()).collect::<Vec<_>>().join(", ")))
            }
            _ => failed("the model's chat template failed", &e),
        })
    }
}

/// Templates made for training mark what the assistant says with `{% generation %}`, which leaves the text as it is. In
/// their place stands a block that does no more than keep its variables to itself, as theirs does.
fn without_training_marks(source: &str) -> Result<String> {
    let marks = Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").map_err(|e| Error::internal(e.to_string()))?;
    Ok(marks.replace_all(source, "{%$1 ${2}with $3%}").into_owned())
}

/// Marks what the template itself says, among minijinja's own messages.
const REFUSED: &str = "refused: ";

fn raise_exception(reason: &str) -> Result<Jinja, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{REFUSED}{reason}")))
}

fn failed(what: &str, e: &minijinja::Error) -> Error {
    Error::new(format!("{what}: {e}"))
}

/// Pays for bytes that are about to be made.
fn pay(state: &State, bytes: usize) -> Result<(), minijinja::Error> {
    state.consume_fuel(bytes as u64 / BYTES_A_STEP)
}

/// Pays for all that a value holds before it is written out: minijinja asks for the price of a text when it is there, and
/// a list of the same list twice, of which there is a list twice and so on, takes few steps to make.
fn weigh(state: &State, x: &Jinja, depth: usize) -> Result<(), minijinja::Error> {
    if !matches!(x.kind(), ValueKind::Map | ValueKind::Seq | ValueKind::Iterable) {
        state.consume_fuel(1)?;
        // In JSON a letter may take six, and there is a copy on the way.
        return pay(state, 4 * x.as_str().map_or(0, str::len));
    }
    if depth == DEEPEST {
        let what = format!("lists and maps are more than {DEEPEST} levels deep in each other");
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, what));
    }
    for part in x.try_iter()? {
        state.consume_fuel(4)?;
        weigh(state, &part, depth + 1)?;
        if x.kind() == ValueKind::Map {
            weigh(state, &x.get_item(&part)?, depth + 1)?;
        }
    }
    Ok(())
}

/// Python's `json.dumps(x, ensure_ascii=False)`, which transformers puts in place of Jinja's own filter.
fn tojson(state: &State, x: &Jinja, options: Kwargs) -> Result<String, minijinja::Error> {
    weigh(state, x, 0)?;
    let indent: Option<usize> = options.get("indent")?;
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let separators: Option<Vec<String>> = options.get("separators")?;
    options.assert_all_used()?;
    let (between, behind_key) = match separators.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some([between, behind_key]) => (between.clone(), behind_key.clone()),
        Some(_) => return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "`separators` of tojson are two texts")),
    };
    let x = serde_json::to_value(x).map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, "the value is no JSON").with_source(e))?;
    let mut out = String::new();
    Dump { indent: indent.map(|i| i.min(16)), sorted, ascii, between, behind_key }.write(&mut out, &x, 0);
    Ok(out)
}

struct Dump {
    indent: Option<usize>,
    sorted: bool,
    ascii: bool,
    between: String,
    behind_key: String,
}

impl Dump {
    fn write(&self, out: &mut String, x: &Value, depth: usize) {
        match x {
            Value::Array(items) => self.list(out, '[', ']', depth, items.len(), |out, i| self.write(out, &items[i], depth + 1)),
            Value::Object(map) => {
                let mut entries: Vec<(&String, &Value)> = map.iter().collect();
                if self.sorted {
                    entries.sort_by_key(|(key, _)| *key);
                }
                self.list(out, '{', '}', depth, entries.len(), |out, i| {
                    self.string(out, entries[i].0);
                    out.push_str(&self.behind_key);
                    self.write(out, entries[i].1, depth + 1);
                });
            }
            Value::String(text) => self.string(out, text),
            other => out.push_str(&other.to_string()),
        }
    }

    fn list(&self, out: &mut String, open: char, close: char, depth: usize, len: usize, item: impl Fn(&mut String, usize)) {
        let line = |out: &mut String, depth: usize| {
            if let Some(indent) = self.indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent * depth));
            }
        };
        out.push(open);
        for i in 0..len {
            if i > 0 {
                out.push_str(&self.between);
            }
            line(out, depth + 1);
            item(out, i);
        }
        if len > 0 {
            line(out, depth);
        }
        out.push(close);
    }

    fn string(&self, out: &mut String, text: &str) {
        let quoted = Value::from(text).to_string();
        if !self.ascii {
            out.push_str(&quoted);
            return;
        }
        for c in quoted.chars() {
            if c.is_ascii() {
                out.push(c);
            } else {
                out.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
            }
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

const MONTHS: [&str; 12] = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Python's strftime for the fields that chat templates use, in UTC: the zone of the machine is no part of a model.
fn strftime(format: &str, seconds: u64) -> Result<String, minijinja::Error> {
    let (days, second) = (seconds / 86400, seconds % 86400);
    let (year, month, day) = civil(days);
    let (month_name, day_name) = (MONTHS[month - 1], DAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&format!("{:02}", year % 100)),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(&month_name[..3]),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('H') => out.push_str(&format!("{:02}", second / 3600)),
            Some('M') => out.push_str(&format!("{:02}", second / 60 % 60)),
            Some('I') => out.push_str(&format!("{:02}", (second / 3600 + 11) % 12 + 1)),
            Some('p') => out.push_str(if second < 43200 { "AM" } else { "PM" }),
            Some('S') => out.push_str(&format!("{:02}", second % 60)),
            Some('%') => out.push('%'),
            other => {
                let field = other.map_or_else(|| "%".to_owned(), |c| format!("%{c}"));
                return Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now does not know `{field}`")));
            }
        }
    }
    Ok(out)
}

/// Year, month and day of a day since 1970, in the Gregorian calendar.
fn civil(days: u64) -> (u64, usize, u64) {
    let leap = |year: u64| (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    let (mut year, mut day) = (1970, days);
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    (year, month + 1, day + 1)
}

#[cfg(test)]
mod golden_tests;

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(turns: &[(&str, &str)]) -> Vec<Message> {
        turns.iter().map(|(role, content)| Message { role: (*role).into(), content: (*content).into() }).collect()
    }

    fn render(template: &str, turns: &[(&str, &str)]) -> Result<String> {
        ChatTemplate::new(template.to_owned(), Some("<s>".into()), Some("</s>".into()), None)?.render(&messages(turns), true)
    }

    #[test]
    fn blocks_take_their_line_with_them_as_in_transformers() {
        let template = "{{ bos_token }}\n{% for m in messages %}\n    {% if m.role == 'user' %}\n{{ m['content'].strip() }}\n    {% endif %}\n{% endfor %}\n{{ eos_token }}\n";
        assert_eq!(render(template, &[("user", " hi "), ("x", "y")]).unwrap(), "<s>\nhi\n</s>");
    }

    #[test]
    fn a_template_that_loops_for_ever_or_grows_for_ever_is_an_error() {
        let grown = |rest: &str| format!("{{% set ns = namespace(a=[1]) %}}{{% for i in range(60) %}}{{% set ns.a = [ns.a, ns.a] %}}{{% endfor %}}{rest}");
        for template in [
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "{% set ns = namespace(s='xxxxxxxx') %}{% for a in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
            "{{ 'x' * 100000000 }}",
            "{{ [messages] * 99999999 }}",
            "{{ ([messages] * 99999999) | tojson }}",
            "{{ ('x' * 9999999).replace('x', 'y' * 999) }}",
            "{{ ('x' * 9999999).split('x') | length }}",
            "{{ ('\\n' * 9999999).splitlines() | length }}",
            "{{ strftime_now('%Y' * 9999999) }}",
            &grown("{{ ns.a }}"),
            &grown("{% set text %}{{ ns }}{% endset %}"),
            &grown("{{ ns.a | tojson }}"),
            &grown("{{ {'a': ns.a} | tojson(indent=2) }}"),
        ] {
            let e = render(template, &[("user", "a")]).unwrap_err();
            assert!(e.message().contains("does not end"), "{template}: {e:?}");
        }
        for template in [
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
            "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns | tojson }}",
            "{% set ns = namespace(a=[]) %}{% for i in range(9999) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a }}",
        ] {
            let e = render(template, &[]).unwrap_err();
            assert!(e.message().contains("recursion limit") || e.message().contains("levels deep"), "{template}: {e:?}");
        }
    }

    #[test]
    fn a_refusal_is_told_in_the_templates_words_with_the_roles() {
        let e = render("{{ raise_exception('roles must alternate') }}", &[("user", "a"), ("user", "b")]).unwrap_err();
        assert_eq!(e.message(), "the model's chat template refuses the conversation: roles must alternate");
        assert_eq!(e.hints(), ["the roles in turn: user, user"]);
    }

    #[test]
    fn an_invalid_template_is_an_error() {
        for template in ["{% for %}", "{{ x", "{% if a %}", "{{ nothing.here.there }}", "{{ no_such_function() }}", "{{ 'a' | no_such_filter }}"] {
            assert!(render(template, &[]).is_err(), "{template}");
        }
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let turns = [("user", "é \"<q>\" & 'a'\n")];
        assert_eq!(render("{{ messages | tojson }}", &turns).unwrap(), r#"[{"role": "user", "content": "é \"<q>\" & 'a'\n"}]"#);
        assert_eq!(
            render("{{ messages[0] | tojson(sort_keys=true, ensure_ascii=true) }}", &turns).unwrap(),
            r#"{"content": "\u00e9 \"<q>\" & 'a'\n", "role": "user"}"#
        );
        assert_eq!(
            render("{{ {'a': [1, 2.5, true, none], 'b': {}} | tojson(indent=2) }}", &[]).unwrap(),
            "{\n  \"a\": [\n    1,\n    2.5,\n    true,\n    null\n  ],\n  \"b\": {}\n}"
        );
    }

    #[test]
    fn text_is_not_escaped_and_python_methods_are_there() {
        assert_eq!(render("{{ messages[0].content }}", &[("u", "<a> & 'b'")]).unwrap(), "<a> & 'b'");
        let template = "{% set m = messages[0] %}{{ m.content.split('|')[1].upper() }}{{ m.get('name', '-') }}{% for k, v in m.items() %}{{ k }}{% endfor %}{{ m.content.startswith('a') }}";
        assert_eq!(render(template, &[("u", "a|b")]).unwrap(), "B-rolecontentTrue");
        assert_eq!(
            render(
                "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% endfor %}{{ tools is none }}",
                &[("u", "a"), ("u", "b")]
            )
            .unwrap(),
            "bTrue"
        );
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        // 2024-02-29 was a Thursday; 1709210096 is 12:34:56 of it.
        assert_eq!(strftime("%A %a %d %B %b %Y %y-%m %H:%M:%S%%", 1_709_210_096).unwrap(), "Thursday Thu 29 February Feb 2024 24-02 12:34:56%");
        assert_eq!([0, 43_199, 43_200].map(|s| strftime("%I %p", s).unwrap()), ["12 AM", "11 AM", "12 PM"]);
        assert_eq!(strftime("%Y-%m-%d", 0).unwrap(), "1970-01-01");
        assert!(strftime("%Q", 0).is_err());
    }
}
