//! Rewrites the short form `intervention = "x"` as `intervention.name = "x"`, and likewise for the
//! other kinds of plugins. The value of `dataset` may also set a field of the data set.

use serde_json::Value;

use super::setting::{RawValue, Setting};
use crate::config::{Origin, dataset};
use crate::error::{Error, Result};
use crate::registry::{Kind, Registry};

/// Moves each setting that chooses a plugin to the field `KIND.name`. Replaces aliases with plugin
/// names.
///
/// # Errors
/// Fails if a plugin does not exist, or if the value of `dataset` does not select a data set.
pub(super) fn expand(settings: &mut Vec<Setting>, registry: &Registry) -> Result<()> {
    let mut expanded = Vec::with_capacity(settings.len());
    for setting in std::mem::take(settings) {
        let kind =
            Kind::ALL.into_iter().find(|k| setting.path.first().is_some_and(|p| p == k.name()));
        let names =
            setting.path.len() == 1 || (setting.path.len() == 2 && setting.path[1] == "name");
        let Some(kind) = kind.filter(|_| names) else {
            expanded.push(setting);
            continue;
        };
        let shown = setting.path.join(".");
        let text = setting.given.text().map_err(|other| {
            Error::new(format!(
                "`{shown}` in {} is {other}, not the name of a plugin",
                setting.origin
            ))
            .hint(format!("see `reprpo list {}` for the names", kind.plural()))
        })?;
        let explained = |e: Error| match setting.origin {
            // Errors about flags do not need an origin, because the user sees the command line.
            Origin::Flag(_) => e,
            Origin::Default => {
                e.within(format!("the built-in default of `{shown}` cannot be used"))
            }
            _ => e.within(format!("`{shown}` in {} cannot be used", setting.origin)),
        };
        let path = |field: &str| vec![kind.name().to_owned(), field.to_owned()];
        let name = |name: &str| RawValue::Value(Value::String(name.to_owned()));
        if kind == Kind::Dataset && setting.path.len() == 1 {
            let choice = dataset::parse(&text, registry).map_err(explained)?;
            expanded.push(Setting::new(path("name"), name(choice.name), setting.origin.clone()));
            if let Some((field, text)) = choice.argument {
                expanded.push(Setting {
                    only_for: Some(choice.name),
                    ..Setting::new(path(field), RawValue::Text(text), setting.origin)
                });
            }
        } else {
            let entry = registry.get(kind, &text).map_err(explained)?;
            expanded.push(Setting {
                path: path("name"),
                given: name(entry.about().name),
                ..setting
            });
        }
    }
    *settings = expanded;
    Ok(())
}
