//! Adds the configuration of a saved adapter as a layer of settings. Later layers must not
//! contradict this layer.

use std::path::Path;

use serde_json::Value;

use super::setting::{RawValue, Setting};
use crate::config::Origin;
use crate::config::fields::Field;
use crate::error::{Error, Result};
use crate::model::peft::SavedConfig;
use crate::registry::{AdapterEntry, Entry, Registry, TypedEntry};

/// Name of the configuration section that a saved adapter determines.
const ADAPTER: &str = "adapter";

/// Replaces all settings of the adapter with the configuration of the saved adapter in `dir`.
///
/// # Errors
/// Fails if the adapter cannot be read.
pub(super) fn replace(settings: &mut Vec<Setting>, dir: &Path, registry: &Registry) -> Result<()> {
    let layer = layer(dir, registry)?;
    settings.retain(|s| s.path.first().is_none_or(|p| p != ADAPTER));
    settings.extend(layer);
    Ok(())
}

/// Reads the configuration of the saved adapter in `dir` as settings.
fn layer(dir: &Path, registry: &Registry) -> Result<Vec<Setting>> {
    let SavedConfig { entry, config, .. } = SavedConfig::read(dir, registry)?;
    let name = ("name".to_owned(), Value::String(entry.about.name.to_owned()));
    let setting = |(field, value)| {
        Setting::new(
            vec![ADAPTER.to_owned(), field],
            RawValue::Value(value),
            Origin::Adapter(dir.to_owned()),
        )
    };
    Ok(std::iter::once(name).chain(config).map(setting).collect())
}

/// Adds the configuration of the saved adapter if `init_adapter` is set to its folder. The
/// configuration takes precedence over the defaults and the recipe.
///
/// # Errors
/// Fails if the adapter cannot be read.
pub(super) fn expand(settings: &mut Vec<Setting>, registry: &Registry) -> Result<()> {
    let Some(choice) = settings.iter().rfind(|s| s.path == ["init_adapter"]) else { return Ok(()) };
    // A value of the wrong type is rejected later, as for any field.
    let Ok(dir) = choice.given.text() else { return Ok(()) };
    if matches!(dir.as_str(), "none" | "null") {
        return Ok(());
    }
    let layer = layer(Path::new(&dir), registry).map_err(|e| match choice.origin {
        Origin::Flag(_) => e,
        _ => e.within(format!("`init_adapter` in {} cannot be used", choice.origin)),
    })?;
    let above =
        settings.iter().position(|s| !matches!(s.origin, Origin::Default | Origin::Recipe(_)));
    let rest = settings.split_off(above.unwrap_or(settings.len()));
    settings.retain(|s| s.path.first().is_none_or(|p| p != ADAPTER));
    settings.extend(layer);
    settings.extend(rest);
    Ok(())
}

/// Checks that the layers after a saved adapter do not choose a different type of adapter.
///
/// # Errors
/// Fails if a later layer sets a different `adapter.name`.
pub(super) fn check_name(settings: &[Setting]) -> Result<()> {
    let mut saved = None;
    for setting in settings.iter().filter(|s| s.is_name_of(ADAPTER)) {
        let RawValue::Value(Value::String(name)) = &setting.given else { continue };
        match (&setting.origin, saved) {
            (Origin::Adapter(dir), _) => saved = Some((dir, name)),
            (origin, Some((dir, kind))) if name != kind => {
                return Err(Error::new(format!(
                    "`adapter.name` is `{name}` ({origin}), but the \
                    adapter in `{}` is of type `{kind}`",
                    dir.display()
                ))
                .hint(
                    "do not set `adapter.name`, \
                        or start without a saved adapter",
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// True if the field may be changed when a saved adapter is used.
pub(super) fn is_adjustable(entry: Entry, field: &str) -> bool {
    AdapterEntry::of_entry(entry).is_some_and(|adapter| adapter.adjustable.contains(&field))
}

/// The error for a setting that contradicts the saved adapter in `dir`.
pub(super) fn contradicts(
    setting: &Setting,
    saved: &Value,
    wanted: &Value,
    dir: &Path,
    plugin: Option<Entry>,
    fields: &[Field],
) -> Error {
    let path = setting.path[..setting.path.len().min(2)].join(".");
    let text = |value: &Value| match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let name = plugin.map_or("", |p| p.about().name);
    let adjustable: Vec<String> = fields
        .iter()
        .map(|f| f.name.as_str())
        .filter(|f| plugin.is_some_and(|p| is_adjustable(p, f)))
        .map(|f| format!("`adapter.{f}`"))
        .collect();
    let may_change = match adjustable.is_empty() {
        true => format!("the settings of a saved `{name}` adapter cannot be changed"),
        false => {
            format!("only {} can be changed in a saved `{name}` adapter", adjustable.join(", "))
        }
    };
    Error::new(format!(
        "`{path}` is `{}` ({}), but the adapter in `{}` was saved with `{}`",
        text(wanted),
        setting.origin,
        dir.display(),
        text(saved)
    ))
    .hint(format!("do not set `{path}` together with a saved adapter; {may_change}"))
}
