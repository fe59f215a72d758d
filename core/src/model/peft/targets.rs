//! Writes the names of adapted modules to an `adapter_config.json` so that PEFT selects the same
//! modules.

use std::collections::HashSet;

use regex::Regex;
use serde_json::{Map, Value};

use super::super::Adapted;
use crate::api::{Adapter, ModelInfo, Targets, pattern_fits};
use crate::error::Result;

/// The values of `target_modules` and `layers_to_transform` in an `adapter_config.json`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TargetFields {
    pub targets: Targets,
    pub layers: Option<Vec<usize>>,
}

impl TargetFields {
    /// Chooses the values of the two fields so that both PEFT and reprpo select exactly the modules
    /// in `adapted`.
    ///
    /// `targets` are the targets of `adapter`, converted to the model's module names. If `targets`
    /// would select other modules in PEFT or reprpo, the full names of the modules are used
    /// instead. `has_layers` is true if PEFT's configuration class has the field
    /// `layers_to_transform`.
    ///
    /// # Errors
    /// Fails if a pattern is not a valid regular expression.
    pub fn of(
        targets: Targets,
        adapter: &dyn Adapter,
        adapted: &Adapted,
        model: &ModelInfo,
        has_layers: bool,
    ) -> Result<Self> {
        let names: HashSet<&str> = adapted.names().collect();
        let in_layers = adapted.names().filter_map(|n| model.linear(n).ok()?.layer);
        let mut changed: Vec<usize> = in_layers.chain(adapted.blocks()).collect();
        changed.sort_unstable();
        changed.dedup();
        // Only `layers_to_transform` can express that some blocks are not adapted.
        let fewer_blocks = adapter.blocks(model)?.len() != adapted.blocks().count();
        let list = matches!(targets, Targets::Suffixes(_));
        let in_parts = adapted.parts(model).next().is_some();
        for layers in [adapter.layers_to_transform(), None, Some(changed.clone())] {
            let candidate = Self { targets: targets.clone(), layers };
            let fits = match &candidate.layers {
                Some(layers) => has_layers && list && (!fewer_blocks || *layers == changed),
                None => !fewer_blocks,
            };
            if fits
                && candidate.is_read_as(&names, model)?
                && (in_parts || candidate.is_found_by_peft(&names, model)?)
            {
                return Ok(candidate);
            }
        }
        let names = adapted.names().map(str::to_owned).collect();
        Ok(Self { targets: Targets::Suffixes(names), layers: fewer_blocks.then_some(changed) })
    }

    /// Returns the targets, which also select `more`, the names of modules that are not linear
    /// modules of blocks.
    pub fn with_names(&self, more: &[String], adapted: &Adapted) -> Targets {
        if more.is_empty() {
            return self.targets.clone();
        }
        let mut names = match &self.targets {
            Targets::Suffixes(list) => list.clone(),
            Targets::Pattern(_) => adapted.names().map(str::to_owned).collect(),
        };
        names.extend(more.iter().cloned());
        Targets::Suffixes(names)
    }

    /// True if reprpo selects exactly the modules in `names` when it reads these fields.
    fn is_read_as(&self, names: &HashSet<&str>, model: &ModelInfo) -> Result<bool> {
        let found: HashSet<&str> = self
            .targets
            .select(model, self.layers.as_deref())?
            .iter()
            .map(|l| l.name.as_str())
            .collect();
        Ok(found == *names)
    }

    /// True if PEFT selects exactly the modules in `names` when it reads these fields.
    fn is_found_by_peft(&self, names: &HashSet<&str>, model: &ModelInfo) -> Result<bool> {
        if let Targets::Pattern(p) = &self.targets
            && (self.layers.is_some() || !self.targets.is_all() && !portable(p))
        {
            return Ok(false);
        }
        let found = |name: &str| peft_finds(&self.targets, self.layers.as_deref(), name);
        for linear in &model.linears {
            if found(&linear.name)? != names.contains(linear.name.as_str()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns a value for an additional field that selects modules, such as IA³'s
    /// `feedforward_modules`. With this value, PEFT selects the modules in `adapted` that match
    /// `meant`.
    ///
    /// # Errors
    /// Fails if a pattern is not a valid regular expression.
    pub fn inner(&self, meant: Targets, adapted: &Adapted) -> Result<Targets> {
        let mut names = Vec::new();
        let mut same = true;
        for name in adapted.names() {
            let fits = meant.fits(name)?;
            if let Targets::Suffixes(list) = &meant {
                // PEFT compares this field with `str.endswith`, so an entry such as `proj` also
                // matches `q_proj`.
                same &= fits == list.iter().any(|s| name.ends_with(s.as_str()));
            }
            if fits {
                names.push(name);
            }
        }
        // If the additional field and `target_modules` are both lists, PEFT requires
        // `target_modules` to contain every entry of the additional field.
        let among = |list: &[&str]| match &self.targets {
            Targets::Suffixes(all) => list.iter().all(|s| all.iter().any(|a| a == s)),
            Targets::Pattern(_) => true,
        };
        let readable = match &meant {
            Targets::Suffixes(list) => {
                same && among(&list.iter().map(String::as_str).collect::<Vec<_>>())
            }
            Targets::Pattern(p) => !meant.is_all() && portable(p),
        };
        Ok(if readable {
            meant
        } else if among(&names) {
            Targets::Suffixes(names.into_iter().map(str::to_owned).collect())
        } else {
            Targets::Pattern(
                names.iter().map(|name| name.replace('.', r"\.")).collect::<Vec<_>>().join("|"),
            )
        })
    }
}

/// Returns the entries of `patterns` that match a module of `adapted`. If Python might interpret
/// one of the patterns differently, the patterns are replaced with the full names of the modules.
///
/// # Errors
/// Fails if a pattern is not a valid regular expression.
pub(super) fn patterns(
    patterns: Map<String, Value>,
    adapted: &Adapted,
) -> Result<Map<String, Value>> {
    let mut used = HashSet::new();
    let mut by_name = Map::new();
    for name in adapted.names() {
        for (key, value) in &patterns {
            if pattern_fits(key, name)? {
                used.insert(key.clone());
                by_name.entry(name).or_insert_with(|| value.clone());
            }
        }
    }
    if patterns.keys().filter(|key| used.contains(*key)).all(|key| portable(key)) {
        return Ok(patterns.into_iter().filter(|(key, _)| used.contains(key)).collect());
    }
    Ok(by_name)
}

/// True if PEFT's `check_target_module_exists` selects the module `name`, in a model with numbered
/// layers.
fn peft_finds(targets: &Targets, layers: Option<&[usize]>, name: &str) -> Result<bool> {
    let Targets::Suffixes(list) = targets else { return targets.fits(name) };
    if list.iter().any(|s| s == name) {
        return Ok(true);
    }
    let ends =
        list.iter().any(|s| name.strip_suffix(s.as_str()).is_some_and(|head| head.ends_with('.')));
    let within = match layers {
        None | Some([]) => true,
        Some(some) => peft_layer(name).is_some_and(|k| some.contains(&k)),
    };
    Ok(ends && within)
}

/// The layer number that PEFT extracts from a module's name with `.*?\.[^.]*\.(\d+)\.`. This is the
/// first number after the first two path components.
fn peft_layer(name: &str) -> Option<usize> {
    let words: Vec<&str> = name.split('.').collect();
    let inner = words.get(2..words.len().saturating_sub(1))?;
    inner.iter().find(|w| !w.is_empty() && w.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
}

/// True if Python is known to interpret the regular expression as Rust does. Returns false for
/// syntax that differs between the two languages, and for rarely used syntax.
fn portable(pattern: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.*+?|()[]^${},-\\:".contains(c);
    let escapes = Regex::new(r"\\[^.dwsDWSbB_\-]").is_ok_and(|r| r.is_match(pattern));
    // Python treats `a++` as possessive and rejects `a**`. Groups other than `(?:` differ in
    // syntax.
    let stacked = Regex::new(r"[*+?}][*+{]").is_ok_and(|r| r.is_match(pattern));
    let groups = pattern.replace("(?:", "").contains("(?");
    let classes =
        ["[[", "[]", "[^]", "&&", "--", "~~", "[:", "{,"].iter().any(|form| pattern.contains(form));
    pattern.chars().all(plain) && !escapes && !stacked && !groups && !classes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_expressions_are_portable_to_python() {
        for same in [
            "q_proj",
            r".*\.(q|v)_proj",
            r"model\.layers\.[01]\..*proj",
            ".*?q_proj",
            r"(?:a|b)\d+",
            "a{2,3}",
        ] {
            assert!(portable(same), "{same}");
        }
        for other in [
            "(?i)q_proj",
            "(?P<a>q)",
            r"\p{L}+",
            "a++",
            "a*+",
            "a**",
            "[[:alpha:]]",
            "[a-z&&b]",
            r"q\z",
            "q é",
            "a{,3}",
        ] {
            assert!(!portable(other), "{other}");
        }
    }

    #[test]
    fn full_names_match_regardless_of_the_layers_as_in_peft() {
        let of = |list: &[&str]| Targets::Suffixes(list.iter().map(|&s| s.to_owned()).collect());
        let name = "model.layers.1.self_attn.q_proj";
        let finds =
            |list: &[&str], layers: Option<&[usize]>| peft_finds(&of(list), layers, name).unwrap();
        assert!(
            finds(&["q_proj"], None)
                && finds(&["q_proj"], Some(&[1]))
                && finds(&["q_proj"], Some(&[]))
        );
        assert!(!finds(&["q_proj"], Some(&[0])) && !finds(&["proj"], None));
        assert!(finds(&[name], Some(&[0])));
        assert_eq!(peft_layer("gpt_neox.layers.12.attention.dense"), Some(12));
        assert_eq!(peft_layer("layers.3.mlp"), None);
    }
}
