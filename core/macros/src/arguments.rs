//! The arguments of the attributes: their names and the syntax of their values.

use proc_macro2::Span;
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{Error, Expr, ExprLit, Ident, Lit, LitStr, Result, Token, UnOp, parenthesized};

/// The kinds of plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Intervention,
    Adapter,
    Transform,
    Tap,
    Dataset,
}

impl Kind {
    /// Name of the attribute for plugins of this kind, e.g. `tap` for `#[tap]`.
    pub fn attribute(self) -> &'static str {
        match self {
            Kind::Intervention => "intervention",
            Kind::Adapter => "adapter",
            Kind::Transform => "transform",
            Kind::Tap => "tap",
            Kind::Dataset => "dataset",
        }
    }

    /// Variant for this kind in the registry's enum `Entry`, e.g. `Tap`. The same word begins type
    /// names such as `TapPlugin`.
    pub fn variant(self) -> Ident {
        let name = match self {
            Kind::Intervention => "Intervention",
            Kind::Adapter => "Adapter",
            Kind::Transform => "Transform",
            Kind::Tap => "Tap",
            Kind::Dataset => "Dataset",
        };
        Ident::new(name, Span::call_site())
    }

    /// The arguments that only the attribute for this kind accepts. Each one except [`PEFT_TYPE`]
    /// is also the name of a method of the registry entry.
    pub fn own_arguments(self) -> &'static [&'static str] {
        match self {
            Kind::Intervention => &["learning_rate"],
            Kind::Adapter => &[PEFT_TYPE, "learning_rate_factor", "adjustable", "peft_has_layers"],
            Kind::Transform | Kind::Tap => &[],
            Kind::Dataset => &["argument", "extensions", "repositories", "stdin"],
        }
    }

    fn required(self) -> &'static [&'static str] {
        if self == Kind::Adapter {
            &["name", "summary", "reference", "explain", PEFT_TYPE]
        } else {
            &["name", "summary", "reference", "explain"]
        }
    }
}

/// The argument of `#[adapter]` that is passed to the constructor of the registry entry.
pub const PEFT_TYPE: &str = "peft_type";
const COMMON: [&str; 6] = ["name", "aliases", "summary", "reference", "explain", "example"];

/// The parsed arguments of an attribute.
pub struct Arguments {
    values: Vec<(Ident, Expr)>,
    /// The field values in the plugin's documented example.
    pub example: Vec<ExampleField>,
}

/// A field in the documented example, and its value as it is written after `--set`.
pub struct ExampleField {
    /// First component of `path`, e.g. `dpo`.
    pub field: Ident,
    /// Dotted path of the field, e.g. `dpo.beta`.
    pub path: String,
    pub value: String,
}

enum Argument {
    Value(Ident, Expr),
    Example(Ident, Vec<ExampleField>),
}

impl Parse for Argument {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let key = Ident::parse_any(input)?;
        if key == "example" {
            let content;
            parenthesized!(content in input);
            let fields = Punctuated::<ExampleField, Token![,]>::parse_terminated(&content)?;
            return Ok(Argument::Example(key, fields.into_iter().collect()));
        }
        input.parse::<Token![=]>()?;
        Ok(Argument::Value(key, input.parse()?))
    }
}

impl Parse for ExampleField {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let parts = Punctuated::<Ident, Token![.]>::parse_separated_nonempty(input)?;
        input.parse::<Token![=]>()?;
        let expression: Expr = input.parse()?;
        let value = literal_text(&expression).ok_or_else(|| {
            Error::new_spanned(
                &expression,
                "the value of an example must be a string, a number, `true` or `false`, as after \
                `--set`",
            )
        })?;
        let path = parts.iter().map(|part| part.unraw().to_string()).collect::<Vec<_>>().join(".");
        Ok(Self { field: parts[0].clone(), path, value })
    }
}

impl Arguments {
    /// Parses the arguments of the attribute for plugins of `kind`.
    pub fn parse(kind: Kind, input: ParseStream<'_>) -> Result<Self> {
        let mut this = Self { values: Vec::new(), example: Vec::new() };
        let mut keys: Vec<Ident> = Vec::new();
        for argument in Punctuated::<Argument, Token![,]>::parse_terminated(input)? {
            let (Argument::Value(key, _) | Argument::Example(key, _)) = &argument;
            if !COMMON.iter().chain(kind.own_arguments()).any(|known| key == known) {
                let valid: Vec<&str> =
                    COMMON.into_iter().chain(kind.own_arguments().iter().copied()).collect();
                return Err(Error::new(
                    key.span(),
                    format!(
                        "`#[{}]` has no argument `{key}`; valid: {}",
                        kind.attribute(),
                        valid.join(", ")
                    ),
                ));
            }
            if keys.contains(key) {
                return Err(Error::new(key.span(), format!("duplicate argument `{key}`")));
            }
            keys.push(key.clone());
            match argument {
                Argument::Value(key, value) => this.values.push((key, value)),
                Argument::Example(_, fields) => this.example = fields,
            }
        }
        let missing: Vec<String> = kind
            .required()
            .iter()
            .filter(|name| this.get(name).is_none())
            .map(|name| format!("`{name} = …`"))
            .collect();
        if !missing.is_empty() {
            return Err(Error::new(
                Span::call_site(),
                format!("`#[{}(…)]` needs {}", kind.attribute(), missing.join(", ")),
            ));
        }
        this.check_name()?;
        Ok(this)
    }

    /// Returns the value of the argument called `name`.
    pub fn get(&self, name: &str) -> Option<&Expr> {
        self.values.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    fn check_name(&self) -> Result<()> {
        let Some(name) = self.get("name") else { return Ok(()) };
        let text = string(name)
            .ok_or_else(|| {
                Error::new_spanned(name, "the name must be a string, e.g. \"my-method\"")
            })?
            .value();
        if text.is_empty()
            || !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            return Err(Error::new_spanned(
                name,
                format!("`{text}` cannot be a name on the command line; use a-z, 0-9 and -"),
            ));
        }
        Ok(())
    }
}

/// Returns the expression's string literal, or `None` if the expression is anything else. An
/// invisible group around the literal is ignored. Macro expansion creates such groups.
pub fn string(expression: &Expr) -> Option<&LitStr> {
    match expression {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text),
        Expr::Group(group) => string(&group.expr),
        _ => None,
    }
}

/// Converts a literal to text: a string without its quotes, a number or a boolean. Returns `None`
/// for any other expression.
fn literal_text(expression: &Expr) -> Option<String> {
    match expression {
        Expr::Lit(ExprLit { lit, .. }) => match lit {
            Lit::Str(text) => Some(text.value()),
            Lit::Int(number) => Some(number.to_string()),
            Lit::Float(number) => Some(number.to_string()),
            Lit::Bool(truth) => Some(truth.value.to_string()),
            _ => None,
        },
        Expr::Unary(unary) if matches!(unary.op, UnOp::Neg(_)) => {
            Some(format!("-{}", literal_text(&unary.expr)?))
        }
        Expr::Group(group) => literal_text(&group.expr),
        _ => None,
    }
}
