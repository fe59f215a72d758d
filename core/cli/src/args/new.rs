//! Arguments of `reprpo new`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use reprpo_core::registry::Kind;

/// Make the crate of a new method: it compiles, passes its tests and does something sensible at
/// once.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo new intervention twist
  reprpo new dataset my-pairs --path ~/plugins/my-pairs

The crate's README says how to test, build and load it.")]
pub struct NewArgs {
    /// What it is.
    #[arg(value_enum)]
    pub kind: NewKind,
    /// Its name on the command line, and that of its crate: a-z, 0-9 and -.
    pub name: String,
    /// Its folder, which does not exist yet; one of its name when not given.
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub path: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NewKind {
    /// A training objective.
    Intervention,
    /// A trainable change of the model.
    Adapter,
    /// A map of the activations before a loss compares them.
    Transform,
    /// A place where activations are read.
    Tap,
    /// A source of preference pairs.
    Dataset,
}

impl NewKind {
    /// As the registry has it.
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
