//! Arguments of `reprpo new`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use reprpo_core::registry::Kind;

/// Create a crate for a new plugin. It compiles and passes its tests without changes.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo new intervention twist
  reprpo new dataset my-pairs --path ~/plugins/my-pairs

The crate's README explains how to test, build and load it.")]
pub struct NewArgs {
    /// Kind of the plugin.
    #[arg(value_enum)]
    pub kind: NewKind,
    /// Name of the plugin and of its crate, made of a-z, 0-9 and -.
    pub name: String,
    /// Folder to create, which must not exist yet. Defaults to the name.
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub path: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NewKind {
    /// A training objective.
    Intervention,
    /// A trainable change to the model.
    Adapter,
    /// A map applied to the activations before the loss compares them.
    Transform,
    /// A choice of sites at which the model's activations are read.
    Tap,
    /// A source of preference pairs.
    Dataset,
}

impl NewKind {
    /// Converts to the registry's plugin kind.
    pub fn kind(self) -> Kind {
        match self {
            NewKind::Intervention => Kind::Intervention,
            NewKind::Adapter => Kind::Adapter,
            NewKind::Transform => Kind::Transform,
            NewKind::Tap => Kind::Tap,
            NewKind::Dataset => Kind::Dataset,
        }
    }
}
