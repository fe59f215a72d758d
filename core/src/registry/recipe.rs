//! Recipes: named sets of configuration values, for example the settings of a published experiment.

use crate::error::{Error, Result};

/// The text of a recipe and the crate that contains it, registered by [`recipe!`](crate::recipe).
#[derive(Debug)]
pub struct RecipeText {
    /// TOML text. It has the same structure as a configuration file, plus a table `recipe` with
    /// `name`, `summary`, `reference` and `published`.
    pub toml: &'static str,
    /// Name of the crate that contains the recipe.
    pub origin: &'static str,
    /// Version of that crate.
    pub version: &'static str,
}

inventory::collect!(RecipeText);

/// Registers the text of a recipe with the program that links the crate, e.g.
/// `recipe!(include_str!("mine.toml"));`.
#[macro_export]
macro_rules! recipe {
    ($toml:expr) => {
        $crate::inventory::submit! {
            $crate::registry::RecipeText { toml: $toml, origin: env!("CARGO_PKG_NAME"),
                version: env!("CARGO_PKG_VERSION") }
        }
    };
}

/// A parsed recipe.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Name on the command line.
    pub name: String,
    /// One line that says what the recipe does.
    pub summary: String,
    /// Source of the recipe: paper or project.
    pub reference: String,
    /// Published results, with the model and the data; empty if there are none.
    pub published: String,
    /// The values that the recipe sets, in the structure of a configuration file.
    pub values: toml::Table,
    /// Name of the crate that contains the recipe.
    pub origin: &'static str,
    /// Version of that crate.
    pub version: &'static str,
}

/// The table `recipe`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    name: String,
    summary: String,
    reference: String,
    #[serde(default)]
    published: String,
}

impl Recipe {
    /// Parses the text of a recipe. The values are only checked against the plugins' fields when
    /// the recipe is used.
    ///
    /// # Errors
    /// Fails if the text is not TOML, if the table `recipe` is missing or incomplete, or if the
    /// name has characters other than a-z, 0-9, `-` and `_`.
    pub(super) fn read(text: &RecipeText) -> Result<Self> {
        let broken = |e: toml::de::Error| {
            Error::internal(format!("cannot parse a recipe of the crate `{}`", text.origin))
                .because(e)
        };
        let mut values: toml::Table = toml::from_str(text.toml).map_err(broken)?;
        let header =
            values.remove("recipe").unwrap_or_else(|| toml::Value::Table(toml::Table::new()));
        let Header { name, summary, reference, published } = header.try_into().map_err(broken)?;
        if name.is_empty()
            || !name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
        {
            return Err(Error::internal(format!(
                "invalid recipe name `{name}` in {}: names must only contain a-z, 0-9, - and _",
                text.origin
            )));
        }
        Ok(Self {
            name,
            summary,
            reference,
            published: published.trim().to_owned(),
            values,
            origin: text.origin,
            version: text.version,
        })
    }

    /// Formats the values as the text of a configuration file.
    pub fn to_toml(&self) -> String {
        // Values that were parsed from TOML can always be serialised as TOML.
        toml::to_string(&self.values).unwrap_or_default()
    }
}
