//! Arguments of `reprpo list` and `reprpo explain`.

use clap::{Args, ValueEnum};
use reprpo_core::registry::Kind;

/// List interventions, adapters, transforms, taps, data sets, recipes, suites and models.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo list
  reprpo list adapters
  reprpo list --long
  reprpo list suites --long
  reprpo list models --json")]
pub struct ListArgs {
    /// List only one kind.
    #[arg(value_enum)]
    pub kind: Option<ListKind>,
    /// Also print aliases, crates, references, needs and files.
    #[arg(long, help_heading = "Output")]
    pub long: bool,
    /// Print a JSON list.
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
    /// Published settings for `--recipe`.
    Recipes,
    /// Sets of shifts for `--suite`.
    Suites,
    /// Models that can be chosen by a short name.
    Models,
}

impl ListKind {
    /// The kind of plugin; `None` for recipes, suites and models.
    pub fn plugin(self) -> Option<Kind> {
        match self {
            ListKind::Interventions => Some(Kind::Intervention),
            ListKind::Adapters => Some(Kind::Adapter),
            ListKind::Transforms => Some(Kind::Transform),
            ListKind::Taps => Some(Kind::Tap),
            ListKind::Datasets => Some(Kind::Dataset),
            ListKind::Recipes | ListKind::Suites | ListKind::Models => None,
        }
    }
}

/// Describe a plugin (formula, needs, fields, reference) or a recipe (the values it sets).
#[derive(Args)]
pub struct ExplainArgs {
    /// Name from `reprpo list`.
    pub name: String,
    /// Print a JSON list.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}
