//! A value parser for the names of plugins and recipes. The parser accepts any name, because the
//! registry's errors are more informative than clap's. The names only appear in the help.

use std::ffi::OsStr;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use reprpo_core::registry::{Kind, Registry};

/// A parser that accepts any string. The help lists the names and summaries as possible values.
#[derive(Clone)]
pub struct Names(Vec<(String, String)>);

impl Names {
    /// Creates a parser for the names of all plugins of a kind.
    pub fn of(registry: &Registry, kind: Kind) -> Self {
        Self(
            registry
                .of(kind)
                .map(|e| (e.about().name.to_owned(), e.about().summary.to_owned()))
                .collect(),
        )
    }

    /// Creates a parser for the names of the recipes.
    pub fn of_recipes(registry: &Registry) -> Self {
        Self(registry.recipes().map(|r| (r.name.clone(), r.summary.clone())).collect())
    }
}

impl TypedValueParser for Names {
    type Value = String;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(
            self.0
                .iter()
                .map(|(name, summary)| PossibleValue::new(name.clone()).help(summary.clone())),
        ))
    }
}
