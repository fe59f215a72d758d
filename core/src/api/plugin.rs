//! The name, documentation and defaults that plugins of every kind have.

use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};

/// A named, documented method: a struct whose fields are its configuration.
///
/// The attributes of the SDK, such as `#[intervention(…)]`, implement this trait. `reprpo list`,
/// `reprpo explain` and the configuration's JSON schema show its texts.
///
/// Every field of the struct has a doc comment that gives its unit, and `Default` returns the
/// default values. Deserialisation must reject unknown fields, so that a misspelt name is an error.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a plugin",
    note = "put the attribute of its kind on the struct: `#[intervention(…)]`, \
        `#[adapter(…)]`, `#[transform(…)]`, `#[tap(…)]` or `#[dataset(…)]`"
)]
pub trait Plugin: Serialize + DeserializeOwned + JsonSchema + Default + 'static {
    /// Name on the command line. It consists of lower-case letters, digits and `-`.
    const NAME: &'static str;
    /// Other names that the command line accepts.
    const ALIASES: &'static [&'static str] = &[];
    /// One line that says what the method does.
    const SUMMARY: &'static str;
    /// The formula and everything a user should know before using the method, as plain text with
    /// the symbols of the method reference.
    const EXPLAIN: &'static str;
    /// Source of the method: paper and section, or project.
    const REFERENCE: &'static str;
    /// Fields and values of the example command that `reprpo explain` shows, written as after
    /// `--set KIND.`, e.g. `&[("beta", "0.3")]`. A data set may include the field that
    /// `--dataset NAME:TEXT` sets.
    const EXAMPLE: &'static [(&'static str, &'static str)] = &[];
}
