//! Arguments of `reprpo list` and `reprpo explain`.

use clap::{Args, ValueEnum};
use reprpo_core::registry::Kind;

/// What there is: interventions, adapters, transforms, taps, data sets, recipes, models.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo list
  reprpo list adapters
  reprpo list models --json")]
pub struct ListArgs {
    /// Of one kind alone.
    #[arg(value_enum)]
    pub kind: Option<ListKind>,
    /// As a JSON list.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ListKind {
    Interventions,
    Adapters,
    Transforms,
    Taps,
    Datasets,
    /// Settings that belong together, for `--recipe`.
    Recipes,
    /// Models with a name of their own, and whether they are on this machine.
    Models,
}

impl ListKind {
    /// The kind of plugin; `None` if it is not a kind of plugin.
    pub fn kind(self) -> Option<Kind> {
        match self {
            ListKind::Interventions => Some(Kind::Intervention),
            ListKind::Adapters => Some(Kind::Adapter),
            ListKind::Transforms => Some(Kind::Transform),
            ListKind::Taps => Some(Kind::Tap),
            ListKind::Datasets => Some(Kind::Dataset),
            ListKind::Recipes | ListKind::Models => None,
        }
    }
}

/// A method: its formula, what it needs, and every field; or a recipe: what it sets.
#[derive(Args)]
pub struct ExplainArgs {
    /// A name from `reprpo list`.
    pub name: String,
    /// As a JSON list.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}
