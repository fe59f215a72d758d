//! The expansion of `#[choice]`.

use proc_macro2::{Span, TokenStream};
use quote::quote;
use syn::{Error, Fields, ItemEnum};

/// Adds the derives that an enum needs to be the type of a configuration field.
pub fn expand(arguments: &TokenStream, item: TokenStream) -> TokenStream {
    let refused = |message: &str| Error::new(Span::call_site(), message).to_compile_error();
    let Ok(item) = syn::parse2::<ItemEnum>(item) else {
        return refused("`#[choice]` must be on an enum");
    };
    if !arguments.is_empty() {
        let e = Error::new_spanned(arguments, "`#[choice]` takes no arguments").to_compile_error();
        return quote! { #item #e };
    }
    if let Some(variant) =
        item.variants.iter().find(|variant| !matches!(variant.fields, Fields::Unit))
    {
        let e =
            Error::new_spanned(variant, "the variants of a `#[choice]` enum must not have fields")
                .to_compile_error();
        return quote! { #item #e };
    }
    let has_default = item
        .variants
        .iter()
        .any(|variant| variant.attrs.iter().any(|a| a.path().is_ident("default")));
    let default = has_default.then(|| quote! { ::core::default::Default, });
    quote! {
        #[derive(
            ::core::clone::Clone, ::core::marker::Copy, ::core::fmt::Debug,
            #default ::core::cmp::PartialEq, ::core::cmp::Eq,
            ::reprpo_plugin::serde::Serialize, ::reprpo_plugin::serde::Deserialize,
            ::reprpo_plugin::schemars::JsonSchema,
        )]
        #[serde(crate = "::reprpo_plugin::serde", rename_all = "snake_case")]
        #[schemars(crate = "::reprpo_plugin::schemars")]
        #item
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(arguments: &str, item: &str) -> String {
        expand(&arguments.parse().expect("tokens"), item.parse().expect("tokens")).to_string()
    }

    #[test]
    fn default_is_derived_if_a_variant_is_marked() {
        assert!(
            expanded("", "enum Map { #[default] A, B }")
                .contains(":: core :: default :: Default ,")
        );
        assert!(!expanded("", "enum Map { A, B }").contains(":: core :: default :: Default ,"));
    }

    #[test]
    fn anything_but_an_enum_with_plain_variants_is_an_error() {
        assert!(expanded("", "struct Map {}").contains("`#[choice]` must be on an enum"));
        assert!(
            expanded("", "enum Map { A(u32) }")
                .contains("the variants of a `#[choice]` enum must not have fields")
        );
        assert!(expanded("x", "enum Map { A }").contains("`#[choice]` takes no arguments"));
    }
}
