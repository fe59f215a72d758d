//! Selection of the modules that an adapter changes, and settings for individual modules.

use std::collections::BTreeMap;

use indexmap::{IndexMap, IndexSet};
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{LinearInfo, ModelInfo, PartInfo};
use crate::error::{Error, Result, nearest};

/// The value of `target_modules` that targets every linear module.
const ALL: &str = "all-linear";

/// A predicate that is true for the names of targeted modules.
type Matcher<'a> = Box<dyn Fn(&str) -> bool + 'a>;

/// Llama's projections, each with the modules that contain or replace it in other architectures.
///
/// A target such as `q_proj` selects the whole fused module, because PEFT cannot adapt a part of a
/// module. To select only the part, the target must also name the module, as in `qkv_proj.q_proj`.
const HOLDERS: [(&str, &[&str]); 7] = [
    ("q_proj", &["qkv_proj", "query_key_value", "c_attn"]),
    ("k_proj", &["qkv_proj", "query_key_value", "c_attn"]),
    ("v_proj", &["qkv_proj", "query_key_value", "c_attn"]),
    ("o_proj", &["attention.dense", "attn.c_proj"]),
    ("gate_proj", &["gate_up_proj", "dense_h_to_4h", "c_fc"]),
    ("up_proj", &["gate_up_proj", "dense_h_to_4h", "c_fc"]),
    ("down_proj", &["dense_4h_to_h", "mlp.c_proj"]),
];

/// Returns the suffix of `name` that [`HOLDERS`] lists for Llama's `projection`. Returns `None` if
/// the module does not contain the projection.
fn holder(name: &str, projection: &str) -> Option<&'static str> {
    let of = |llamas: &str| llamas == projection;
    HOLDERS
        .iter()
        .filter(|(llamas, _)| of(llamas))
        .find_map(|(_, holders)| holders.iter().find(|h| ends(name, h)).copied())
}

/// True if the module `name` corresponds to, or contains, Llama's `projection`.
fn holds(name: &str, projection: &str) -> bool {
    holder(name, projection).is_some()
}

impl LinearInfo {
    /// True if the name of the module ends in `suffix`, or if `suffix` is a Llama projection that
    /// the module contains. For example, Phi-3's `qkv_proj`, GPT-NeoX's `query_key_value` and
    /// GPT-2's `c_attn` contain `q_proj`.
    pub fn is(&self, suffix: &str) -> bool {
        ends(&self.name, suffix) || holds(&self.name, suffix)
    }
}

/// The linear modules that get an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Targets {
    /// Module names or suffixes: `q_proj` matches `model.layers.0.self_attn.q_proj`. If an
    /// architecture fuses or renames Llama's projections, Llama's name selects the module that
    /// contains the projection. To select a part of a fused module, add the module's name:
    /// `qkv_proj.q_proj`, `gate_up_proj.up_proj`, `query_key_value.v_proj`.
    #[schemars(extend("uniqueItems" = true))]
    Suffixes(Vec<String>),
    /// `all-linear`, or a regular expression that must match the full name of a module. To match
    /// parts of a fused module, it must contain the module's name, e.g. `.*qkv_proj\.[qv]_proj`.
    Pattern(String),
}

/// An empty list, which selects nothing.
impl Default for Targets {
    fn default() -> Self {
        Targets::Suffixes(Vec::new())
    }
}

impl<const N: usize> From<[&str; N]> for Targets {
    fn from(suffixes: [&str; N]) -> Self {
        Self::Suffixes(suffixes.map(str::to_owned).into())
    }
}

impl Targets {
    /// Returns the targeted modules and parts of modules, in the model's order.
    ///
    /// # Errors
    /// Fails if a pattern is not a regular expression, if a target matches no module, or if both a
    /// whole module and a part of it are targeted.
    pub fn resolve<'m>(&self, model: &'m ModelInfo) -> Result<Vec<&'m LinearInfo>> {
        let hits = self.select(model, None)?;
        match self.unmatched(&hits, model)?.into_iter().next() {
            Some(e) => Err(e),
            None => Ok(hits),
        }
    }

    /// Returns the targeted modules and parts of modules in the model's order. If `layers` is
    /// given, modules in other layers are left out. As in PEFT, `layers` does not apply to a module
    /// that is listed by its full name. As in PEFT, a target that matches no module is ignored.
    ///
    /// # Errors
    /// Fails if a pattern is not a regular expression, or if both a whole module and a part of it
    /// are targeted.
    pub fn select<'m>(
        &self,
        model: &'m ModelInfo,
        layers: Option<&[usize]>,
    ) -> Result<Vec<&'m LinearInfo>> {
        let fits = self.matcher()?;
        let within = |l: &LinearInfo| match (l.layer, layers) {
            (Some(k), Some(some)) => some.contains(&k) || self.lists_full_name(&l.name),
            _ => true,
        };
        let mut hits = Vec::new();
        for module in &model.linears {
            let whole = fits(&module.name);
            let parts: Vec<_> = model
                .parts
                .iter()
                .filter(|p| p.holder == module.name && self.means_part(p, &fits))
                .map(|p| &p.linear)
                .collect();
            match (self, parts.first()) {
                (Targets::Suffixes(_), Some(part)) if whole => {
                    return Err(Error::new(format!(
                        "`target_modules` selects both the whole module `{}` and its part `{}`",
                        module.name,
                        last(&part.name)
                    ))
                    .hint(
                        "write `qkv_proj.q_proj` to select only a part; `q_proj` selects the whole \
                            module that contains it",
                    ));
                }
                _ if whole => hits.push(module),
                _ => hits.extend(parts),
            }
        }
        hits.retain(|l| within(l));
        Ok(hits)
    }

    /// True if the targets are a list that contains the full name of the module.
    fn lists_full_name(&self, name: &str) -> bool {
        matches!(self, Targets::Suffixes(list) if list.iter().any(|s| s == name))
    }

    /// Returns one error for each target that matches none of `hits`. `hits` is the result of
    /// [`select`](Self::select) for `model`.
    ///
    /// # Errors
    /// Fails if a pattern is not a regular expression.
    pub fn unmatched(&self, hits: &[&LinearInfo], model: &ModelInfo) -> Result<Vec<Error>> {
        Ok(match self {
            Targets::Suffixes(list) => list
                .iter()
                .filter(|suffix| !hits.iter().any(|l| l.is(suffix)))
                .map(|given| unknown_name(given, model))
                .collect(),
            Targets::Pattern(p) if hits.is_empty() => vec![unmatched_pattern(p, model)],
            Targets::Pattern(_) => Vec::new(),
        })
    }

    /// The targets without the entries that match one of `names`.
    pub(crate) fn without(&self, names: &[String]) -> Self {
        match self {
            Targets::Suffixes(list) => {
                let other = |s: &&String| !names.iter().any(|name| ends(name, s));
                Targets::Suffixes(list.iter().filter(other).cloned().collect())
            }
            pattern => pattern.clone(),
        }
    }

    /// True if the targets select `part`, assuming that they do not select the whole module. `fits`
    /// is the [`matcher`](Self::matcher) of the targets.
    ///
    /// A target must name both the module and the part, because PEFT ignores a target such as
    /// `q_proj` if the model has no module with that name.
    fn means_part(&self, part: &PartInfo, fits: &Matcher<'_>) -> bool {
        match self {
            Targets::Suffixes(list) => {
                list.iter().any(|s| s.contains('.') && ends(&part.linear.name, s))
            }
            Targets::Pattern(p) => {
                !is_all(p) && p.contains(last(&part.holder)) && fits(&part.linear.name)
            }
        }
    }

    /// True if the targets are `all-linear`, which selects every linear module.
    pub fn is_all(&self) -> bool {
        matches!(self, Targets::Pattern(p) if is_all(p))
    }

    /// True if the targets select the module or part called `name`. Unlike in
    /// [`select`](Self::select), a target such as `q_proj` also matches a part with that name.
    ///
    /// # Errors
    /// Fails if a pattern is not a regular expression.
    pub fn fits(&self, name: &str) -> Result<bool> {
        Ok(self.matcher()?(name))
    }

    /// Returns a predicate that is true for the names of the modules that these targets exclude, if
    /// they are the value of `exclude_modules`. As in PEFT, a list contains the ends of the model's
    /// own names, and `all-linear` has no special meaning.
    ///
    /// # Errors
    /// Fails if a pattern is not a regular expression.
    pub(crate) fn excluder(&self) -> Result<Matcher<'_>> {
        Ok(match self {
            Targets::Suffixes(list) => Box::new(move |name| list.iter().any(|s| ends(name, s))),
            Targets::Pattern(p) => {
                let regex = whole_name(p, "exclude_modules")?;
                Box::new(move |name| regex.is_match(name))
            }
        })
    }

    /// Returns one error for each target that excludes none of `hits`, if these targets are the
    /// value of `exclude_modules`. `hits` are the modules that would be adapted otherwise.
    ///
    /// # Errors
    /// Fails if a pattern is not a regular expression.
    pub(crate) fn excludes_none(&self, hits: &[&LinearInfo]) -> Result<Vec<Error>> {
        let entries: Vec<Self> = match self {
            Targets::Suffixes(list) => {
                list.iter().map(|s| Targets::Suffixes(vec![s.clone()])).collect()
            }
            pattern => vec![pattern.clone()],
        };
        let mut errors = Vec::new();
        for entry in entries {
            let excluded = entry.excluder()?;
            if hits.iter().any(|l| excluded(&l.name)) {
                continue;
            }
            let (given, what) = match &entry {
                Targets::Pattern(p) => (p.as_str(), "a regular expression for whole names"),
                Targets::Suffixes(list) => {
                    (list.first().map_or("", String::as_str), "the end of a module's name")
                }
            };
            let mut names: Vec<String> = hits.iter().map(|l| last(&l.name).to_owned()).collect();
            names.sort_unstable();
            names.dedup();
            let e = Error::new(format!(
                "`{given}` in `adapter.exclude_modules` excludes none of the modules that \
                    `adapter.target_modules` selects"
            ))
            .hint(format!("it must be {what}; the adapter would change: {}", names.join(", ")));
            errors.push(match nearest(given, &names) {
                Some(near) => e.hint(format!("did you mean `{near}`?")),
                None => e,
            });
        }
        Ok(errors)
    }

    /// Replaces Llama's names with the model's own names, for files that other programs read.
    #[must_use]
    pub fn in_names_of(&self, model: &ModelInfo) -> Self {
        let Targets::Suffixes(list) = self else { return self.clone() };
        let any = |fits: &dyn Fn(&LinearInfo) -> bool| model.linears.iter().any(fits);
        let own = |suffix: &String| {
            let held = || {
                let (found, end) =
                    model.linears.iter().find_map(|l| Some((l, holder(&l.name, suffix)?)))?;
                // The last component of a name may be ambiguous: GPT-2 has `attn.c_proj` and
                // `mlp.c_proj`.
                let short = last(&found.name);
                Some(if any(&|l| ends(&l.name, short) && !holds(&l.name, suffix)) {
                    end
                } else {
                    short
                })
            };
            let there = any(&|l| ends(&l.name, suffix));
            if there { suffix.clone() } else { held().unwrap_or(suffix).to_owned() }
        };
        Targets::Suffixes(list.iter().map(own).collect::<IndexSet<_>>().into_iter().collect())
    }

    /// Replaces each part of a module with the whole module.
    ///
    /// # Errors
    /// Fails in the same cases as [`select`](Self::select).
    pub fn whole(&self, model: &ModelInfo) -> Result<Self> {
        let holder = |name: &str| model.part(name).map(|part| part.holder.clone());
        let names: IndexSet<String> = match self {
            Targets::Suffixes(list) => {
                let in_part = |s: &str| {
                    s.contains('.') && model.parts.iter().any(|p| ends(&p.linear.name, s))
                };
                list.iter()
                    .map(|s| {
                        s.rsplit_once('.')
                            .filter(|_| in_part(s))
                            .map_or_else(|| s.clone(), |(module, _)| module.to_owned())
                    })
                    .collect()
            }
            Targets::Pattern(_) => {
                let hits = self.select(model, None)?;
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
            Targets::Pattern(p) if is_all(p) => Box::new(|_| true),
            Targets::Pattern(p) => {
                let regex = whole_name(p, "target_modules").map_err(|e| {
                    e.hint("use a list of names, a regular expression or `all-linear`")
                })?;
                Box::new(move |name| regex.is_match(name))
            }
            Targets::Suffixes(list) => {
                Box::new(move |name| list.iter().any(|s| ends(name, s) || holds(name, s)))
            }
        })
    }
}

/// Compiles a regular expression in `field` that must match a whole name.
fn whole_name(pattern: &str, field: &str) -> Result<Regex> {
    Regex::new(&format!("^(?:{pattern})$")).map_err(|e| {
        Error::new(format!("invalid regular expression `{pattern}` in `{field}`")).because(e)
    })
}

/// True if the text is `all-linear`, ignoring case as PEFT does.
fn is_all(text: &str) -> bool {
    text.eq_ignore_ascii_case(ALL)
}

/// The shortest valid target names for the modules of `model` and their parts, sorted.
fn valid_names(model: &ModelInfo) -> Vec<String> {
    let parts = model.parts.iter().map(|p| format!("{}.{}", last(&p.holder), last(&p.linear.name)));
    let mut names: Vec<String> =
        model.linears.iter().map(|l| last(&l.name).to_owned()).chain(parts).collect();
    names.sort();
    names.dedup();
    names
}

/// Formats names as a TOML list, which flags also accept: `["a", "b"]`.
fn listed<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    let quoted: Vec<String> =
        names.into_iter().map(|name| format!("\"{}\"", name.as_ref())).collect();
    format!("[{}]", quoted.join(", "))
}

/// Splits a string that was probably meant to be a list, such as `q_proj,v_proj`, `q_proj v_proj`
/// or `[q_proj, v_proj]`.
fn names_in(text: &str) -> Vec<&str> {
    let trim = |c: char| c.is_whitespace() || matches!(c, '[' | ']' | '"' | '\'');
    text.split([',', ' '])
        .map(|name| name.trim_matches(trim))
        .filter(|name| !name.is_empty())
        .collect()
}

/// Replaces each unknown name in `given` with the most similar name in `model`. Returns `None` if
/// an unknown name is not similar to any name in `model`.
fn likely_names(given: &str, model: &ModelInfo) -> Option<Vec<String>> {
    let valid = valid_names(model);
    let likely = |name: &str| {
        let known = model.linears.iter().any(|l| l.is(name))
            || model.parts.iter().any(|p| name.contains('.') && ends(&p.linear.name, name));
        if known { Some(name.to_owned()) } else { nearest(name, &valid).map(str::to_owned) }
    };
    let names: Option<Vec<String>> = names_in(given).into_iter().map(likely).collect();
    names.filter(|names| !names.is_empty())
}

/// The error for a name in a list that matches no module of `model`.
fn unknown_name(given: &str, model: &ModelInfo) -> Error {
    let unknown = Error::new(format!("unknown target module `{given}`"));
    if is_all(given) {
        return unknown.hint(format!(
            "to target every linear module, write `adapter.target_modules={ALL}` without a list"
        ));
    }
    if Regex::new(&format!("^(?:{given})$"))
        .is_ok_and(|r| model.linears.iter().any(|l| r.is_match(&l.name)))
    {
        return unknown.hint(format!(
            "a list must contain names; write the regular expression as a \
            string, without a list: `adapter.target_modules={given}`"
        ));
    }
    let valid = valid_names(model);
    let has_several = names_in(given).len() > 1;
    match likely_names(given, model).filter(|_| has_several) {
        Some(names) => {
            let unknown = unknown.hint(format!(
                "write each name as a separate entry: `adapter.target_modules={}`",
                listed(names)
            ));
            unknown.hint(format!("valid: {}", valid.join(", ")))
        }
        None => Error::unknown("target module", given, valid),
    }
}

/// The error for a regular expression that does not match the full name of any module of `model`.
fn unmatched_pattern(given: &str, model: &ModelInfo) -> Error {
    let mut e = Error::new(format!(
        "the regular expression `{given}` in `target_modules` matches \
        no module"
    ))
    .hint(
        "a string is a regular expression that must match the full name of a module; put \
            names or suffixes in a list",
    );
    let valid = valid_names(model);
    let all = [ALL.to_owned()];
    if let Some(word) = nearest(given, &all) {
        return e.hint(format!("did you mean `adapter.target_modules={word}`?"));
    }
    if let Some(names) = likely_names(given, model) {
        let pattern =
            if names.len() == 1 { names[0].clone() } else { format!("({})", names.join("|")) };
        let pattern = pattern.replace('.', r"\.");
        e = e.hint(format!(
            "did you mean `adapter.target_modules={}` or `adapter.target_modules=.*{pattern}`?",
            listed(&names)
        ));
    } else if Regex::new(&format!("^(?:.*(?:{given}).*)$"))
        .is_ok_and(|r| model.linears.iter().any(|l| r.is_match(&l.name)))
    {
        e = e.hint(format!(
            "it matches only a part of some names; did you mean \
            `adapter.target_modules=.*({given}).*`?"
        ));
    }
    if let Some(example) = model.linears.first() {
        e = e.hint(format!("an example of a full name is `{}`", example.name));
    }
    e.hint(format!("valid in a list: {}", valid.join(", ")))
}

/// The last component of a dotted name.
fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// True if `name` is `suffix` or ends in a dot followed by `suffix`.
fn ends(name: &str, suffix: &str) -> bool {
    name == suffix || name.strip_suffix(suffix).is_some_and(|head| head.ends_with('.'))
}

/// Values for individual modules. Each key is a regular expression that is matched against the end
/// of a module's name, e.g. `q_proj` or `layers\.[01]\.mlp\.down_proj`. If several keys match, the
/// first one applies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Patterns<V: JsonSchema>(
    #[schemars(with = "BTreeMap<String, V>")] pub IndexMap<String, V>,
);

impl<V: JsonSchema> Default for Patterns<V> {
    fn default() -> Self {
        Self(IndexMap::new())
    }
}

impl<V: JsonSchema> Patterns<V> {
    /// Returns the value for the module called `name`; `None` if no pattern matches it.
    ///
    /// # Errors
    /// Fails if a pattern is not a regular expression.
    pub fn get(&self, name: &str) -> Result<Option<&V>> {
        for (pattern, value) in &self.0 {
            if pattern_fits(pattern, name)? {
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

/// True if a pattern matches the name of a module; see [`pattern_regex`].
///
/// # Errors
/// Fails if the pattern is not a regular expression.
pub(crate) fn pattern_fits(pattern: &str, name: &str) -> Result<bool> {
    Ok(pattern_regex(pattern)?.is_match(name))
}

/// Compiles a pattern for module names. As in PEFT, a match begins at the start of the name or
/// after a dot, and extends to the end of the name.
fn pattern_regex(pattern: &str) -> Result<Regex> {
    Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$")).map_err(|e| {
        Error::new(format!("invalid regular expression `{pattern}` for module names")).because(e)
    })
}

/// A field of an adapter's configuration that selects some of the adapted modules, e.g.
/// `rank_pattern`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Name of the field.
    pub field: String,
    /// Value of the field.
    pub modules: Selected,
}

/// The value of a [`Selection`]'s field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selected {
    /// A list of names or a regular expression, as in `target_modules`.
    Targets(Targets),
    /// The keys of [`Patterns`].
    Patterns(Vec<String>),
}

impl Selection {
    /// Creates a selection from a field of type [`Targets`].
    pub fn targets(field: &str, targets: &Targets) -> Self {
        Self { field: field.to_owned(), modules: Selected::Targets(targets.clone()) }
    }

    /// Creates a selection from a field of type [`Patterns`].
    pub fn patterns<V: JsonSchema>(field: &str, patterns: &Patterns<V>) -> Self {
        Self {
            field: field.to_owned(),
            modules: Selected::Patterns(patterns.0.keys().cloned().collect()),
        }
    }

    /// Returns one error for each entry of the field that matches none of `hits`, the modules of
    /// `model` that the adapter changes.
    ///
    /// # Errors
    /// Fails if a pattern is not a regular expression.
    pub fn unmatched(&self, hits: &[&LinearInfo], model: &ModelInfo) -> Result<Vec<Error>> {
        let mut errors = Vec::new();
        let mut check = |given: &str, fits: &dyn Fn(&LinearInfo) -> bool| {
            if !hits.iter().any(|l| fits(l)) {
                errors.push(self.matches_none(given, hits, model.linears.iter().any(fits)));
            }
        };
        match &self.modules {
            Selected::Patterns(keys) => {
                for key in keys {
                    let regex = pattern_regex(key)?;
                    check(key, &|l| regex.is_match(&l.name));
                }
            }
            Selected::Targets(Targets::Suffixes(list)) => {
                for given in list {
                    check(given, &|l| l.is(given));
                }
            }
            Selected::Targets(targets @ Targets::Pattern(p)) => {
                let fits = targets.matcher()?;
                check(p, &|l| fits(&l.name));
            }
        }
        Ok(errors)
    }

    /// The error for an entry that matches none of `hits`. `elsewhere` is true if the entry matches
    /// a module that the adapter does not change.
    fn matches_none(&self, given: &str, hits: &[&LinearInfo], elsewhere: bool) -> Error {
        let field = &self.field;
        let e = Error::new(format!(
            "`{given}` in `adapter.{field}` matches none of the modules that the adapter changes"
        ));
        let e = if elsewhere {
            e.hint(format!(
                "the model has this module, but the adapter does not change it; remove it from \
                `adapter.{field}`, or add it to `adapter.target_modules`"
            ))
        } else {
            e
        };
        // Suggest names with as many dotted components as the entry: `mlp.down_proj` for
        // `mlp.down_porj`.
        let words = given.matches('.').count() + 1;
        let end = |name: &str| {
            let all: Vec<&str> = name.split('.').collect();
            all[all.len().saturating_sub(words)..].join(".")
        };
        let mut valid: Vec<String> = hits.iter().map(|l| end(&l.name)).collect();
        valid.sort();
        valid.dedup();
        let plain = given
            .trim_start_matches(['^', '.', '*', '\\'])
            .trim_end_matches('$')
            .replace(r"\.", ".");
        let e = match nearest(&plain, &valid).filter(|_| !elsewhere) {
            Some(near) => e.hint(format!("did you mean `{near}`?")),
            None => e,
        };
        let mut names: Vec<&str> = hits.iter().map(|l| last(&l.name)).collect();
        names.sort_unstable();
        names.dedup();
        e.hint(format!("the adapter changes: {}", names.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Rows;
    use super::*;

    const NAME: &str = "model.layers.0.self_attn.q_proj";

    #[test]
    fn a_suffix_matches_whole_components_of_a_name() {
        let fits = |list: &[&str]| {
            Targets::Suffixes(list.iter().map(|&s| s.to_owned()).collect()).fits(NAME).unwrap()
        };
        assert!(fits(&["q_proj"]) && fits(&["k_proj", "self_attn.q_proj"]) && fits(&[NAME]));
        assert!(!fits(&["proj"]) && !fits(&[]) && !fits(&["self_attn"]));
    }

    /// Two blocks of GPT-NeoX.
    fn fused() -> ModelInfo {
        let linear = |k: usize, name: &str| LinearInfo {
            name: format!("gpt_neox.layers.{k}.{name}"),
            layer: Some(k),
            inputs: 8,
            outputs: 8,
        };
        let modules = [
            "attention.query_key_value",
            "attention.dense",
            "mlp.dense_h_to_4h",
            "mlp.dense_4h_to_h",
        ];
        let part = |k: usize, start: i64, name: &str| PartInfo {
            linear: linear(k, &format!("attention.query_key_value.{name}")),
            holder: linear(k, modules[0]).name,
            rows: Rows { groups: 1, start, len: 8, width: 24 },
        };
        let linears = (0..2).flat_map(|k| modules.map(|name| linear(k, name))).collect();
        let parts = (0..2)
            .flat_map(|k| [part(k, 0, "q_proj"), part(k, 8, "k_proj"), part(k, 16, "v_proj")])
            .collect();
        ModelInfo {
            architecture: "gpt_neox".to_owned(),
            layers: 2,
            hidden: 8,
            heads: 1,
            head_dim: 8,
            vocab: 8,
            linears,
            parts,
        }
    }

    fn of(list: &[&str]) -> Targets {
        Targets::Suffixes(list.iter().map(|&s| s.to_owned()).collect())
    }

    fn pattern(p: &str) -> Targets {
        Targets::Pattern(p.to_owned())
    }

    /// The selected modules of the first block. Names are shortened, e.g. to `query_key_value`.
    fn hits(targets: &Targets) -> Vec<String> {
        let model = fused();
        let hits = targets.resolve(&model).unwrap();
        hits.iter()
            .filter_map(|l| l.name.strip_prefix("gpt_neox.layers.0.")?.split_once('.'))
            .map(|(_, name)| name.to_owned())
            .collect()
    }

    #[test]
    fn a_llama_name_selects_the_module_that_contains_the_projection() {
        assert_eq!(hits(&of(&["q_proj", "v_proj"])), ["query_key_value"]);
        assert_eq!(hits(&of(&["o_proj", "down_proj"])), ["dense", "dense_4h_to_h"]);
        assert_eq!(
            of(&["q_proj", "v_proj", "down_proj"]).in_names_of(&fused()),
            of(&["query_key_value", "dense_4h_to_h"])
        );
        assert!(
            of(&["q_pro"]).resolve(&fused()).is_err()
                && of(&["self_attn.q_proj"]).resolve(&fused()).is_err()
        );
    }

    #[test]
    fn an_ambiguous_module_name_gets_one_more_component() {
        let linear = |name: &str| LinearInfo {
            name: format!("transformer.h.0.{name}"),
            layer: Some(0),
            inputs: 8,
            outputs: 8,
        };
        let linears = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"].map(linear).to_vec();
        let gpt2 =
            ModelInfo { architecture: "gpt2".to_owned(), linears, parts: Vec::new(), ..fused() };
        let names = of(&["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]).in_names_of(&gpt2);
        assert_eq!(names, of(&["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]));
        assert_eq!(
            of(&["down_proj"]).resolve(&gpt2).unwrap()[0].name,
            "transformer.h.0.mlp.c_proj"
        );
    }

    #[test]
    fn a_part_is_selected_if_its_module_is_named_too() {
        let part = "query_key_value.q_proj";
        assert_eq!(hits(&of(&[part])), [part]);
        assert_eq!(
            hits(&of(&["attention.query_key_value.v_proj", "dense_4h_to_h", part])),
            [part, "query_key_value.v_proj", "dense_4h_to_h"]
        );
        assert_eq!(
            hits(&of(&["gpt_neox.layers.0.attention.query_key_value.k_proj"])),
            ["query_key_value.k_proj"]
        );
        assert_eq!(
            hits(&pattern(r".*query_key_value\.[qk]_proj")),
            [part, "query_key_value.k_proj"]
        );
        // A pattern that matches a whole module does not also select its parts.
        assert_eq!(
            hits(&pattern("all-linear")),
            ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
        );
        assert_eq!(hits(&pattern(".*attention.*")), ["query_key_value", "dense"]);
        assert_eq!(hits(&pattern(".*query_key_value.*")), ["query_key_value"]);
        assert_eq!(hits(&pattern(r".*\.([qk]_proj|dense)")), ["dense"]);
        assert!(pattern(r".*\.[qk]_proj").resolve(&fused()).is_err());
        assert_eq!(of(&[part]).in_names_of(&fused()), of(&[part]));
    }

    #[test]
    fn selecting_a_module_and_its_part_is_an_error() {
        for list in [
            ["query_key_value", "query_key_value.q_proj"],
            ["query_key_value.q_proj", "q_proj"],
            ["v_proj", "query_key_value.q_proj"],
        ] {
            let e = of(&list).resolve(&fused()).unwrap_err();
            assert!(
                e.message().contains(
                    "the whole module `gpt_neox.layers.0.attention.query_key_value` and its part \
                        `q_proj`"
                ),
                "{e}"
            );
        }
    }

    #[test]
    fn an_unknown_part_is_an_error_that_lists_the_valid_ones() {
        for unknown in ["query_key_value.qproj", "dense.q_proj", "qkv_proj.q_proj"] {
            let e = of(&[unknown]).resolve(&fused()).unwrap_err();
            assert_eq!(e.message(), format!("unknown target module `{unknown}`"));
            let hints = e.hints().join("\n");
            assert!(
                hints.contains(
                    "query_key_value.k_proj, query_key_value.q_proj, query_key_value.v_proj"
                ),
                "{hints}"
            );
        }
        let near = of(&["query_key_value.qproj"]).resolve(&fused()).unwrap_err();
        assert!(near.hints().contains(&"did you mean `query_key_value.q_proj`?"), "{near:?}");
    }

    #[test]
    fn parts_are_replaced_by_whole_modules() {
        let model = fused();
        let named = of(&[
            "query_key_value.q_proj",
            "layers.1.attention.query_key_value.v_proj",
            "dense",
            "query_key_value.v_proj",
        ]);
        assert_eq!(
            named.whole(&model).unwrap(),
            of(&["query_key_value", "layers.1.attention.query_key_value", "dense"])
        );
        let holders = [
            "gpt_neox.layers.0.attention.query_key_value",
            "gpt_neox.layers.1.attention.query_key_value",
        ];
        assert_eq!(pattern(r".*query_key_value\.[qk]_proj").whole(&model).unwrap(), of(&holders));
        assert_eq!(pattern(".*dense").whole(&model).unwrap(), pattern(".*dense"));
    }

    /// Formats the error and the hints for targets that match no module.
    fn refused(targets: &Targets) -> String {
        format!("{:?}", targets.resolve(&fused()).unwrap_err())
    }

    #[test]
    fn names_in_a_string_get_a_hint_with_a_list_and_an_expression() {
        let one = refused(&pattern("query_key_value"));
        assert!(
            one.starts_with(
                "the regular expression `query_key_value` in `target_modules` matches no module"
            ),
            "{one}"
        );
        assert!(
            one.contains("must match the full name")
                && one.contains(
                    "an example of a full name is `gpt_neox.layers.0.attention.query_key_value`"
                ),
            "{one}"
        );
        assert!(
            one.contains(
                "did you mean `adapter.target_modules=[\"query_key_value\"]` or \
                `adapter.target_modules=.*query_key_value`?"
            ),
            "{one}"
        );
        for text in [
            "query_key_value,dense",
            "query_key_value, dense",
            "[query_key_value, dense]",
            "query_key_valu,dense",
        ] {
            let e = refused(&pattern(text));
            assert!(
                e.contains(
                    "`adapter.target_modules=[\"query_key_value\", \"dense\"]` or \
                    `adapter.target_modules=.*(query_key_value|dense)`"
                ),
                "{e}"
            );
        }
        assert!(refused(&pattern("q_proj")).contains(r#"`adapter.target_modules=["q_proj"]`"#));
        assert!(
            refused(&pattern("all_linear"))
                .contains("did you mean `adapter.target_modules=all-linear`?")
        );
        assert!(
            refused(&pattern(r"attention\.query"))
                .contains(r"`adapter.target_modules=.*(attention\.query).*`")
        );
        // The suggested pattern selects the same modules as the list.
        assert_eq!(
            hits(&pattern(".*(query_key_value|dense)")),
            hits(&of(&["query_key_value", "dense"]))
        );
        assert_eq!(hits(&pattern("All-Linear")).len(), 4);
    }

    #[test]
    fn an_expression_and_several_names_in_one_entry_of_a_list_get_different_hints() {
        assert!(
            refused(&of(&["query_key_value,dense"]))
                .contains(r#"`adapter.target_modules=["query_key_value", "dense"]`"#)
        );
        assert!(
            refused(&of(&[".*dense"])).contains("without a list: `adapter.target_modules=.*dense`")
        );
        assert!(
            refused(&of(&["all-linear"])).contains("write `adapter.target_modules=all-linear`")
        );
    }

    #[test]
    fn layers_restrict_all_targets_except_whole_names() {
        let model = fused();
        let names = |targets: &Targets, layers: &[usize]| -> Vec<String> {
            targets.select(&model, Some(layers)).unwrap().iter().map(|l| l.name.clone()).collect()
        };
        let (first, second) =
            ("gpt_neox.layers.0.attention.dense", "gpt_neox.layers.1.attention.dense");
        assert_eq!(names(&of(&["attention.dense"]), &[1]), [second]);
        assert_eq!(names(&of(&[first]), &[1]), [first]);
        assert_eq!(names(&pattern(".*attention.dense"), &[1]), [second]);
        // Names that do not occur in the model are ignored, because a saved adapter may list them.
        assert_eq!(names(&of(&["w_pack", "attention.dense"]), &[1]), [second]);
    }

    #[test]
    fn a_selection_reports_entries_that_match_no_adapted_module() {
        let model = fused();
        let hits = of(&["query_key_value", "dense_h_to_4h"]).select(&model, Some(&[0])).unwrap();
        let errors = |selection: Selection| -> Vec<String> {
            selection.unmatched(&hits, &model).unwrap().iter().map(|e| format!("{e:?}")).collect()
        };
        let keys = |keys: &[&str]| {
            Selection::patterns(
                "rank_pattern",
                &Patterns(keys.iter().map(|&k| (k.to_owned(), 1u32)).collect()),
            )
        };
        for good in [
            "query_key_value",
            r"layers\.0\..*",
            "attention.query_key_value",
            "^gpt_neox.layers.0.mlp.dense_h_to_4h",
        ] {
            assert_eq!(errors(keys(&[good])), [""; 0], "{good}");
        }
        let bad = errors(keys(&[
            "query_key_vlaue",
            "query_key_value",
            "mlp.dense_h_to_h4",
            "dense",
            "w_pack",
        ]));
        assert_eq!(bad.len(), 4);
        assert!(
            bad[0].starts_with(
                "`query_key_vlaue` in `adapter.rank_pattern` matches none of \
            the modules that the adapter changes"
            ),
            "{}",
            bad[0]
        );
        assert!(bad[0].contains("did you mean `query_key_value`?"), "{}", bad[0]);
        assert!(bad[1].contains("did you mean `mlp.dense_h_to_4h`?"), "{}", bad[1]);
        assert!(
            bad[2].contains("the model has this module, but the adapter does not change it")
                && !bad[2].contains("did you mean"),
            "{}",
            bad[2]
        );
        assert!(
            bad[3].contains("the adapter changes: dense_h_to_4h, query_key_value"),
            "{}",
            bad[3]
        );
        assert_eq!(
            errors(Selection::targets(
                "feedforward_modules",
                &of(&["dense_h_to_4h", "dense_4h_to_h"])
            ))
            .len(),
            1
        );
        assert_eq!(errors(Selection::targets("feedforward_modules", &pattern(".*mlp.*"))).len(), 0);
        assert_eq!(errors(Selection::targets("feedforward_modules", &pattern("mlp"))).len(), 1);
    }

    #[test]
    fn the_first_pattern_that_matches_the_end_of_a_name_applies() {
        let of = |list: &[(&str, u32)]| {
            Patterns(list.iter().map(|(p, v)| ((*p).to_owned(), *v)).collect())
                .get(NAME)
                .map(|v| v.copied())
        };
        assert_eq!(of(&[("k_proj", 1), ("q_proj", 2), (r"layers\.0\..*", 3)]).unwrap(), Some(2));
        assert_eq!(of(&[(r"layers\.0\..*", 3), ("q_proj", 2)]).unwrap(), Some(3));
        assert_eq!(of(&[("proj", 1), ("self_attn", 2)]).unwrap(), None);
        assert_eq!(of(&[("k_proj|q_proj", 4)]).unwrap(), Some(4));
        assert!(of(&[("(", 1)]).unwrap_err().to_string().contains("`(`"));
    }
}
