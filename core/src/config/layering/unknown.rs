//! The error for a setting whose field does not exist, with suggestions and the valid fields.

use std::collections::BTreeMap;

use super::environment::OTHER_VARIABLES;
use super::section::Section;
use super::setting::Setting;
use crate::config::fields::Field;
use crate::config::{Origin, Origins};
use crate::error::{Error, nearest};
use crate::registry::{Kind, Registry};

/// All valid fields, to choose suggestions from.
pub(super) struct KnownFields<'a> {
    pub registry: &'a Registry,
    pub origins: &'a Origins,
    /// The fields and sections of the experiment.
    pub top: &'a [Field],
    /// The fields of each section.
    pub sections: &'a BTreeMap<String, Section>,
}

impl KnownFields<'_> {
    /// Creates the error for a setting whose field does not exist.
    pub fn unknown(&self, setting: &Setting) -> Error {
        let (path, origin) = (setting.path.join("."), &setting.origin);
        // For an environment variable, suggest variable names instead of paths, so that the user
        // can copy the suggestion.
        let spelt = |path: &str| match origin {
            Origin::Environment(_) => format!("REPRPO_{}", path.replace('.', "__").to_uppercase()),
            _ => path.to_owned(),
        };
        let section = setting
            .path
            .first()
            .and_then(|s| self.sections.get_key_value(s.as_str()))
            .filter(|_| setting.path.len() > 1);
        let top = || self.top.iter().map(|f| f.name.as_str());
        let mut valid: Vec<String> = match section {
            Some((name, section)) => {
                section.fields.iter().map(|f| format!("{name}.{}", f.name)).collect()
            }
            None => top().map(str::to_owned).collect(),
        };
        valid.sort();
        let plugin = section.and_then(|(kind, s)| s.plugin.map(|p| (kind.as_str(), p)));
        let mut error = match (plugin, origin) {
            (Some((kind, entry)), _) => Error::new(format!(
                "{kind} `{}` has no field `{}` ({origin})",
                entry.about().name,
                setting.path[1..].join(".")
            )),
            (None, Origin::Environment(name)) => Error::new(format!(
                "the environment variable `{name}` does not name a configuration field"
            )),
            (None, _) => Error::new(format!("unknown configuration field `{path}` ({origin})")),
        };
        if let Some(near) = self.near(setting, &valid) {
            error = error.hint(format!("did you mean `{}`?", spelt(&near)));
        }
        if let Some((kind, chosen)) = plugin {
            let owners: Vec<String> = Kind::ALL
                .into_iter()
                .filter(|k| k.name() == kind)
                .flat_map(|k| self.registry.of(k))
                .filter(|e| {
                    e.about().name != chosen.about().name
                        && e.about().defaults().is_ok_and(|d| d.contains_key(&setting.path[1]))
                })
                .map(|e| format!("`{}`", e.about().name))
                .collect();
            if !owners.is_empty() {
                let has = if owners.len() == 1 { "has" } else { "have" };
                let chooser = self
                    .origins
                    .get(&format!("{kind}.name"))
                    .map_or_else(String::new, |o| format!(" by {o}"));
                error = error.hint(format!(
                    "{} {has} that field, but the {kind} is `{}`{chooser}",
                    owners.join(", "),
                    chosen.about().name
                ));
            }
        }
        let mut valid: Vec<String> = valid.iter().map(|v| spelt(v)).collect();
        if matches!(origin, Origin::Environment(_)) && section.is_none() {
            valid.extend(OTHER_VARIABLES.map(str::to_owned));
        }
        if valid.is_empty() {
            error.hint(format!("`{}` has no fields", plugin.map_or("it", |(_, p)| p.about().name)))
        } else {
            error.hint(format!("valid: {}", valid.join(", ")))
        }
    }

    /// Returns the field to suggest: the nearest name in the same section, or a field with the same
    /// name in another section.
    fn near(&self, setting: &Setting, valid: &[String]) -> Option<String> {
        let last = |path: &str| path.rsplit('.').next().unwrap_or(path).to_owned();
        let given = setting.path.get(1).or(setting.path.first())?;
        let names: Vec<String> = valid.iter().map(|v| last(v)).collect();
        let here =
            if setting.path.len() > 1 && !self.sections.contains_key(setting.path[0].as_str()) {
                let first = nearest(&setting.path[0], valid)?;
                Some(format!("{first}.{}", setting.path[1..].join(".")))
            } else {
                let near = nearest(given, &names).map(str::to_owned);
                near.and_then(|near| valid.iter().find(|v| last(v) == near).cloned())
            };
        let elsewhere = || {
            self.sections.iter().find_map(|(section, s)| {
                s.fields.iter().find(|f| f.name == *given).map(|f| format!("{section}.{}", f.name))
            })
        };
        let exact = setting.path.len() == 1;
        if exact { elsewhere().or(here) } else { here.or_else(elsewhere) }
    }
}
