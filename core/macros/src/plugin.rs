//! Generates the code that an attribute adds to a configuration struct.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::ext::IdentExt;
use syn::parse::Parser;
use syn::{Error, Expr, Field, Fields, Ident, ItemStruct, Result};

use super::arguments::{Arguments, Kind, PEFT_TYPE, string};

/// Returns the struct with its derives, and the implementations that make it a plugin of `kind`.
///
/// If the attribute is invalid, the result still contains the struct. Otherwise, the compiler would
/// also report every use of the struct.
pub fn expand(kind: Kind, arguments: TokenStream, item: TokenStream) -> TokenStream {
    let mut item: ItemStruct = match syn::parse2(item) {
        Ok(item) => item,
        Err(_) => {
            let message = format!(
                "`#[{}]` must be on the struct whose fields are the method's configuration",
                kind.attribute()
            );
            return Error::new(proc_macro2::Span::call_site(), message).to_compile_error();
        }
    };
    let defaults = take_defaults(&mut item);
    let parsed =
        (|input: syn::parse::ParseStream<'_>| Arguments::parse(kind, input)).parse2(arguments);
    let added = parsed.and_then(|arguments| {
        check_fields(&item, &arguments)?;
        let parts = [
            default(&item, defaults?),
            plugin_impl(&item, &arguments),
            target_modules(kind, &item),
            registration(kind, &item, &arguments),
        ];
        Ok(parts.into_iter().collect::<TokenStream>())
    });
    match added {
        Ok(added) => quote! {
            #[derive(
                ::core::clone::Clone, ::core::fmt::Debug, ::core::cmp::PartialEq,
                ::reprpo_plugin::serde::Serialize, ::reprpo_plugin::serde::Deserialize,
                ::reprpo_plugin::schemars::JsonSchema,
            )]
            #[serde(crate = "::reprpo_plugin::serde", deny_unknown_fields, default)]
            #[schemars(crate = "::reprpo_plugin::schemars")]
            #item
            #added
        },
        Err(e) => {
            // Without the derives, helper attributes such as `#[serde(…)]` would cause more errors.
            item.fields.iter_mut().for_each(|field| {
                field
                    .attrs
                    .retain(|a| !a.path().is_ident("serde") && !a.path().is_ident("schemars"))
            });
            item.attrs.retain(|a| !a.path().is_ident("serde") && !a.path().is_ident("schemars"));
            let e = e.to_compile_error();
            quote! { #item #e }
        }
    }
}

/// Removes `#[default(…)]` from the fields, and returns the value of each field in order.
fn take_defaults(item: &mut ItemStruct) -> Result<Vec<Option<Expr>>> {
    let mut found = Vec::new();
    for field in &mut item.fields {
        let (defaults, others) = std::mem::take(&mut field.attrs)
            .into_iter()
            .partition::<Vec<_>, _>(|a| a.path().is_ident("default"));
        field.attrs = others;
        found.push(match &defaults[..] {
            [] => Ok(None),
            [one] => one.parse_args::<Expr>().map(Some).map_err(|_| {
                Error::new_spanned(one, "write the field's default as `#[default(VALUE)]`")
            }),
            [_, second, ..] => {
                Err(Error::new_spanned(second, "a field must have only one default"))
            }
        });
    }
    found.into_iter().collect()
}

/// Checks that the struct can be used as a configuration, and that the fields named in the
/// arguments exist.
fn check_fields(item: &ItemStruct, arguments: &Arguments) -> Result<()> {
    let Fields::Named(fields) = &item.fields else {
        return Err(Error::new_spanned(
            &item.ident,
            format!(
                "a configuration must have named fields; write `struct {} {{}}` if there are \
                    no fields",
                item.ident
            ),
        ));
    };
    if !item.generics.params.is_empty() {
        return Err(Error::new_spanned(
            &item.generics,
            "a configuration must not have generic parameters",
        ));
    }
    // The fields of a flattened struct are unknown here.
    if fields.named.iter().any(|field| has_serde(field, "flatten")) {
        return Ok(());
    }
    let names: Vec<String> =
        fields.named.iter().filter_map(|f| Some(f.ident.as_ref()?.unraw().to_string())).collect();
    let check = |name: &str, place: &dyn ToTokens| {
        if names.iter().any(|known| known == name) {
            return Ok(());
        }
        let valid = if names.is_empty() {
            "it has no fields".to_owned()
        } else {
            format!("valid: {}", names.join(", "))
        };
        Err(Error::new_spanned(place, format!("`{}` has no field `{name}`; {valid}", item.ident)))
    };
    for example in &arguments.example {
        check(&example.field.unraw().to_string(), &example.field)?;
    }
    if let Some(text) = arguments.get("argument").and_then(string) {
        check(&text.value(), text)?;
    }
    if let Some(Expr::Reference(list)) = arguments.get("adjustable")
        && let Expr::Array(list) = &*list.expr
    {
        list.elems.iter().filter_map(string).try_for_each(|text| check(&text.value(), text))?;
    }
    Ok(())
}

/// True if one of the field's `#[serde(…)]` attributes contains `word`.
fn has_serde(field: &Field, word: &str) -> bool {
    let mut found = false;
    for attribute in field.attrs.iter().filter(|a| a.path().is_ident("serde")) {
        // serde itself reports a malformed attribute.
        let _ = attribute.parse_nested_meta(|meta| {
            found |= meta.path.is_ident(word);
            if meta.input.peek(syn::Token![=]) {
                meta.value()?.parse::<Expr>()?;
            }
            Ok(())
        });
    }
    found
}

/// Implements `Default` with the values of `#[default(…)]`. Fields without this attribute get the
/// default value of their type.
fn default(item: &ItemStruct, values: Vec<Option<Expr>>) -> TokenStream {
    let name = &item.ident;
    let fields = item.fields.iter().zip(values).map(|(field, value)| {
        let field = &field.ident;
        match value {
            None => quote! { #field: ::core::default::Default::default() },
            Some(text) if string(&text).is_some() => {
                quote! { #field: ::core::convert::Into::into(#text) }
            }
            Some(value) => quote! { #field: #value },
        }
    });
    quote! {
        impl ::core::default::Default for #name {
            fn default() -> Self {
                Self { #(#fields),* }
            }
        }
    }
}

/// Implements `Plugin` with the method's name, aliases and descriptions.
fn plugin_impl(item: &ItemStruct, arguments: &Arguments) -> TokenStream {
    let ident = &item.ident;
    let text = |key: &str| arguments.get(key).map(ToTokens::to_token_stream).unwrap_or_default();
    let (name, summary, explain, reference) =
        (text("name"), text("summary"), text("explain"), text("reference"));
    let aliases = arguments
        .get("aliases")
        .map(|aliases| quote! { const ALIASES: &'static [&'static str] = #aliases; });
    let example = (!arguments.example.is_empty()).then(|| {
        let pairs = arguments.example.iter().map(|e| {
            let (path, value) = (&e.path, &e.value);
            quote! { (#path, #value) }
        });
        quote! { const EXAMPLE: &'static [(&'static str, &'static str)] = &[#(#pairs),*]; }
    });
    quote! {
        impl ::reprpo_plugin::api::Plugin for #ident {
            const NAME: &'static str = #name;
            #aliases
            const SUMMARY: &'static str = #summary;
            const EXPLAIN: &'static str = #explain;
            const REFERENCE: &'static str = #reference;
            #example
        }
    }
}

/// Implements `TargetModules` for an adapter with the field `target_modules`.
fn target_modules(kind: Kind, item: &ItemStruct) -> TokenStream {
    let field = |name: &str| {
        item.fields.iter().find_map(|f| f.ident.as_ref().filter(|ident| *ident == name))
    };
    let (Kind::Adapter, Some(targets)) = (kind, field("target_modules")) else {
        return TokenStream::new();
    };
    let name = &item.ident;
    let excluded = field("exclude_modules").map(|excluded| {
        quote! {
            fn exclude_modules(&self) -> ::reprpo_plugin::api::Targets {
                ::core::clone::Clone::clone(&self.#excluded)
            }
        }
    });
    let layers = field("layers_to_transform").map(|layers| {
        quote! {
            fn layers_to_transform(&self) -> ::core::option::Option<::std::vec::Vec<usize>> {
                ::core::clone::Clone::clone(&self.#layers)
            }
        }
    });
    quote! {
        impl ::reprpo_plugin::api::TargetModules for #name {
            fn targets(&self) -> ::reprpo_plugin::api::Targets {
                ::core::clone::Clone::clone(&self.#targets)
            }
            #layers
            #excluded
        }
    }
}

/// Submits an entry to the registry.
fn registration(kind: Kind, item: &ItemStruct, arguments: &Arguments) -> TokenStream {
    let (name, variant) = (&item.ident, kind.variant());
    let entry = Ident::new(&format!("{variant}Entry"), variant.span());
    let peft_type = arguments.get(PEFT_TYPE).map(|value| quote! { #value, });
    let settings = kind.own_arguments().iter().filter(|key| **key != PEFT_TYPE).filter_map(|key| {
        let (value, method) = (arguments.get(key)?, Ident::new(key, variant.span()));
        Some(quote! { .#method(#value) })
    });
    quote! {
        const _: () = {
            static ENTRY: ::reprpo_plugin::registry::#entry =
                ::reprpo_plugin::registry::#entry::of::<#name>(
                    #peft_type
                    ::core::env!("CARGO_PKG_NAME"),
                    ::core::env!("CARGO_PKG_VERSION")
                )#(#settings)*;
            ::reprpo_plugin::inventory::submit! {
                ::reprpo_plugin::registry::Entry::#variant(&ENTRY)
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: &str = r#"name = "twist", summary = "s", reference = "r", explain = "e""#;

    fn expanded(kind: Kind, arguments: &str, item: &str) -> String {
        expand(kind, arguments.parse().expect("tokens"), item.parse().expect("tokens")).to_string()
    }

    /// Expands an invalid attribute, and returns the message of the compile error.
    fn error(kind: Kind, arguments: &str, item: &str) -> String {
        let code = expanded(kind, arguments, item);
        let start = code.find("compile_error").unwrap_or_else(|| panic!("no error in {code}"));
        let message = code[start..].split_once('"').map(|(_, rest)| rest).unwrap_or_default();
        message.rsplit_once("\" }").map_or(message, |(message, _)| message).replace("\\\"", "\"")
    }

    fn intervention(arguments: &str) -> String {
        error(Kind::Intervention, arguments, "pub struct Twist { pub beta: f64 }")
    }

    #[test]
    fn a_struct_becomes_a_plugin_and_keeps_its_fields() {
        let item = r#"
            pub struct Twist {
                #[doc = "b"] #[default(0.5)] pub beta: f64,
                #[default("x")] text: String,
                other: bool
            }
        "#;
        let code = expanded(
            Kind::Intervention,
            &format!("{TEXTS}, learning_rate = 2e-3, example(beta = -0.30)"),
            item,
        );
        for part in [
            "deny_unknown_fields , default",
            "impl :: reprpo_plugin :: api :: Plugin for Twist",
            "(\"beta\" , \"-0.30\")",
            "InterventionEntry :: of :: < Twist >",
            ". learning_rate (2e-3)",
            "Self { beta : 0.5 , text : :: core :: convert :: Into :: into (\"x\") , other : :: \
                core :: default :: Default :: default () }",
        ] {
            assert!(code.contains(part), "{part} is not in {code}");
        }
        assert!(!code.contains("# [default"), "{code}");
    }

    #[test]
    fn target_modules_is_implemented_from_the_fields_of_an_adapter() {
        let arguments = format!(r#"{TEXTS}, peft_type = "TWIST""#);
        let of = |item: &str| expanded(Kind::Adapter, &arguments, item);
        assert!(!of("struct Twist { r: u32 }").contains("TargetModules"));
        let whole = of("struct Twist { target_modules: Targets }");
        assert!(
            whole.contains("TargetModules for Twist") && !whole.contains("layers_to_transform")
        );
        assert!(
            of("struct Twist { target_modules: Targets, layers_to_transform: Option<Vec<usize>> }")
                .contains("layers_to_transform")
        );
        assert!(
            !whole.contains("exclude_modules")
                && of("struct Twist { target_modules: Targets, exclude_modules: Targets }")
                    .contains("exclude_modules")
        );
    }

    #[test]
    fn a_wrong_argument_is_an_error_that_lists_the_valid_ones() {
        assert_eq!(
            intervention(&format!("{TEXTS}, peft_type = \"X\"")),
            "`#[intervention]` has no argument `peft_type`; valid: name, aliases, summary, \
                reference, explain, example, learning_rate"
        );
        assert_eq!(intervention(&format!("{TEXTS}, name = \"b\"")), "duplicate argument `name`");
        assert_eq!(
            intervention("name = \"a\", explain = \"\""),
            "`#[intervention(…)]` needs `summary = …`, `reference = …`"
        );
        assert_eq!(
            intervention(&TEXTS.replace("twist", "My_Twist")),
            "`My_Twist` cannot be a name on the command line; use a-z, 0-9 and -"
        );
        assert_eq!(
            intervention(&TEXTS.replace("\"twist\"", "TWIST")),
            "the name must be a string, e.g. \"my-method\""
        );
        assert!(
            intervention(&format!("{TEXTS}, example(beta = vec![1])"))
                .starts_with("the value of an example must be a string, a number")
        );
    }

    #[test]
    fn an_argument_that_names_an_unknown_field_is_an_error_that_lists_the_fields() {
        assert_eq!(
            intervention(&format!("{TEXTS}, example(betta = 1)")),
            "`Twist` has no field `betta`; valid: beta"
        );
        let dataset = |arguments: &str, item: &str| {
            error(Kind::Dataset, &format!("{TEXTS}, {arguments}"), item)
        };
        assert_eq!(
            dataset("argument = \"file\"", "struct Twist {}"),
            "`Twist` has no field `file`; it has no fields"
        );
        let adapter = format!("{TEXTS}, peft_type = \"X\", adjustable = &[\"dropout\"]");
        assert_eq!(
            error(Kind::Adapter, &adapter, "struct Twist { r: u32 }"),
            "`Twist` has no field `dropout`; valid: r"
        );
        // The fields of a flattened struct are unknown, so the argument is not checked.
        let flattened = "struct Twist { #[serde(flatten)] format: Format }";
        assert!(
            !expanded(Kind::Dataset, &format!("{TEXTS}, argument = \"file\""), flattened)
                .contains("compile_error")
        );
    }

    #[test]
    fn an_item_that_is_not_a_configuration_is_an_error() {
        let refused = |item: &str| error(Kind::Tap, TEXTS, item);
        assert_eq!(
            refused("enum Twist { A }"),
            "`#[tap]` must be on the struct whose fields are the method's configuration"
        );
        assert_eq!(
            refused("struct Twist;"),
            "a configuration must have named fields; write `struct Twist {}` if there are no \
                fields"
        );
        assert_eq!(
            refused("struct Twist<T> { t: T }"),
            "a configuration must not have generic parameters"
        );
        assert_eq!(
            refused("struct Twist { #[default] a: u32 }"),
            "write the field's default as `#[default(VALUE)]`"
        );
        assert_eq!(
            refused("struct Twist { #[default(1)] #[default(2)] a: u32 }"),
            "a field must have only one default"
        );
    }
}
