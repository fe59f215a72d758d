//! The trait that plugins of all kinds implement: name, documentation and defaults.

use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};

/// A named, documented method: a struct whose fields are its configuration.
///
/// The attributes of the SDK, such as `#[intervention(…)]`, implement this trait. `reprpo list`,
/// `reprpo explain` and the configuration's JSON schema show the documentation.
///
/// Every field of the struct must have a doc comment that gives its unit. `Default` returns the
/// default configuration. Deserialisation must reject unknown fields, so that misspelt names are
/// errors.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a plugin",
    note = "put the attribute of its kind on the struct: `#[intervention(…)]`, \
        `#[adapter(…)]`, `#[transform(…)]`, `#[tap(…)]` or `#[dataset(…)]`"
)]
pub trait Plugin: Serialize + DeserializeOwned + JsonSchema + Default + 'static {
    /// Name on the command line, made of lower-case letters, digits and `-`.
    const NAME: &'static str;
    /// Other names that the command line accepts.
    const ALIASES: &'static [&'static str] = &[];
    /// One line that says what the method does.
    const SUMMARY: &'static str;
    /// The formula and everything a user should know before using the method. It is plain text and
    /// uses the symbols of `docs/methods.md`.
    const EXPLAIN: &'static str;
    /// Source of the method: a paper and section, or a project.
    const REFERENCE: &'static str;
    /// Settings in the example command of `reprpo explain`, as pairs of a field and a value, e.g.
    /// `&[("beta", "0.3")]`. The example of a data set may set the field that receives `TEXT` in
    /// `--dataset NAME:TEXT`.
    const EXAMPLE: &'static [(&'static str, &'static str)] = &[];
}
