//! Which modules an adapter changes, and what differs between them.

use std::collections::BTreeMap;

use indexmap::{IndexMap, IndexSet};
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{LinearInfo, ModelInfo, PartInfo};
use crate::error::{Error, Result};

/// The word for every module.
const ALL: &str = "all-linear";

/// Whether a module's name is meant.
type Matcher<'a> = Box<dyn Fn(&str) -> bool + 'a>;

/// What architectures that fuse or rename Llama's projections have in their place. Where a default or a list names one of
/// Llama's, the module that holds it is meant, whole: PEFT has no adapter for a part of a module either. The part alone is
/// named with its module, `qkv_proj.q_proj`.
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
    /// Llama's projections, Llama's name means the module that holds it. A part of a fused module is named with the module:
    /// `qkv_proj.q_proj`, `gate_up_proj.up_proj`, `query_key_value.v_proj`.
    Suffixes(Vec<String>),
    /// `all-linear`, or a regular expression that has to match a whole name: of a module, or, where it names a fused module
    /// but does not match it, of a part, as `.*qkv_proj\.[qv]_proj`.
    Pattern(String),
}

impl Targets {
    /// The modules it means, and the parts of modules, in the model's order.
    ///
    /// # Errors
    /// A pattern that is no regular expression, a target that fits no module, or a module that is meant whole and in part.
    pub fn resolve<'m>(&self, model: &'m ModelInfo) -> Result<Vec<&'m LinearInfo>> {
        let fits = self.matcher()?;
        let mut hits = Vec::new();
        for module in &model.linears {
            let whole = fits(&module.name);
            let parts: Vec<_> = model.parts.iter().filter(|p| p.holder == module.name && self.means_part(p, &fits)).map(|p| &p.linear).collect();
            match (self, parts.first()) {
                (Targets::Suffixes(_), Some(part)) if whole => {
                    return Err(Error::new(format!("the target modules mean `{}` whole, and its part `{}` as well", module.name, last(&part.name)))
                        .hint("a part is named with its module, as `qkv_proj.q_proj`; without it, `q_proj` means the whole module that holds it"));
                }
                _ if whole => hits.push(module),
                _ => hits.extend(parts),
            }
        }
        let missing = match self {
            Targets::Suffixes(list) => list.iter().find(|suffix| !hits.iter().any(|l| l.is(suffix))),
            Targets::Pattern(p) => Some(p).filter(|_| hits.is_empty()),
        };
        let valid = || {
            model.linears.iter().map(|l| last(&l.name).to_owned()).chain(model.parts.iter().map(|p| format!("{}.{}", last(&p.holder), last(&p.linear.name))))
        };
        missing.map_or(Ok(hits), |given| Err(Error::unknown("target module", given, valid())))
    }

    /// Whether it means the part, where it does not mean the module. `fits` is its [`matcher`](Self::matcher).
    ///
    /// The module has to be named with the part: PEFT's files that ask for `q_proj` mean nothing by it where there is none.
    fn means_part(&self, part: &PartInfo, fits: &Matcher<'_>) -> bool {
        match self {
            Targets::Suffixes(list) => list.iter().any(|s| s.contains('.') && ends(&part.linear.name, s)),
            Targets::Pattern(p) => p != ALL && p.contains(last(&part.holder)) && fits(&part.linear.name),
        }
    }

    /// Whether it means the module of that name. Of parts that are adapted, Llama's name alone means one as well.
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
            let held = || model.linears.iter().find(|l| holds(&l.name, suffix)).map(|l| last(&l.name));
            let there = model.linears.iter().any(|l| ends(&l.name, suffix));
            if there { suffix.clone() } else { held().unwrap_or(suffix).to_owned() }
        };
        Targets::Suffixes(list.iter().map(own).collect::<IndexSet<_>>().into_iter().collect())
    }

    /// The same with whole modules in place of their parts.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub fn whole(&self, model: &ModelInfo) -> Result<Self> {
        let holder = |name: &str| model.part(name).map(|part| part.holder.clone());
        let names: IndexSet<String> = match self {
            Targets::Suffixes(list) => {
                let in_part = |s: &str| s.contains('.') && model.parts.iter().any(|p| ends(&p.linear.name, s));
                list.iter().map(|s| s.rsplit_once('.').filter(|_| in_part(s)).map_or_else(|| s.clone(), |(module, _)| module.to_owned())).collect()
            }
            Targets::Pattern(_) => {
                let hits = self.resolve(model)?;
                if hits.iter().all(|l| model.part(&l.name).is_none()) {
                    return Ok(self.clone());
                }
                hits.iter().map(|l| holder(&l.name).unwrap_or_else(|| l.name.clone())).collect()
            }
        };
        Ok(Targets::Suffixes(names.into_iter().collect()))
    }

    fn matcher(&self) -> Result<Matcher<'_>> {
        Ok(match self {
            Targets::Pattern(p) if p == ALL => Box::new(|_| true),
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

/// The last of a name's words between points.
fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
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
    use super::super::Rows;
    use super::*;

    const NAME: &str = "model.layers.0.self_attn.q_proj";

    #[test]
    fn a_suffix_is_made_of_whole_parts_of_a_name() {
        let fits = |list: &[&str]| Targets::Suffixes(list.iter().map(|&s| s.to_owned()).collect()).fits(NAME).unwrap();
        assert!(fits(&["q_proj"]) && fits(&["k_proj", "self_attn.q_proj"]) && fits(&[NAME]));
        assert!(!fits(&["proj"]) && !fits(&[]) && !fits(&["self_attn"]));
    }

    /// Two blocks of GPT-NeoX.
    fn fused() -> ModelInfo {
        let linear = |k: usize, name: &str| LinearInfo { name: format!("gpt_neox.layers.{k}.{name}"), layer: Some(k), inputs: 8, outputs: 8 };
        let modules = ["attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"];
        let part = |k: usize, start: i64, name: &str| PartInfo {
            linear: linear(k, &format!("attention.query_key_value.{name}")),
            holder: linear(k, modules[0]).name,
            rows: Rows { groups: 1, start, len: 8, width: 24 },
        };
        let linears = (0..2).flat_map(|k| modules.map(|name| linear(k, name))).collect();
        let parts = (0..2).flat_map(|k| [part(k, 0, "q_proj"), part(k, 8, "k_proj"), part(k, 16, "v_proj")]).collect();
        ModelInfo { architecture: "gpt_neox".to_owned(), layers: 2, hidden: 8, heads: 1, head_dim: 8, vocab: 8, linears, parts }
    }

    fn of(list: &[&str]) -> Targets {
        Targets::Suffixes(list.iter().map(|&s| s.to_owned()).collect())
    }

    fn pattern(p: &str) -> Targets {
        Targets::Pattern(p.to_owned())
    }

    /// What is meant in the first block, without what all names there begin with.
    fn hits(targets: &Targets) -> Vec<String> {
        let model = fused();
        let hits = targets.resolve(&model).unwrap();
        hits.iter().filter_map(|l| l.name.strip_prefix("gpt_neox.layers.0.")?.split_once('.')).map(|(_, name)| name.to_owned()).collect()
    }

    #[test]
    fn a_name_of_llamas_means_the_module_that_holds_it() {
        assert_eq!(hits(&of(&["q_proj", "v_proj"])), ["query_key_value"]);
        assert_eq!(hits(&of(&["o_proj", "down_proj"])), ["dense", "dense_4h_to_h"]);
        assert_eq!(of(&["q_proj", "v_proj", "down_proj"]).in_names_of(&fused()), of(&["query_key_value", "dense_4h_to_h"]));
        assert!(of(&["q_pro"]).resolve(&fused()).is_err() && of(&["self_attn.q_proj"]).resolve(&fused()).is_err());
    }

    #[test]
    fn a_part_is_meant_where_its_module_is_named_with_it() {
        let part = "query_key_value.q_proj";
        assert_eq!(hits(&of(&[part])), [part]);
        assert_eq!(hits(&of(&["attention.query_key_value.v_proj", "dense_4h_to_h", part])), [part, "query_key_value.v_proj", "dense_4h_to_h"]);
        assert_eq!(hits(&of(&["gpt_neox.layers.0.attention.query_key_value.k_proj"])), ["query_key_value.k_proj"]);
        assert_eq!(hits(&pattern(r".*query_key_value\.[qk]_proj")), [part, "query_key_value.k_proj"]);
        // A word for everything, or for the module, means the module and not its parts once more.
        assert_eq!(hits(&pattern("all-linear")), ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]);
        assert_eq!(hits(&pattern(".*attention.*")), ["query_key_value", "dense"]);
        assert_eq!(hits(&pattern(".*query_key_value.*")), ["query_key_value"]);
        assert_eq!(hits(&pattern(r".*\.([qk]_proj|dense)")), ["dense"]);
        assert!(pattern(r".*\.[qk]_proj").resolve(&fused()).is_err());
        assert_eq!(of(&[part]).in_names_of(&fused()), of(&[part]));
    }

    #[test]
    fn a_module_that_is_meant_whole_and_in_part_is_an_error() {
        for list in [["query_key_value", "query_key_value.q_proj"], ["query_key_value.q_proj", "q_proj"], ["v_proj", "query_key_value.q_proj"]] {
            let e = of(&list).resolve(&fused()).unwrap_err();
            assert!(e.message().contains("`gpt_neox.layers.0.attention.query_key_value` whole, and its part `q_proj`"), "{e}");
        }
    }

    #[test]
    fn a_part_that_a_module_does_not_have_is_an_error_that_names_those_it_has() {
        for unknown in ["query_key_value.qproj", "dense.q_proj", "qkv_proj.q_proj"] {
            let e = of(&[unknown]).resolve(&fused()).unwrap_err();
            assert_eq!(e.message(), format!("unknown target module `{unknown}`"));
            let hints = e.hints().join("\n");
            assert!(hints.contains("query_key_value.k_proj, query_key_value.q_proj, query_key_value.v_proj"), "{hints}");
        }
        let near = of(&["query_key_value.qproj"]).resolve(&fused()).unwrap_err();
        assert!(near.hints().contains(&"did you mean `query_key_value.q_proj`?"), "{near:?}");
    }

    #[test]
    fn whole_modules_stand_for_their_parts_where_parts_are_not_known() {
        let model = fused();
        let named = of(&["query_key_value.q_proj", "layers.1.attention.query_key_value.v_proj", "dense", "query_key_value.v_proj"]);
        assert_eq!(named.whole(&model).unwrap(), of(&["query_key_value", "layers.1.attention.query_key_value", "dense"]));
        let holders = ["gpt_neox.layers.0.attention.query_key_value", "gpt_neox.layers.1.attention.query_key_value"];
        assert_eq!(pattern(r".*query_key_value\.[qk]_proj").whole(&model).unwrap(), of(&holders));
        assert_eq!(pattern(".*dense").whole(&model).unwrap(), pattern(".*dense"));
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
