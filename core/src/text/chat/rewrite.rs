//! Rewrites a template so that its operators behave as in Python.
//!
//! minijinja allows replacing filters but not operators. This module therefore parses a template
//! and writes it back with filter calls instead of these operators:
//!
//! - `'%s' % x`, which minijinja does not support
//! - `a < b`, which minijinja accepts for values of any types
//! - `a in b`, which is an error in Python for some types, but false in minijinja
//!
//! It also adds filters that reject loops over `none`. minijinja treats `none` as an empty list.
//!
//! Statements stay on their original lines, so that errors report the correct line.

use std::fmt::Write;

use minijinja::machinery::ast::{
    BinOpKind, Call, CallArg, CompareOpKind, Expr, Macro, Spanned, Stmt, UnaryOpKind,
};
use minijinja::machinery::{Span, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

// Filters that replace operators. Jinja2 has no filters with these names, so no template uses them.
pub const REMAINDER: &str = "__remainder";
pub const CONCATENATE: &str = "__concatenate";
pub const LESS: &str = "__less";
pub const LESS_OR_EQUAL: &str = "__less_or_equal";
pub const GREATER: &str = "__greater";
pub const GREATER_OR_EQUAL: &str = "__greater_or_equal";
pub const CONTAINED: &str = "__contained";
// Filters that check a value and return it unchanged.
pub const ITERABLE: &str = "__iterable";
pub const DEFINED: &str = "__defined";
pub const INDEX: &str = "__index";
pub const TEXT: &str = "__text";
/// Filter that turns a lazy result, such as the sum of two lists, into a list.
pub const LIST: &str = "__list";

/// Filters that iterate over their input. If the input is `none`, Jinja2 raises an error, but
/// minijinja treats it as an empty list.
const ITERATING: [&str; 12] = [
    "batch", "first", "groupby", "join", "list", "max", "min", "reverse", "slice", "sort", "sum",
    "unique",
];

/// Filters that convert their input to a string.
const TEXTUAL: [&str; 7] = ["capitalize", "lower", "replace", "safe", "title", "trim", "upper"];

/// Rewrites a template with filters in place of operators. Whitespace control, such as `{%-`, is
/// applied too.
///
/// # Errors
/// Fails if the template cannot be parsed, or if it imports, extends or includes another template.
pub fn rewritten(source: &str, syntax: SyntaxConfig) -> Result<String, Error> {
    let mut writer = Writer { source, out: String::with_capacity(2 * source.len()), line: 1 };
    match parse(source, "chat", syntax)? {
        Stmt::Template(template) => writer.all(&template.children)?,
        other => writer.statement(&other)?,
    }
    Ok(writer.out)
}

struct Writer<'s> {
    source: &'s str,
    out: String,
    line: u16,
}

type WriteResult = Result<(), Error>;

impl Writer<'_> {
    fn all(&mut self, statements: &[Stmt]) -> WriteResult {
        statements.iter().try_for_each(|statement| self.statement(statement))
    }

    /// Writes the start of a tag. Then writes line breaks until the rest of the tag is on its
    /// original line.
    fn open(&mut self, tag: &str, span: Span) {
        self.out.push_str(tag);
        while self.line < span.start_line {
            self.out.push('\n');
            self.line += 1;
        }
        self.out.push(' ');
    }

    fn tag(&mut self, text: &str) {
        self.out.push_str("{% ");
        self.out.push_str(text);
        self.out.push_str(" %}");
    }

    fn close(&mut self) {
        self.out.push_str(" %}");
    }

    fn raw(&mut self, text: &str, span: Span) {
        // Text that could be parsed as part of a tag is written as a string expression.
        if text.contains(['{', '}', '\r']) {
            self.open("{{", span);
            string(&mut self.out, text);
            self.out.push_str(" }}");
        } else {
            self.line = self
                .line
                .saturating_add(u16::try_from(text.matches('\n').count()).unwrap_or(u16::MAX));
            self.out.push_str(text);
        }
    }

    fn statement(&mut self, statement: &Stmt) -> WriteResult {
        match statement {
            Stmt::Template(x) => self.all(&x.children)?,
            Stmt::EmitRaw(x) => self.raw(x.raw, x.span()),
            Stmt::EmitExpr(x) => {
                self.open("{{", x.span());
                self.expr(&x.expr)?;
                self.out.push_str(" }}");
            }
            Stmt::ForLoop(x) => {
                self.open("{%", x.span());
                self.out.push_str("for ");
                self.target(&x.target)?;
                self.out.push_str(" in ");
                self.filtered(&x.iter, ITERABLE)?;
                if let Some(condition) = &x.filter_expr {
                    self.out.push_str(" if ");
                    self.expr(condition)?;
                }
                if x.recursive {
                    self.out.push_str(" recursive");
                }
                self.close();
                self.all(&x.body)?;
                if !x.else_body.is_empty() {
                    self.tag("else");
                    self.all(&x.else_body)?;
                }
                self.tag("endfor");
            }
            Stmt::IfCond(x) => {
                self.open("{%", x.span());
                self.out.push_str("if ");
                self.expr(&x.expr)?;
                self.close();
                self.all(&x.true_body)?;
                if !x.false_body.is_empty() {
                    self.tag("else");
                    self.all(&x.false_body)?;
                }
                self.tag("endif");
            }
            Stmt::WithBlock(x) => {
                self.open("{%", x.span());
                self.out.push_str("with ");
                for (i, (target, value)) in x.assignments.iter().enumerate() {
                    self.out.push_str(if i == 0 { "" } else { ", " });
                    let several = matches!(target, Expr::List(_) | Expr::Tuple(_));
                    self.out.push_str(if several { "(" } else { "" });
                    self.target(target)?;
                    self.out.push_str(if several { ") = " } else { " = " });
                    self.expr(value)?;
                }
                self.close();
                self.all(&x.body)?;
                self.tag("endwith");
            }
            Stmt::Set(x) => {
                self.open("{%", x.span());
                self.out.push_str("set ");
                self.target(&x.target)?;
                self.out.push_str(" = ");
                self.expr(&x.expr)?;
                self.close();
            }
            Stmt::SetBlock(x) => {
                self.open("{%", x.span());
                self.out.push_str("set ");
                self.target(&x.target)?;
                if let Some(filter) = &x.filter {
                    self.out.push_str(" | ");
                    self.chain(filter)?;
                }
                self.close();
                self.all(&x.body)?;
                self.tag("endset");
            }
            Stmt::AutoEscape(x) => {
                self.open("{%", x.span());
                self.out.push_str("autoescape ");
                self.expr(&x.enabled)?;
                self.close();
                self.all(&x.body)?;
                self.tag("endautoescape");
            }
            Stmt::FilterBlock(x) => {
                self.open("{%", x.span());
                self.out.push_str("filter ");
                self.chain(&x.filter)?;
                self.close();
                self.all(&x.body)?;
                self.tag("endfilter");
            }
            Stmt::Block(x) => {
                self.open("{%", x.span());
                self.out.push_str("block ");
                self.out.push_str(x.name);
                self.close();
                self.all(&x.body)?;
                self.tag("endblock");
            }
            Stmt::Macro(x) => self.macro_block(x, x.span())?,
            Stmt::CallBlock(x) => {
                self.open("{%", x.span());
                self.out.push_str("call");
                self.parameters(&x.macro_decl)?;
                self.out.push(' ');
                self.call(&x.call)?;
                self.close();
                self.all(&x.macro_decl.body)?;
                self.tag("endcall");
            }
            Stmt::Continue(_) => self.tag("continue"),
            Stmt::Break(_) => self.tag("break"),
            // Jinja2 only supports `do` with an extension that transformers does not load.
            Stmt::Do(_) => return Err(unknown("do")),
            Stmt::Import(_) | Stmt::FromImport(_) => return Err(unknown("import")),
            Stmt::Extends(_) => return Err(unknown("extends")),
            Stmt::Include(_) => return Err(unknown("include")),
        }
        Ok(())
    }

    fn macro_block(&mut self, x: &Macro, span: Span) -> WriteResult {
        self.open("{%", span);
        self.out.push_str("macro ");
        self.out.push_str(x.name);
        self.parameters(x)?;
        self.close();
        self.all(&x.body)?;
        self.tag("endmacro");
        Ok(())
    }

    /// Writes the parameters of a macro. If there are fewer default values than parameters, the
    /// last parameters have the defaults.
    fn parameters(&mut self, x: &Macro) -> WriteResult {
        self.out.push('(');
        let plain = x.args.len().saturating_sub(x.defaults.len());
        for (i, parameter) in x.args.iter().enumerate() {
            self.out.push_str(if i == 0 { "" } else { ", " });
            self.target(parameter)?;
            if let Some(default) = i.checked_sub(plain).and_then(|i| x.defaults.get(i)) {
                self.out.push('=');
                let before = self.out.len();
                self.expr(default)?;
                let mut words =
                    self.out[before..].split(|c: char| !c.is_alphanumeric() && c != '_');
                if words
                    .any(|word| x.args.iter().any(|p| matches!(p, Expr::Var(p) if p.id == word)))
                {
                    let what = format!(
                        "macro `{}` has a default value that uses another parameter, which is not \
                        supported",
                        x.name
                    );
                    return Err(Error::new(ErrorKind::SyntaxError, what));
                }
            }
        }
        self.out.push(')');
        Ok(())
    }

    /// Writes the target of an assignment: a variable, a tuple of variables, or a namespace
    /// attribute.
    fn target(&mut self, x: &Expr) -> WriteResult {
        match x {
            Expr::Var(x) => self.out.push_str(x.id),
            Expr::GetAttr(x) => {
                self.target(&x.expr)?;
                self.out.push('.');
                self.out.push_str(x.name);
            }
            Expr::List(x) => self.targets(&x.items)?,
            Expr::Tuple(x) => self.targets(&x.items)?,
            _ => {
                return Err(Error::new(ErrorKind::SyntaxError, "cannot assign to this expression"));
            }
        }
        Ok(())
    }

    fn targets(&mut self, items: &[Expr]) -> WriteResult {
        for (i, item) in items.iter().enumerate() {
            self.out.push_str(if i == 0 { "" } else { ", " });
            let several = matches!(item, Expr::List(_) | Expr::Tuple(_));
            self.out.push_str(if several { "(" } else { "" });
            self.target(item)?;
            self.out.push_str(if several { ")" } else { "" });
        }
        if items.len() == 1 {
            self.out.push(',');
        }
        Ok(())
    }

    /// Writes the filters of a filter block. They have no value in front of them, because they
    /// apply to the content of the block.
    fn chain(&mut self, x: &Expr) -> WriteResult {
        let Expr::Filter(x) = x else {
            return Err(Error::new(ErrorKind::SyntaxError, "invalid filter block"));
        };
        if let Some(before) = &x.expr {
            self.chain(before)?;
            self.out.push_str(" | ");
        }
        self.out.push_str(x.name);
        if x.args.is_empty() { Ok(()) } else { self.arguments(&x.args) }
    }

    /// Writes a value with one of our filters applied to it.
    fn filtered(&mut self, x: &Expr, filter: &str) -> WriteResult {
        self.out.push('(');
        self.expr(x)?;
        let _ = write!(self.out, "|{filter})");
        Ok(())
    }

    /// Writes an operator as one of our filters, with `right` as its argument.
    fn operator(&mut self, left: &Expr, filter: &str, right: &Expr) -> WriteResult {
        self.out.push('(');
        self.expr(left)?;
        let _ = write!(self.out, "|{filter}(");
        self.expr(right)?;
        self.out.push_str("))");
        Ok(())
    }

    fn infix(&mut self, left: &Expr, operator: &str, right: &Expr) -> WriteResult {
        self.out.push('(');
        self.expr(left)?;
        let _ = write!(self.out, " {operator} ");
        self.expr(right)?;
        self.out.push(')');
        Ok(())
    }

    fn infix_of_lists(&mut self, left: &Expr, operator: &str, right: &Expr) -> WriteResult {
        self.out.push('(');
        self.infix(left, operator, right)?;
        let _ = write!(self.out, "|{LIST})");
        Ok(())
    }

    fn compared(&mut self, left: &Expr, operator: CompareOpKind, right: &Expr) -> WriteResult {
        match operator {
            CompareOpKind::Eq => self.infix(left, "==", right),
            CompareOpKind::Ne => self.infix(left, "!=", right),
            CompareOpKind::Lt => self.operator(left, LESS, right),
            CompareOpKind::Lte => self.operator(left, LESS_OR_EQUAL, right),
            CompareOpKind::Gt => self.operator(left, GREATER, right),
            CompareOpKind::Gte => self.operator(left, GREATER_OR_EQUAL, right),
            CompareOpKind::In => self.operator(left, CONTAINED, right),
            CompareOpKind::NotIn => {
                self.out.push_str("(not ");
                self.operator(left, CONTAINED, right)?;
                self.out.push(')');
                Ok(())
            }
        }
    }

    fn expr(&mut self, x: &Expr) -> WriteResult {
        match x {
            Expr::Var(x) => self.out.push_str(x.id),
            Expr::Const(x) => {
                self.check_escapes(x.span())?;
                constant(&mut self.out, &x.value)?;
            }
            Expr::Slice(x) => {
                self.out.push('(');
                self.filtered(&x.expr, DEFINED)?;
                self.out.push('[');
                for (i, part) in [&x.start, &x.stop, &x.step].into_iter().enumerate() {
                    self.out.push_str(if i == 0 { "" } else { ":" });
                    part.as_ref().map_or(Ok(()), |part| self.expr(part))?;
                }
                let _ = write!(self.out, "]|{LIST})");
            }
            Expr::UnaryOp(x) => {
                self.out.push_str(match x.op {
                    UnaryOpKind::Not => "(not ",
                    UnaryOpKind::Neg => "(-",
                });
                self.expr(&x.expr)?;
                self.out.push(')');
            }
            Expr::BinOp(x) => match x.op {
                BinOpKind::Eq => self.compared(&x.left, CompareOpKind::Eq, &x.right)?,
                BinOpKind::Ne => self.compared(&x.left, CompareOpKind::Ne, &x.right)?,
                BinOpKind::Lt => self.compared(&x.left, CompareOpKind::Lt, &x.right)?,
                BinOpKind::Lte => self.compared(&x.left, CompareOpKind::Lte, &x.right)?,
                BinOpKind::Gt => self.compared(&x.left, CompareOpKind::Gt, &x.right)?,
                BinOpKind::Gte => self.compared(&x.left, CompareOpKind::Gte, &x.right)?,
                BinOpKind::In => self.compared(&x.left, CompareOpKind::In, &x.right)?,
                BinOpKind::Rem => self.operator(&x.left, REMAINDER, &x.right)?,
                BinOpKind::Concat => self.operator(&x.left, CONCATENATE, &x.right)?,
                BinOpKind::ScAnd => self.infix(&x.left, "and", &x.right)?,
                BinOpKind::ScOr => self.infix(&x.left, "or", &x.right)?,
                BinOpKind::Add => self.infix_of_lists(&x.left, "+", &x.right)?,
                BinOpKind::Sub => self.infix(&x.left, "-", &x.right)?,
                BinOpKind::Mul => self.infix_of_lists(&x.left, "*", &x.right)?,
                BinOpKind::Div => self.infix(&x.left, "/", &x.right)?,
                BinOpKind::FloorDiv => self.infix(&x.left, "//", &x.right)?,
                BinOpKind::Pow => self.infix(&x.left, "**", &x.right)?,
            },
            Expr::Compare(x) => {
                self.out.push('(');
                let mut left = &x.expr;
                for (i, next) in x.ops.iter().enumerate() {
                    self.out.push_str(if i == 0 { "" } else { " and " });
                    self.compared(left, next.op, &next.expr)?;
                    left = &next.expr;
                }
                self.out.push(')');
            }
            Expr::IfExpr(x) => {
                self.out.push('(');
                self.expr(&x.true_expr)?;
                self.out.push_str(" if ");
                self.expr(&x.test_expr)?;
                if let Some(other) = &x.false_expr {
                    self.out.push_str(" else ");
                    self.expr(other)?;
                }
                self.out.push(')');
            }
            Expr::Filter(x) => {
                self.out.push('(');
                if let Some(value) = &x.expr {
                    if ITERATING.contains(&x.name) {
                        self.filtered(value, ITERABLE)?;
                    } else if TEXTUAL.contains(&x.name) {
                        self.filtered(value, TEXT)?;
                    } else {
                        self.expr(value)?;
                    }
                    self.out.push('|');
                }
                self.out.push_str(x.name);
                if !x.args.is_empty() {
                    self.arguments(&x.args)?;
                }
                self.out.push(')');
            }
            Expr::Test(x) => {
                self.out.push('(');
                self.expr(&x.expr)?;
                let _ = write!(self.out, " is {}", x.name);
                if !x.args.is_empty() {
                    self.arguments(&x.args)?;
                }
                self.out.push(')');
            }
            Expr::GetAttr(x) => {
                self.expr(&x.expr)?;
                self.out.push('.');
                self.out.push_str(x.name);
            }
            Expr::GetItem(x) => {
                self.expr(&x.expr)?;
                self.out.push('[');
                match &x.subscript_expr {
                    // The result could be a float, which Python does not accept as an index.
                    place @ (Expr::BinOp(_) | Expr::Filter(_)) => self.filtered(place, INDEX)?,
                    Expr::Const(place) if place.value.is_number() && !place.value.is_integer() => {
                        self.filtered(&x.subscript_expr, INDEX)?
                    }
                    place => self.expr(place)?,
                }
                self.out.push(']');
            }
            Expr::Call(x) => self.call(x)?,
            Expr::List(x) => self.list("[", &x.items, "]")?,
            Expr::Tuple(x) => {
                self.list("(", &x.items, if x.items.len() == 1 { ",)" } else { ")" })?
            }
            Expr::Map(x) => {
                self.out.push('{');
                for (i, (key, value)) in x.keys.iter().zip(&x.values).enumerate() {
                    self.out.push_str(if i == 0 { "" } else { ", " });
                    self.expr(key)?;
                    self.out.push_str(": ");
                    self.expr(value)?;
                }
                self.out.push('}');
            }
        }
        Ok(())
    }

    /// Checks that a string only contains escapes that have the same meaning in minijinja and in
    /// Jinja2.
    fn check_escapes(&self, span: Span) -> WriteResult {
        let (start, end) = (span.start_offset as usize, span.end_offset as usize);
        let literal = self.source.get(start..end).filter(|text| text.starts_with(['"', '\'']));
        let mut chars = literal.unwrap_or_default().chars();
        while let Some(c) = chars.next() {
            if c == '\\'
                && let Some(escape @ ('/' | 'a' | 'v' | 'N' | 'U' | '\n')) = chars.next()
            {
                return Err(Error::new(
                    ErrorKind::SyntaxError,
                    format!(
                        "the escape `\\{}` in a string is not supported",
                        escape.escape_default()
                    ),
                ));
            }
        }
        Ok(())
    }

    fn list(&mut self, open: &str, items: &[Expr], close: &str) -> WriteResult {
        self.out.push_str(open);
        for (i, item) in items.iter().enumerate() {
            self.out.push_str(if i == 0 { "" } else { ", " });
            self.expr(item)?;
        }
        self.out.push_str(close);
        Ok(())
    }

    fn call(&mut self, x: &Spanned<Call>) -> WriteResult {
        self.expr(&x.expr)?;
        self.arguments(&x.args)
    }

    fn arguments(&mut self, arguments: &[CallArg]) -> WriteResult {
        self.out.push('(');
        for (i, argument) in arguments.iter().enumerate() {
            self.out.push_str(if i == 0 { "" } else { ", " });
            let (before, value) = match argument {
                CallArg::Pos(value) => (String::new(), value),
                CallArg::Kwarg(name, value) => (format!("{name}="), value),
                CallArg::PosSplat(value) => ("*".to_owned(), value),
                CallArg::KwargSplat(value) => ("**".to_owned(), value),
            };
            self.out.push_str(&before);
            self.expr(value)?;
        }
        self.out.push(')');
        Ok(())
    }
}

fn unknown(tag: &str) -> Error {
    Error::new(ErrorKind::SyntaxError, format!("`{{% {tag} %}}` is not allowed in chat templates"))
}

/// Writes a constant in template syntax. Numbers are never negative, because the parser treats the
/// minus sign as an operator.
fn constant(out: &mut String, x: &Value) -> WriteResult {
    match x.kind() {
        ValueKind::None => out.push_str("none"),
        ValueKind::Bool => out.push_str(if x.is_true() { "true" } else { "false" }),
        ValueKind::String => string(out, x.as_str().unwrap_or_default()),
        ValueKind::Number if x.is_integer() => out.push_str(&x.to_string()),
        ValueKind::Number => {
            let number = f64::try_from(x.clone())?;
            let _ =
                if number.is_finite() { write!(out, "{number:?}") } else { write!(out, "1e999") };
        }
        _ => {
            return Err(Error::new(
                ErrorKind::SyntaxError,
                format!("constants of type {} are not supported", x.kind()),
            ));
        }
    }
    Ok(())
}

fn string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Two of these characters in a row could be parsed as the beginning or the end of a
            // tag.
            c if c.is_ascii_control() || matches!(c, '{' | '}' | '%') => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
