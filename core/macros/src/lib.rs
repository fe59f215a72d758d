//! The attributes that turn a configuration struct into a plugin.
//!
//! Put `#[intervention(…)]`, `#[adapter(…)]`, `#[transform(…)]`, `#[tap(…)]` or `#[dataset(…)]` on
//! the struct whose fields are the method's configuration. The attribute does not change the struct
//! itself, but adds code:
//! - It derives the traits of a configuration: `Clone`, `Debug`, `PartialEq`, serde's traits and
//!   the JSON schema.
//! - It implements `Default` with the values from `#[default(…)]` on the fields.
//! - It implements `Plugin`.
//! - It registers the method with the program that links the crate.
//!
//! The author implements the trait that builds the method, e.g. with
//! `impl InterventionPlugin for MyMethod`.
//!
//! All attributes have these arguments, in any order:
//!
//! | argument | value |
//! |---|---|
//! | `name` | the name on the command line: a-z, 0-9 and `-` |
//! | `aliases` | other names, e.g. `&["other"]`; optional |
//! | `summary` | one line that says what the method does |
//! | `reference` | the source of the method: paper and section, or project |
//! | `explain` | the formula and everything a user should know before using the method |
//! | `example(field = value, …)` | fields and values of the example in `reprpo explain`; optional |
//!
//! The documentation of each attribute lists its other arguments. The generated code refers to the
//! crate `reprpo_plugin`, which is the only dependency that a plugin needs.

mod arguments;
mod choice;
mod plugin;

use proc_macro::TokenStream;

use self::arguments::Kind;

/// Turns a struct with `impl InterventionPlugin` into an intervention, a training objective.
///
/// Arguments in addition to the [common ones](crate):
/// - `learning_rate`: the default of `train.lr` for LoRA, e.g. `2e-3`. Other adapters multiply it
///   by their `learning_rate_factor`. Without this argument, the engine's default applies.
#[proc_macro_attribute]
pub fn intervention(arguments: TokenStream, item: TokenStream) -> TokenStream {
    plugin::expand(Kind::Intervention, arguments.into(), item.into()).into()
}

/// Turns a struct with `impl AdapterPlugin` into an adapter, a trainable change to linear modules
/// or blocks.
///
/// The fields `target_modules` (`Targets`), `exclude_modules` (`Targets`) and `layers_to_transform`
/// (`Option<Vec<usize>>`) select the linear modules to adapt; only the first is required. A struct
/// without `target_modules` must implement `TargetModules` itself.
///
/// Arguments in addition to the [common ones](crate):
/// - `peft_type`: the value of `peft_type` in `adapter_config.json`; required.
/// - `learning_rate_factor`: factor applied to the default of `train.lr`; 1 for LoRA. The factor is
///   larger if the adapter's parameters must move further for the same change of the model.
/// - `adjustable`: fields, such as dropout, that may change when training continues from a saved
///   adapter, e.g. `&["lora_dropout"]`. They must not affect the shapes of the saved tensors, or
///   how the adapter computes its output from these tensors. All other fields must agree with the
///   saved adapter.
/// - `peft_has_layers`: `false` if PEFT's configuration class for this type has no
///   `layers_to_transform`. An adapter of only some layers is then saved with the full names of its
///   modules.
#[proc_macro_attribute]
pub fn adapter(arguments: TokenStream, item: TokenStream) -> TokenStream {
    plugin::expand(Kind::Adapter, arguments.into(), item.into()).into()
}

/// Turns a struct with `impl TransformPlugin` into a transform. A transform is a function of the
/// states at a tap.
///
/// This attribute takes only the [common arguments](crate).
#[proc_macro_attribute]
pub fn transform(arguments: TokenStream, item: TokenStream) -> TokenStream {
    plugin::expand(Kind::Transform, arguments.into(), item.into()).into()
}

/// Turns a struct with `impl TapPlugin` into a tap, which selects the sites where states are read.
///
/// This attribute takes only the [common arguments](crate).
#[proc_macro_attribute]
pub fn tap(arguments: TokenStream, item: TokenStream) -> TokenStream {
    plugin::expand(Kind::Tap, arguments.into(), item.into()).into()
}

/// Turns a struct with `impl DatasetPlugin` into a data set, a source of preference pairs.
///
/// Arguments in addition to the [common ones](crate):
/// - `argument`: the field that `--dataset NAME:TEXT` sets to `TEXT`.
/// - `extensions`: file extensions, without the dot, for which `--dataset FILE` selects this
///   plugin, e.g. `&["csv"]`. The field `argument` is set to the path.
/// - `repositories`: `true` if `--dataset org/name` (a Hugging Face repository) selects this
///   plugin. The field `argument` is set to the repository.
/// - `stdin`: `true` if `--dataset -` (standard input) selects this plugin. The field `argument` is
///   set to `-`.
#[proc_macro_attribute]
pub fn dataset(arguments: TokenStream, item: TokenStream) -> TokenStream {
    plugin::expand(Kind::Dataset, arguments.into(), item.into()).into()
}

/// Makes an enum usable as the type of a configuration field. Users write the name of a variant in
/// snake case.
///
/// The variants must not have data. Their doc comments are the help texts. One of them may be
/// marked `#[default]`.
#[proc_macro_attribute]
pub fn choice(arguments: TokenStream, item: TokenStream) -> TokenStream {
    choice::expand(&arguments.into(), item.into()).into()
}
