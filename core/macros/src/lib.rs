//! The attributes that turn a configuration struct into a plugin.
//!
//! `#[intervention(…)]`, `#[adapter(…)]`, `#[transform(…)]`, `#[tap(…)]` and `#[dataset(…)]` stand
//! on the struct whose fields are the method's configuration. The struct stays as it is written.
//! Each attribute derives what a configuration needs (`Clone`, `Debug`, `PartialEq`, serde's
//! traits, the JSON schema), takes the defaults from the fields' `#[default(…)]`, describes the
//! method, and registers it with the program that links its crate. The author writes how it is
//! built: `impl InterventionPlugin for MyMethod`.
//!
//! The arguments, in any order:
//!
//! | argument | value |
//! |---|---|
//! | `name` | the name on the command line: a-z, 0-9 and `-` |
//! | `aliases` | other names for it, as `&["other"]`; may be left out |
//! | `summary` | one line: what it does |
//! | `reference` | where it comes from: paper and section, or project |
//! | `explain` | the formula and what to know before using it |
//! | `example(field = value, …)` | fields and values of the example in `reprpo explain`; may be left out |
//!
//! Each kind has further arguments, which its attribute lists. The generated code refers to the
//! crate `reprpo_plugin`, which is the only dependency that a plugin needs.

mod arguments;
mod choice;
mod plugin;

use proc_macro::TokenStream;

use self::arguments::Kind;

/// A training objective, made by `impl InterventionPlugin`.
///
/// Besides the [common arguments](crate):
/// - `learning_rate`: the default of `train.lr` with a low-rank update (LoRA), e.g. `2e-3`. An
///   adapter multiplies it by its own `learning_rate_factor`. Without it the engine's default
///   stays.
#[proc_macro_attribute]
pub fn intervention(arguments: TokenStream, item: TokenStream) -> TokenStream {
    plugin::expand(Kind::Intervention, arguments.into(), item.into()).into()
}

/// A trainable change of linear modules or of blocks, made by `impl AdapterPlugin`.
///
/// The fields `target_modules` (`Targets`) and `layers_to_transform` (`Option<Vec<usize>>`) select
/// the linear modules that are adapted. A struct without `target_modules` needs an
/// `impl TargetModules` of its own.
///
/// Besides the [common arguments](crate):
/// - `peft_type`: the type in `adapter_config.json`; required.
/// - `learning_rate_factor`: factor on the default of `train.lr`, which is 1 for LoRA. An adapter
///   whose parameters must move further to change the model as much has a larger factor.
/// - `adjustable`: fields, such as dropout, that a run may change when it continues from a saved
///   adapter, e.g. `&["lora_dropout"]`. They affect neither the shapes of the saved tensors nor the
///   function that these compute. A run that contradicts the saved adapter in any other field is
///   refused.
/// - `peft_has_layers`: `false` if PEFT's configuration class for this type has no
///   `layers_to_transform`. An adapter of only some layers is then saved with the full names of its
///   modules.
#[proc_macro_attribute]
pub fn adapter(arguments: TokenStream, item: TokenStream) -> TokenStream {
    plugin::expand(Kind::Adapter, arguments.into(), item.into()).into()
}

/// A map of the states at a tap, made by `impl TransformPlugin`.
///
/// It has only the [common arguments](crate).
#[proc_macro_attribute]
pub fn transform(arguments: TokenStream, item: TokenStream) -> TokenStream {
    plugin::expand(Kind::Transform, arguments.into(), item.into()).into()
}

/// A choice of places where states are read, made by `impl TapPlugin`.
///
/// It has only the [common arguments](crate).
#[proc_macro_attribute]
pub fn tap(arguments: TokenStream, item: TokenStream) -> TokenStream {
    plugin::expand(Kind::Tap, arguments.into(), item.into()).into()
}

/// A source of preference pairs, made by `impl DatasetPlugin`.
///
/// Besides the [common arguments](crate):
/// - `argument`: the field that `--dataset NAME:TEXT` fills with `TEXT`.
/// - `extensions`: endings of files, without the dot, that `--dataset FILE` hands to this plugin,
///   e.g. `&["csv"]`. The path fills `argument`.
/// - `repositories`: `true` if `--dataset org/name`, a repository of the hub, is handed to this
///   plugin. It fills `argument`.
/// - `stdin`: `true` if this plugin reads `--dataset -`, pairs on standard input. `-` fills
///   `argument`.
#[proc_macro_attribute]
pub fn dataset(arguments: TokenStream, item: TokenStream) -> TokenStream {
    plugin::expand(Kind::Dataset, arguments.into(), item.into()).into()
}

/// An enum without data as the type of a configuration field: the user writes one of its variants,
/// in snake case.
///
/// Each variant's doc comment is its help. One of them may be marked `#[default]`.
#[proc_macro_attribute]
pub fn choice(arguments: TokenStream, item: TokenStream) -> TokenStream {
    choice::expand(&arguments.into(), item.into()).into()
}
