//! Which modules an adapter changes, and what differs between them.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{LinearInfo, ModelInfo};
use crate::error::{Error, Result};

/// Whether a module's name is meant.
type Matcher<'a> = Box<dyn Fn(&str) -> bool + 'a>;

/// Which linear modules get an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Targets {
    /// Names or ends of names: `q_proj` fits `model.layers.0.self_attn.q_proj`.
    Suffixes(Vec<String>),
    /// `all-linear`, or a regular expression that has to match a whole name.
    Pattern(String),
}

impl Targets {
    /// The modules it means, in the model's order.
    ///
    /// # Errors
    /// A pattern that is no regular expression, or a target that fits no module.
    pub fn resolve<'m>(&self, model: &'m ModelInfo) -> Result<Vec<&'m LinearInfo>> {
        let fits = self.matcher()?;
        let hits: Vec<_> = model.linears.iter().filter(|l| fits(&l.name)).collect();
        let missing = match self {
            Targets::Suffixes(list) => list.iter().find(|suffix| !hits.iter().any(|l| ends(&l.name, suffix))),
            Targets::Pattern(p) => Some(p).filter(|_| hits.is_empty()),
        };
        match missing {
            Some(given) => Err(Error::unknown("target module", given, model.linears.iter().map(|l| l.name.rsplit('.').next().unwrap_or(&l.name)))),
            None => Ok(hits),
        }
    }

    /// Whether it means the module of that name.
    ///
    /// # Errors
    /// A pattern that is no regular expression.
    pub fn fits(&self, name: &str) -> Result<bool> {
        Ok(self.matcher()?(name))
    }

    fn matcher(&self) -> Result<Matcher<'_>> {
        Ok(match self {
            Targets::Pattern(p) if p == "all-linear" => Box::new(|_| true),
            Targets::Pattern(p) => {
                let regex = Regex::new(&format!("^(?:{p})$")).map_err(|e| {
                    Error::new(format!("target_modules `{p}` is not a regular expression"))
                        .because(e)
                        .hint("give a list of names, a regular expression or `all-linear`")
                })?;
                Box::new(move |name| regex.is_match(name))
            }
            Targets::Suffixes(list) => Box::new(move |name| list.iter().any(|s| ends(name, s))),
        })
    }
}

/// Whether `name` is `suffix`, or ends in it behind a point.
fn ends(name: &str, suffix: &str) -> bool {
    name == suffix || name.strip_suffix(suffix).is_some_and(|head| head.ends_with('.'))
}

/// Values for some modules: from a regular expression for the end of a module's name, `q_proj` or
/// `layers\.[01]\.mlp\.down_proj`, to the value of the modules that it fits. The first that fits counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Patterns<V: JsonSchema>(#[schemars(with = "BTreeMap<String, V>")] pub IndexMap<String, V>);

impl<V: JsonSchema> Default for Patterns<V> {
    fn default() -> Self {
        Self(IndexMap::new())
    }
}

impl<V: JsonSchema> Patterns<V> {
    /// The value for the module of that name, where a pattern fits it.
    ///
    /// # Errors
    /// A pattern that is no regular expression.
    pub fn get(&self, name: &str) -> Result<Option<&V>> {
        for (pattern, value) in &self.0 {
            // PEFT's rule: the pattern begins at the name's start or behind a point, and reaches to its end.
            let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"))
                .map_err(|e| Error::new(format!("the pattern `{pattern}` for module names is not a regular expression")).because(e))?;
            if regex.is_match(name) {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// The values, in order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.0.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "model.layers.0.self_attn.q_proj";

    #[test]
    fn a_suffix_is_made_of_whole_parts_of_a_name() {
        let fits = |list: &[&str]| Targets::Suffixes(list.iter().map(|&s| s.to_owned()).collect()).fits(NAME).unwrap();
        assert!(fits(&["q_proj"]) && fits(&["k_proj", "self_attn.q_proj"]) && fits(&[NAME]));
        assert!(!fits(&["proj"]) && !fits(&[]) && !fits(&["self_attn"]));
    }

    #[test]
    fn the_first_pattern_that_fits_the_end_of_a_name_counts() {
        let of = |list: &[(&str, u32)]| Patterns(list.iter().map(|(p, v)| ((*p).to_owned(), *v)).collect()).get(NAME).map(|v| v.copied());
        assert_eq!(of(&[("k_proj", 1), ("q_proj", 2), (r"layers\.0\..*", 3)]).unwrap(), Some(2));
        assert_eq!(of(&[(r"layers\.0\..*", 3), ("q_proj", 2)]).unwrap(), Some(3));
        assert_eq!(of(&[("proj", 1), ("self_attn", 2)]).unwrap(), None);
        assert_eq!(of(&[("k_proj|q_proj", 4)]).unwrap(), Some(4));
        assert!(of(&[("(", 1)]).unwrap_err().to_string().contains("`(`"));
    }
}
