//! Renders chat templates: Jinja templates with the same variables and filters as in transformers.
//!
//! A template comes with the weights and is untrusted. It has no access to files or the network. A
//! limit on the number of steps (fuel) stops infinite loops. The expected outputs in
//! `chat/templates` were rendered by transformers.

mod filters;
mod methods;
mod python;
mod rewrite;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Rest, Serde, Value as Jinja, ValueKind, ValueOrKwargs};
use minijinja::{AutoEscape, Environment, ErrorKind, State, escape_formatter};
use regex::Regex;
use serde_json::{Map, Value, json};

use crate::api::{Message, TemplateArgs};
use crate::error::{Context, Error, Result};

/// Maximum number of steps (fuel) to render one conversation. This is enough for thousands of
/// messages, even with the longest known templates.
const FUEL: u64 = 500_000;
/// Number of bytes of text that cost as much as one step, as in minijinja.
const BYTES_PER_STEP: u64 = 64;
/// Maximum nesting depth of a list or map that a template writes as text.
const MAX_DEPTH: usize = 128;
/// Maximum size of a template in bytes. Even templates with tool support are only about a thirtieth
/// of this size.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;

/// A special token: the name of its variable in templates, such as `bos_token`, and its text.
pub type SpecialToken = (&'static str, String);

/// A compiled chat template, together with its special tokens and the model's other templates.
#[derive(Debug)]
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
    tokens: Vec<SpecialToken>,
    others: Vec<(String, ChatTemplate)>,
    /// Cache of compiled templates from the data set's rows, keyed by template source.
    row_templates: Mutex<HashMap<String, Arc<ChatTemplate>>>,
    /// Cache of the results of [`takes_parts`](Self::takes_parts), keyed by role.
    takes_parts: Mutex<HashMap<String, bool>>,
}

/// Name of the template that is used if the row lists tools.
const WITH_TOOLS: &str = "tool_use";
/// Maximum number of cached templates from rows. A data set usually has one or two.
const MAX_ROW_TEMPLATES: usize = 64;

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// Fails if the template is too long or not valid.
    pub fn new(source: String, tokens: Vec<SpecialToken>) -> Result<Self> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(Error::new(format!(
                "the model's chat template must not be longer than {MAX_TEMPLATE_BYTES} bytes, \
                got {}",
                source.len()
            )));
        }
        let environment = environment(&source)?;
        Ok(Self {
            source,
            environment,
            tokens,
            others: Vec::new(),
            row_templates: Mutex::default(),
            takes_parts: Mutex::default(),
        })
    }

    /// Compiles and adds the model's other templates, given as pairs of name and source.
    ///
    /// # Errors
    /// Fails if a template is too long or not valid.
    pub fn with_others(mut self, others: Vec<(String, String)>) -> Result<Self> {
        for (name, source) in others {
            let other = Self::new(source, self.tokens.clone())
                .within(|| format!("cannot use the model's chat template `{name}`"))?;
            self.others.push((name, other));
        }
        Ok(self)
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Name and source of each of the other templates.
    pub fn others(&self) -> impl Iterator<Item = (&str, &str)> {
        self.others.iter().map(|(name, other)| (name.as_str(), other.source()))
    }

    /// Variable name and text of each special token.
    pub fn tokens(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tokens.iter().map(|(name, token)| (*name, token.as_str()))
    }

    /// Renders a conversation as text. If `add_generation_prompt` is true, the text ends with the
    /// beginning of the assistant's turn.
    ///
    /// # Errors
    /// Fails if the template fails, or if it rejects the conversation.
    pub fn render(
        &self,
        messages: &[Message],
        args: &TemplateArgs,
        add_generation_prompt: bool,
    ) -> Result<String> {
        // Choose the template as transformers' `get_chat_template` does.
        let other = |wanted: &str| {
            self.others.iter().find(|(name, _)| name == wanted).map(|(_, other)| other)
        };
        match (args.variables().get("chat_template").and_then(Value::as_str), args.tools()) {
            (Some(wanted), _) => match other(wanted) {
                Some(other) => other.fill(messages, args, add_generation_prompt),
                None => self.row_template(wanted)?.fill(messages, args, add_generation_prompt),
            },
            (None, Some(_)) => {
                other(WITH_TOOLS).unwrap_or(self).fill(messages, args, add_generation_prompt)
            }
            (None, None) => self.fill(messages, args, add_generation_prompt),
        }
    }

    /// Compiles a template from a row, or takes it from the cache.
    fn row_template(&self, source: &str) -> Result<Arc<Self>> {
        let mut kept = self.row_templates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(template) = kept.get(source) {
            return Ok(template.clone());
        }
        let template = Self::new(source.to_owned(), self.tokens.clone())
            .within(|| "cannot use the row's `chat_template`".to_owned())?;
        let template = Arc::new(template);
        if kept.len() < MAX_ROW_TEMPLATES {
            kept.insert(source.to_owned(), template.clone());
        }
        Ok(template)
    }

    fn fill(
        &self,
        messages: &[Message],
        args: &TemplateArgs,
        add_generation_prompt: bool,
    ) -> Result<String> {
        let messages = messages
            .iter()
            .map(|message| self.message_fields(message))
            .collect::<Result<Vec<_>>>()?;
        self.run(&messages, args, add_generation_prompt)
    }

    fn run(
        &self,
        messages: &[Cow<'_, Map<String, Value>>],
        args: &TemplateArgs,
        add_generation_prompt: bool,
    ) -> Result<String> {
        let scope = self.scope(messages, args, add_generation_prompt);
        let template = self
            .environment
            .get_template("chat")
            .map_err(|e| failed("cannot load the model's chat template", &e))?;
        let role = |m: &Map<String, Value>| {
            m.get("role").and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        template.render(scope).map_err(|e| match (e.kind(), e.detail()) {
            (ErrorKind::OutOfFuel, _) => Error::new(format!(
                "the model's chat template did not finish: it was stopped after {FUEL} steps or {} \
                MB of text",
                FUEL * BYTES_PER_STEP / 1_000_000
            )),
            (ErrorKind::InvalidOperation, Some(reason)) if reason.starts_with(REFUSED) => {
                Error::new(format!(
                    "the model's chat template rejected the conversation: {}",
                    &reason[REFUSED.len()..]
                ))
                .hint(format!(
                    "check the order of the roles: {}",
                    messages.iter().map(|m| role(m)).collect::<Vec<_>>().join(", ")
                ))
            }
            _ => failed("the model's chat template failed", &e),
        })
    }

    /// The template's variables. The variables of a row override the special tokens, as in
    /// transformers.
    fn scope(
        &self,
        messages: &[Cow<'_, Map<String, Value>>],
        args: &TemplateArgs,
        add_generation_prompt: bool,
    ) -> Jinja {
        let messages: Vec<Jinja> =
            messages.iter().map(|m| Jinja::from(Serde(with_reasoning(m)))).collect();
        // A missing special token must stay undefined, because `none` would be written into the
        // text.
        let tokens = self.tokens.iter().map(|(name, token)| (*name, Jinja::from(token.as_str())));
        let variables = args.variables().iter().filter(|(name, _)| *name != "chat_template");
        let variables = variables.map(|(name, value)| (name.as_str(), Jinja::from(Serde(value))));
        let own = [
            ("messages", Jinja::from(messages)),
            ("tools", args.tools().map_or(Jinja::from(()), |x| Jinja::from(Serde(x)))),
            (
                "documents",
                args.variables()
                    .get("documents")
                    .map_or(Jinja::from(()), |x| Jinja::from(Serde(x))),
            ),
            ("add_generation_prompt", add_generation_prompt.into()),
        ];
        Jinja::from_pairs(tokens.chain(variables).chain(own))
    }

    /// The fields of a message. If the content is a list of parts and the template only accepts
    /// text, the parts are joined.
    fn message_fields<'m>(&self, message: &'m Message) -> Result<Cow<'m, Map<String, Value>>> {
        let Some(parts) = message.parts().filter(|_| !self.takes_parts(message.role())) else {
            return Ok(Cow::Borrowed(message.fields()));
        };
        let kind =
            |part: &Value| part.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        if let Some(other) = parts.iter().map(kind).find(|kind| kind != "text") {
            return Err(Error::new(format!(
                "a message has a content part of type `{other}`, but the model's chat template \
                only accepts text"
            ))
            .hint("write the content as text"));
        }
        let mut fields = message.fields().clone();
        fields.insert("content".to_owned(), message.text().into_owned().into());
        Ok(Cow::Owned(fields))
    }

    /// True if the template accepts a list of parts as the content of a message with this role.
    /// This is tested with a short conversation. If a template does not accept lists, it fails,
    /// omits the text, or writes the list in Python's notation.
    fn takes_parts(&self, role: &str) -> bool {
        if let Some(known) =
            self.takes_parts.lock().unwrap_or_else(PoisonError::into_inner).get(role)
        {
            return *known;
        }
        const CONTENT: &str = "parts-or-text";
        let turn = |role: &str, content: Value| {
            Map::from_iter([("role".to_owned(), role.into()), ("content".to_owned(), content)])
        };
        let call = json!([{"id": "abcdefghi", "type": "function", "function": {"name": "f",
            "arguments": {}}}]);
        // Conversations that contain a message with this role. A template most likely accepts the
        // first conversation.
        let conversations = |content: Value| -> Vec<Vec<Map<String, Value>>> {
            let message = turn(role, content);
            let (user, mut caller, mut answer) =
                (turn("user", "a".into()), turn("assistant", "".into()), message.clone());
            caller.insert("tool_calls".to_owned(), call.clone());
            answer.extend([
                ("tool_call_id".to_owned(), "abcdefghi".into()),
                ("name".to_owned(), "f".into()),
            ]);
            match role {
                "user" => vec![vec![message]],
                "assistant" => vec![vec![user, message]],
                "system" | "developer" => vec![vec![message, user]],
                _ => vec![vec![user.clone(), caller, answer], vec![user, message]],
            }
        };
        let render = |messages: &[Map<String, Value>]| {
            let messages: Vec<_> = messages.iter().map(Cow::Borrowed).collect();
            self.run(&messages, &TemplateArgs::default(), false).ok()
        };
        let names_of_fields =
            |text: &str| text.matches("'text'").count() + text.matches("\"text\"").count();
        let both = conversations(CONTENT.into())
            .into_iter()
            .zip(conversations(json!([{"type": "text", "text": CONTENT}])));
        let takes = both
            .filter_map(|(text, parts)| {
                Some((render(&text).filter(|text| text.contains(CONTENT))?, render(&parts)))
            })
            .map(|(text, parts)| {
                parts.is_some_and(|parts| {
                    parts.contains(CONTENT) && names_of_fields(&parts) == names_of_fields(&text)
                })
            })
            .next()
            // The template does not accept text for this role, so pass the list unchanged.
            .unwrap_or(true);
        self.takes_parts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(role.to_owned(), takes);
        takes
    }
}

/// Creates a Jinja environment with the template and the same settings as in transformers.
fn environment(source: &str) -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_formatter(|out, state, x| match x.as_str() {
        // minijinja only subtracts the fuel after writing the text, so check first that there is
        // enough fuel.
        Some(text)
            if state
                .fuel_levels()
                .is_some_and(|(_, left)| text.len() as u64 / BYTES_PER_STEP > left) =>
        {
            Err(ErrorKind::OutOfFuel.into())
        }
        Some(_) => escape_formatter(out, state, x),
        None => Ok(out.write_str(&python::python_str(state, x)?)?),
    });
    environment.set_unknown_method_callback(methods::of_python);
    filters::add(&mut environment);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", |state: &State, format: &str| {
        // A two-character field such as `%B` can produce up to nine characters.
        use_fuel(state, 4 * format.len())?;
        strftime(format, now())
    });
    environment.add_filter("tojson", |state: &State, x: &Jinja, args: Rest<ValueOrKwargs>| {
        tojson(state, x, &args.into_values())
    });
    let invalid = |e: minijinja::Error| failed("the model's chat template is not valid", &e);
    let foreign = |e: minijinja::Error| Error::internal(e.to_string());
    let syntax = environment
        .syntax()
        .to_builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .map_err(foreign)?;
    // Jinja2 treats all line endings as `\n`.
    let lines = source.replace("\r\n", "\n").replace('\r', "\n");
    let rewritten =
        rewrite::rewritten(&without_training_marks(&lines)?, syntax).map_err(invalid)?;
    // The rewriting above already applied `trim_blocks` and `lstrip_blocks`, so they stay off here.
    environment.set_syntax(
        environment.syntax().to_builder().keep_trailing_newline(true).build().map_err(foreign)?,
    );
    environment.add_template_owned("chat", rewritten).map_err(invalid)?;
    Ok(environment)
}

/// Names of the field that contains a message's reasoning. Most templates read `reasoning_content`.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// The fields of a message as transformers passes them to the template. If the message contains
/// reasoning, the template can read it as `reasoning_content` and as `thinking`.
fn with_reasoning(fields: &Map<String, Value>) -> Cow<'_, Map<String, Value>> {
    let Some(reasoning) = REASONING.iter().find_map(|name| fields.get(*name)) else {
        return Cow::Borrowed(fields);
    };
    let mut all = Map::from_iter([("thinking".to_owned(), reasoning.clone())]);
    all.extend(fields.clone());
    all.insert("reasoning_content".to_owned(), reasoning.clone());
    Cow::Owned(all)
}

/// Replaces `{% generation %}` tags with `{% with %}`. Training templates mark the assistant's text
/// with `generation`. This tag opens a variable scope, as `with` does, but does not change the
/// output.
fn without_training_marks(source: &str) -> Result<String> {
    let marks = Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
        .map_err(|e| Error::internal(e.to_string()))?;
    Ok(marks.replace_all(source, "{%$1 ${2}with $3%}").into_owned())
}

/// Prefix that distinguishes errors raised by the template from minijinja's own errors.
const REFUSED: &str = "refused: ";

fn raise_exception(reason: &str) -> Result<Jinja, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{REFUSED}{reason}")))
}

fn failed(what: &str, e: &minijinja::Error) -> Error {
    Error::new(format!("{what}: {e}"))
}

/// Subtracts the fuel for a string of `bytes` bytes. Called before the string is created.
fn use_fuel(state: &State, bytes: usize) -> Result<(), minijinja::Error> {
    state.consume_fuel(bytes as u64 / BYTES_PER_STEP)
}

/// Subtracts the fuel for writing a value before the value is written. minijinja only subtracts it
/// afterwards. This is too late for values that grow exponentially. For example,
/// `{% set a = [a, a] %}` takes only a few steps, but doubles the length of the text.
///
/// # Errors
/// Fails if the fuel is used up, if the nesting is too deep, if the value is a function or an
/// iterator, or if a list or map contains an undefined value.
fn use_fuel_for_value(state: &State, x: &Jinja, depth: usize) -> Result<(), minijinja::Error> {
    match x.kind() {
        ValueKind::Map | ValueKind::Seq => {}
        ValueKind::Iterable | ValueKind::Plain => {
            return Err(methods::failed(format!(
                "cannot write a value of type `{}` as text",
                python::type_name(x)
            )));
        }
        ValueKind::Undefined if depth > 0 => {
            return Err(methods::failed(
                "cannot write a list or dict with an undefined value as text",
            ));
        }
        _ => {
            state.consume_fuel(1)?;
            // Charge for more than the length, because a character can take up to six bytes in
            // JSON, and because the output is copied.
            return use_fuel(state, 4 * x.as_str().map_or(0, str::len));
        }
    }
    if depth == MAX_DEPTH {
        let what = format!("lists and maps are nested more than {MAX_DEPTH} levels deep");
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, what));
    }
    for part in x.try_iter()? {
        state.consume_fuel(4)?;
        use_fuel_for_value(state, &part, depth + 1)?;
        if x.kind() == ValueKind::Map {
            use_fuel_for_value(state, &x.get_item(&part)?, depth + 1)?;
        }
    }
    Ok(())
}

/// Python's `json.dumps(x, ensure_ascii=False)`. In transformers, this function replaces Jinja's
/// own `tojson` filter.
fn tojson(state: &State, x: &Jinja, args: &[Jinja]) -> Result<String, minijinja::Error> {
    if x.is_undefined() {
        return Err(methods::failed("an undefined value cannot be written as JSON"));
    }
    use_fuel_for_value(state, x, 0)?;
    let [ascii, indent, separators, sorted] =
        methods::bind(args, ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let given = |flag: Option<Jinja>| flag.is_some_and(|flag| flag.is_true());
    let indent = match indent {
        Some(indent) if indent.as_str().is_some() => indent.as_str().map(str::to_owned),
        Some(indent) if !indent.is_none() => {
            let width = if indent.kind() == ValueKind::Bool {
                i64::from(indent.is_true())
            } else {
                i64::try_from(indent)?
            };
            let width = usize::try_from(width).unwrap_or(0);
            use_fuel(state, width)?;
            Some(" ".repeat(width))
        }
        _ => None,
    };
    let (between, behind_key) = match separators.filter(|separators| !separators.is_none()) {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(separators) => {
            let two: Vec<Jinja> = separators.try_iter()?.collect();
            match (
                two.len(),
                two.first().and_then(Jinja::as_str),
                two.get(1).and_then(Jinja::as_str),
            ) {
                (2, Some(between), Some(behind_key)) => (between.to_owned(), behind_key.to_owned()),
                _ => return Err(methods::failed("`separators` of `tojson` must be two strings")),
            }
        }
    };
    let mut out = String::new();
    Dump { state, indent, sorted: given(sorted), ascii: given(ascii), between, behind_key }
        .write(&mut out, x, 0)?;
    Ok(out)
}

/// Settings of `json.dumps`.
struct Dump<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    indent: Option<String>,
    sorted: bool,
    ascii: bool,
    between: String,
    behind_key: String,
}

type WriteResult = Result<(), minijinja::Error>;

impl Dump<'_, '_, '_> {
    fn write(&self, out: &mut String, x: &Jinja, depth: usize) -> WriteResult {
        match x.kind() {
            ValueKind::Seq => {
                let items: Vec<Jinja> = x.try_iter()?.collect();
                self.list(out, '[', ']', depth, items.len(), |out, i| {
                    self.write(out, &items[i], depth + 1)
                })
            }
            ValueKind::Map => {
                let mut keys: Vec<Jinja> = x.try_iter()?.collect();
                if self.sorted {
                    keys.windows(2).try_for_each(|two| python::check_ordered(&two[0], &two[1]))?;
                    keys.sort();
                }
                self.list(out, '{', '}', depth, keys.len(), |out, i| {
                    match keys[i].as_str() {
                        Some(key) => self.string(out, key),
                        None => self.string(out, &scalar(&keys[i])?),
                    }
                    out.push_str(&self.behind_key);
                    self.write(out, &x.get_item(&keys[i])?, depth + 1)
                })
            }
            ValueKind::String => {
                self.string(out, x.as_str().unwrap_or_default());
                Ok(())
            }
            _ => {
                out.push_str(&scalar(x)?);
                Ok(())
            }
        }
    }

    fn list(
        &self,
        out: &mut String,
        open: char,
        close: char,
        depth: usize,
        len: usize,
        item: impl Fn(&mut String, usize) -> WriteResult,
    ) -> WriteResult {
        let line = |out: &mut String, depth: usize| -> WriteResult {
            if let Some(indent) = &self.indent {
                use_fuel(self.state, indent.len() * depth)?;
                out.push('\n');
                out.extend(std::iter::repeat_n(indent.as_str(), depth));
            }
            Ok(())
        };
        out.push(open);
        for i in 0..len {
            if i > 0 {
                use_fuel(self.state, self.between.len())?;
                out.push_str(&self.between);
            }
            line(out, depth + 1)?;
            item(out, i)?;
        }
        if len > 0 {
            line(out, depth)?;
        }
        out.push(close);
        Ok(())
    }

    fn string(&self, out: &mut String, text: &str) {
        let quoted = Value::from(text).to_string();
        if !self.ascii {
            out.push_str(&quoted);
            return;
        }
        for c in quoted.chars() {
            if matches!(c, ' '..='~') {
                out.push(c);
            } else {
                out.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
            }
        }
    }
}

/// Writes a number, a boolean or none as JSON.
fn scalar(x: &Jinja) -> Result<String, minijinja::Error> {
    match x.kind() {
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if x.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => python::number(x).map(|number| match number.as_str() {
            "inf" => "Infinity".to_owned(),
            "-inf" => "-Infinity".to_owned(),
            "nan" => "NaN".to_owned(),
            _ => number,
        }),
        _ => Err(methods::failed(format!(
            "cannot write a value of type `{}` as JSON",
            python::type_name(x)
        ))),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Python's strftime for the fields that chat templates use. The time is in UTC, so that a model's
/// input does not depend on the time zone of the machine.
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
                return Err(minijinja::Error::new(
                    ErrorKind::InvalidOperation,
                    format!("`{field}` is not supported by `strftime_now`"),
                ));
            }
        }
    }
    Ok(out)
}

/// Year, month and day of month in the Gregorian calendar, for a number of days since 1970-01-01.
fn civil(days: u64) -> (u64, usize, u64) {
    let leap = |year: u64| {
        (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400)
    };
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
        turns.iter().map(|(role, content)| Message::new(*role, *content)).collect()
    }

    fn render(template: &str, turns: &[(&str, &str)]) -> Result<String> {
        ChatTemplate::new(
            template.to_owned(),
            vec![("bos_token", "<s>".into()), ("eos_token", "</s>".into())],
        )?
        .render(&messages(turns), &TemplateArgs::default(), true)
    }

    #[test]
    fn block_tags_remove_their_line_as_in_transformers() {
        let template = "{{ bos_token }}\n{% for m in messages %}\n    \
            {% if m.role == 'user' %}\n{{ m['content'].strip() }}\n    \
            {% endif %}\n{% endfor %}\n{{ eos_token }}\n";
        assert_eq!(render(template, &[("user", " hi "), ("x", "y")]).unwrap(), "<s>\nhi\n</s>");
    }

    #[test]
    fn a_template_that_runs_or_grows_without_limit_is_an_error() {
        let exponential = |rest: &str| {
            format!(
                "{{% set ns = namespace(a=[1]) %}}{{% for i in range(60) %}}{{% set ns.a = [ns.a, \
                    ns.a] %}}{{% endfor %}}{rest}"
            )
        };
        for template in [
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "{% set ns = namespace(s='xxxxxxxx') %}{% for a in range(60) %}\
                {% set ns.s = ns.s + ns.s %}{% endfor %}",
            "{{ 'x' * 100000000 }}",
            "{{ [messages] * 99999999 }}",
            "{{ ([messages] * 99999999) | tojson }}",
            "{{ ('x' * 9999999).replace('x', 'y' * 999) }}",
            "{{ ('x' * 9999999).split('x') | length }}",
            "{{ ('\\n' * 9999999).splitlines() | length }}",
            "{{ strftime_now('%Y' * 9999999) }}",
            &exponential("{{ ns.a }}"),
            &exponential("{% set text %}{{ ns }}{% endset %}"),
            &exponential("{{ ns.a | tojson }}"),
            &exponential("{{ {'a': ns.a} | tojson(indent=2) }}"),
        ] {
            let e = render(template, &[("user", "a")]).unwrap_err();
            assert!(e.message().contains("did not finish"), "{template}: {e:?}");
        }
        for template in [
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
            "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns | tojson }}",
            "{% set ns = namespace(a=[]) %}{% for i in range(9999) %}{% set ns.a = [ns.a] %}\
                {% endfor %}{{ ns.a }}",
        ] {
            let e = render(template, &[]).unwrap_err();
            assert!(
                e.message().contains("recursion limit") || e.message().contains("levels deep"),
                "{template}: {e:?}"
            );
        }
    }

    #[test]
    fn an_exception_in_a_template_is_an_error_with_its_reason_and_the_roles() {
        let e = render(
            "{{ raise_exception('roles must alternate') }}",
            &[("user", "a"), ("user", "b")],
        )
        .unwrap_err();
        assert_eq!(
            e.message(),
            "the model's chat template rejected the conversation: roles must alternate"
        );
        assert_eq!(e.hints(), ["check the order of the roles: user, user"]);
    }

    #[test]
    fn an_invalid_template_is_an_error() {
        for template in [
            "{% for %}",
            "{{ x",
            "{% if a %}",
            "{{ nothing.here.there }}",
            "{{ no_such_function() }}",
            "{{ 'a' | no_such_filter }}",
        ] {
            assert!(render(template, &[]).is_err(), "{template}");
        }
    }

    #[test]
    fn json_is_written_as_in_python() {
        let turns = [("user", "é \"<q>\" & 'a'\n")];
        assert_eq!(
            render("{{ messages | tojson }}", &turns).unwrap(),
            r#"[{"role": "user", "content": "é \"<q>\" & 'a'\n"}]"#
        );
        assert_eq!(
            render("{{ messages[0] | tojson(sort_keys=true, ensure_ascii=true) }}", &turns)
                .unwrap(),
            r#"{"content": "\u00e9 \"<q>\" & 'a'\n", "role": "user"}"#
        );
        assert_eq!(
            render("{{ {'a': [1, 2.5, true, none], 'b': {}} | tojson(indent=2) }}", &[]).unwrap(),
            "{\n  \"a\": [\n    1,\n    2.5,\n    true,\n    null\n  ],\n  \"b\": {}\n}"
        );
    }

    #[test]
    fn text_is_not_escaped_and_python_methods_work() {
        assert_eq!(
            render("{{ messages[0].content }}", &[("u", "<a> & 'b'")]).unwrap(),
            "<a> & 'b'"
        );
        let template = "{% set m = messages[0] %}{{ m.content.split('|')[1].upper() }}{{ \
            m.get('name', '-') }}{% for k, v in m.items() %}{{ k }}{% endfor %}{{ \
            m.content.startswith('a') }}";
        assert_eq!(render(template, &[("u", "a|b")]).unwrap(), "B-rolecontentTrue");
        assert_eq!(
            render(
                "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content \
                    }}{% endfor %}{{ tools is none }}",
                &[("u", "a"), ("u", "b")]
            )
            .unwrap(),
            "bTrue"
        );
    }

    #[test]
    fn dates_follow_the_gregorian_calendar() {
        // 1709210096 is 12:34:56 on 2024-02-29, a Thursday.
        assert_eq!(
            strftime("%A %a %d %B %b %Y %y-%m %H:%M:%S%%", 1_709_210_096).unwrap(),
            "Thursday Thu 29 February Feb 2024 24-02 12:34:56%"
        );
        assert_eq!(
            [0, 43_199, 43_200].map(|s| strftime("%I %p", s).unwrap()),
            ["12 AM", "11 AM", "12 PM"]
        );
        assert_eq!(strftime("%Y-%m-%d", 0).unwrap(), "1970-01-01");
        assert!(strftime("%Q", 0).is_err());
    }
}
