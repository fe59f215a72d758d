//! Which modules an adapter changes, and what differs between them.

use std::collections::{BTreeMap, HashSet};

use indexmap::IndexMap;
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{LinearInfo, ModelInfo};
use crate::error::{Error, Result};

/// Whether a module's name is meant.
type Matcher<'a> = Box<dyn Fn(&str) -> bool + 'a>;

/// What architectures that fuse or rename Llama's projections have in their place. Where a default or a list names one of
/// Llama's, the module that holds it is meant, whole: PEFT has no adapter for a part of a module either.
const HOLDERS: [(&str, &[&str]); 7] = [
    ("q_proj", &["qkv_proj", "query_key_value"]),
    ("k_proj", &["qkv_proj", "query_key_value"]),
    ("v_proj", &["qkv_proj", "query_key_value"]),
    ("o_proj", &["attention.dense"]),
    ("gate_proj", &["gate_up_proj", "dense_h_to_4h"]),
    ("up_proj", &["gate_up_proj", "dense_h_to_4h"]),
    ("down_proj", &["dense_4h_to_h"]),
];

/// Whether the module `name` is, or holds, the projection that Llama calls `projection`.
fn holds(name: &str, projection: &str) -> bool {
    HOLDERS.iter().filter(|(llamas, _)| *llamas == projection).any(|(_, holders)| holders.iter().any(|h| ends(name, h)))
}

impl LinearInfo {
    /// Whether its name ends in `suffix`, or it holds the projection that Llama calls so: `q_proj` is within Phi-3's
    /// `qkv_proj` and GPT-NeoX's `query_key_value`.
    pub fn is(&self, suffix: &str) -> bool {
        ends(&self.name, suffix) || holds(&self.name, suffix)
    }
}

/// Which linear modules get an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Targets {
    /// Names or ends of names: `q_proj` fits `model.layers.0.self_attn.q_proj`. Where an architecture fuses or renames
    /// Llama's projections, Llama's name means the module that holds it.
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
            Targets::Suffixes(list) => list.iter().find(|suffix| !hits.iter().any(|l| l.is(suffix))),
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

    /// The same in the model's own names, for files that other programs read.
    #[must_use]
    pub fn in_names_of(&self, model: &ModelInfo) -> Self {
        let Targets::Suffixes(list) = self else { return self.clone() };
        let own = |suffix: &String| {
            let held = || model.linears.iter().find(|l| holds(&l.name, suffix)).and_then(|l| l.name.rsplit('.').next());
            let there = model.linears.iter().any(|l| ends(&l.name, suffix));
            if there { suffix.clone() } else { held().unwrap_or(suffix).to_owned() }
        };
        let mut own: Vec<String> = list.iter().map(own).collect();
        let mut seen = HashSet::new();
        own.retain(|name| seen.insert(name.clone()));
        Targets::Suffixes(own)
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
            Targets::Suffixes(list) => Box::new(move |name| list.iter().any(|s| ends(name, s) || holds(name, s))),
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
    fn a_name_of_llamas_means_the_module_that_holds_it() {
        let linear = |name: &str| LinearInfo { name: format!("gpt_neox.layers.0.{name}"), layer: Some(0), inputs: 8, outputs: 8 };
        let linears = ["attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"].map(linear).to_vec();
        let model = ModelInfo { architecture: "gpt_neox".to_owned(), layers: 1, hidden: 8, heads: 1, head_dim: 8, vocab: 8, linears, parts: Vec::new() };
        let of = |list: &[&str]| Targets::Suffixes(list.iter().map(|&s| s.to_owned()).collect());
        let hits = |list: &[&str]| of(list).resolve(&model).unwrap().iter().map(|l| l.name.rsplit('.').next().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!(hits(&["q_proj", "v_proj"]), ["query_key_value"]);
        assert_eq!(hits(&["o_proj", "down_proj"]), ["dense", "dense_4h_to_h"]);
        assert_eq!(of(&["q_proj", "v_proj", "down_proj"]).in_names_of(&model), of(&["query_key_value", "dense_4h_to_h"]));
        assert!(of(&["q_pro"]).resolve(&model).is_err() && of(&["self_attn.q_proj"]).resolve(&model).is_err());
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
