//! Recipes: values of an experiment that belong together, under a name.

use crate::error::{Error, Result};

/// The text of a recipe and the crate that ships it, as [`recipe!`](crate::recipe) hands it in.
#[derive(Debug)]
pub struct RecipeText {
    /// TOML: the table `recipe` (`name`, `summary`, `reference`, `published`), and beside it what a
    /// configuration file may hold.
    pub toml: &'static str,
    /// The crate it comes with.
    pub origin: &'static str,
    /// That crate's version.
    pub version: &'static str,
}

inventory::collect!(RecipeText);

/// Registers a recipe by its text with the program that links its crate:
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

/// A recipe, read.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Its name.
    pub name: String,
    /// One line: what it does.
    pub summary: String,
    /// Where it comes from: paper or project.
    pub reference: String,
    /// What was published of it, and on what; empty where nothing was.
    pub published: String,
    /// The values it sets, as a configuration file has them.
    pub values: toml::Table,
    /// The crate it comes with.
    pub origin: &'static str,
    /// That crate's version.
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
    /// Reads `text`. Whether plugins know its values is seen when it is chosen.
    ///
    /// # Errors
    /// Text that is no TOML or has no such header, or a name that a command line would have to
    /// quote.
    pub(super) fn read(text: &RecipeText) -> Result<Self> {
        let broken = |e: toml::de::Error| {
            Error::internal(format!("a recipe of {} cannot be read", text.origin)).because(e)
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
                "recipe `{name}` of {} has a name with other than a-z, 0-9, - and _",
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

    /// The values as the text of a configuration file.
    pub fn to_toml(&self) -> String {
        // What was read as TOML is written as TOML.
        toml::to_string(&self.values).unwrap_or_default()
    }
}
