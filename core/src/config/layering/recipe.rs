//! Adds the values of the chosen recipe to the settings.

use super::setting::Setting;
use crate::config::Origin;
use crate::error::{Error, Result};
use crate::registry::{Kind, Registry};

/// Inserts the values of the chosen recipe. They override the defaults, and all other settings
/// override them.
///
/// # Errors
/// Fails if the recipe does not exist.
pub(super) fn expand(settings: &mut Vec<Setting>, registry: &Registry) -> Result<()> {
    let Some(choice) = settings.iter().rfind(|s| s.path == ["recipe"]) else { return Ok(()) };
    let name = choice.given.text().map_err(|other| {
        Error::new(format!(
            "`recipe` in {} must be the name of a recipe, got {other}",
            choice.origin
        ))
        .hint("see `reprpo list recipes` for the names")
    })?;
    if matches!(name.as_str(), "none" | "null") {
        return Ok(());
    }
    let recipe = registry.recipe(&name).map_err(|e| match choice.origin {
        Origin::Flag(_) => e,
        _ => e.within(format!("`recipe` in {} cannot be used", choice.origin)),
    })?;
    let mut layer = Setting::of_table(recipe.values.clone(), &Origin::Recipe(name));
    for setting in &mut layer {
        // If a higher layer replaces one of the recipe's plugins, ignore the recipe's values for
        // the replaced plugin.
        let chosen = setting
            .path
            .first()
            .and_then(|section| recipe.values.get(section)?.get("name")?.as_str());
        let kind = Kind::ALL.into_iter().find(|k| setting.path[0] == k.name());
        if let (Some(kind), Some(chosen), [_, field]) = (kind, chosen, &setting.path[..])
            && field != "name"
        {
            setting.only_for = registry.get(kind, chosen).ok().map(|e| e.about().name);
        }
    }
    let above = settings.iter().position(|s| s.origin != Origin::Default).unwrap_or(settings.len());
    settings.splice(above..above, layer);
    Ok(())
}
