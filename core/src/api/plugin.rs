//! The description that every plugin gives of itself, whatever its kind.

use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};

/// A named, documented method: a struct whose fields are its configuration.
///
/// The attributes of the sdk, such as `#[intervention(…)]`, implement it. Its texts are shown by
/// `reprpo list`, by `reprpo explain` and in the configuration's schema.
///
/// Every field has a doc comment with its unit, and `Default` holds the defaults. Deserialising
/// must refuse unknown fields, so that a slip in a name is an error.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not described as a plugin",
    note = "write the attribute of its kind above the struct: `#[intervention(…)]`, \
        `#[adapter(…)]`, `#[transform(…)]`, `#[tap(…)]` or `#[dataset(…)]`"
)]
pub trait Plugin: Serialize + DeserializeOwned + JsonSchema + Default + 'static {
    /// The name on the command line: lower case, digits and `-`.
    const NAME: &'static str;
    /// Other names for it on the command line.
    const ALIASES: &'static [&'static str] = &[];
    /// One line: what it does.
    const SUMMARY: &'static str;
    /// The formula and what to know before using it, as plain text in the letters of the method
    /// reference.
    const EXPLAIN: &'static str;
    /// Where it comes from: paper and section, or project.
    const REFERENCE: &'static str;
    /// Fields and values of the example that `reprpo explain` shows, as they are typed after
    /// `--set KIND.`: `&[("beta", "0.3")]`. The field that `--dataset NAME:TEXT` fills may be among
    /// them.
    const EXAMPLE: &'static [(&'static str, &'static str)] = &[];
}
