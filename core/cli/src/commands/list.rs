//! `reprpo list`.

use std::path::Path;

use reprpo_core::Result;
use reprpo_core::registry::PluginLibrary;
use reprpo_core::registry::{Entry, Kind, Recipe, Registry};
use reprpo_core::report::{Align, Grid};
use reprpo_core::weights::{KnownModel, known_models};
use serde_json::{Value, json};

use crate::App;
use crate::args::{ListArgs, Listed};
use crate::commands::explain;

pub fn run(args: &ListArgs, app: &App<'_>) -> Result<()> {
    let kinds =
        args.kind.map_or_else(|| Kind::ALL.to_vec(), |listed| listed.kind().into_iter().collect());
    let models =
        if matches!(args.kind, None | Some(Listed::Models)) { known_models() } else { Vec::new() };
    let recipes: Vec<&Recipe> = if matches!(args.kind, None | Some(Listed::Recipes)) {
        app.registry.recipes().collect()
    } else {
        Vec::new()
    };
    if args.json {
        let plugins = kinds
            .iter()
            .flat_map(|k| app.registry.of(*k))
            .map(|entry| described(entry, app.registry));
        let all: Vec<Value> = plugins
            .chain(recipes.iter().map(|r| recipe(r, app.registry)))
            .chain(models.iter().map(model))
            .collect();
        return app.printer.json(&Value::Array(all));
    }
    let sections = kinds.iter().map(|kind| {
        let mut grid =
            Grid::new([kind.plural().as_str(), "from", "what it does"].map(|c| (c, Align::Left)));
        for entry in app.registry.of(*kind) {
            let about = entry.about();
            grid.row([names(entry), from(entry, app.registry), about.summary.to_owned()]);
            if !about.reference.is_empty() {
                grid.row(["", "", &format!("({})", about.reference)]);
            }
            if let Some(needs) = explain::needs(entry) {
                grid.row(["", "", &format!("needs {needs}")]);
            }
        }
        grid.plain()
    });
    let mut text: Vec<String> = sections.collect();
    if !recipes.is_empty() {
        text.push(recipes_text(&recipes, app.registry));
    }
    if !models.is_empty() {
        text.push(models_text(&models));
    }
    if let (false, false) = (kinds.is_empty(), app.registry.loaded().is_empty()) {
        text.push(files_text(app.registry.loaded()));
    }
    app.printer.data(&text.join("\n"))
}

/// The plugin files, whose names alone stand in the tables.
fn files_text(loaded: &[PluginLibrary]) -> String {
    let mut grid = Grid::new(["plugin files", "crate", "sha256"].map(|c| (c, Align::Left)));
    for file in loaded {
        grid.row([
            file.path.display().to_string(),
            format!("{} {}", file.name, file.version),
            file.sha256.chars().take(12).collect(),
        ]);
    }
    grid.plain()
}

/// Its crate and version, and where that is: built in, or the file that was loaded.
fn from(entry: Entry, registry: &Registry) -> String {
    place(entry.about().origin, entry.about().version, registry.file_of(entry))
}

fn place(origin: &str, version: &str, file: Option<&PluginLibrary>) -> String {
    let name = file
        .and_then(|f| f.path.file_name())
        .map_or_else(|| "built in".to_owned(), |name| name.to_string_lossy().into_owned());
    format!("{origin} {version}, {name}")
}

fn recipes_text(recipes: &[&Recipe], registry: &Registry) -> String {
    let mut grid = Grid::new(["recipes", "from", "what it does"].map(|c| (c, Align::Left)));
    for recipe in recipes {
        let from = place(recipe.origin, recipe.version, registry.file_of_recipe(&recipe.name));
        grid.row([recipe.name.clone(), from, recipe.summary.clone()]);
        grid.row(["", "", &format!("({})", recipe.reference)]);
    }
    format!(
        "{}\n`--recipe NAME` sets its values below everything else that is said; `reprpo explain \
            NAME` shows them\n",
        grid.plain()
    )
}

/// As `reprpo list` has it in JSON.
pub fn recipe(recipe: &Recipe, registry: &Registry) -> Value {
    json!({
        "kind": "recipe", "name": recipe.name, "aliases": [], "summary": recipe.summary,
        "reference": recipe.reference,
        "published": recipe.published, "origin": recipe.origin, "version": recipe.version,
        "file": registry.file_of_recipe(&recipe.name).map(|f| &f.path),
    })
}

fn models_text(models: &[KnownModel]) -> String {
    let mut grid = Grid::new(["models", "format", "size", "what it is"].map(|c| (c, Align::Left)));
    for model in models {
        grid.row([
            model.name.to_owned(),
            model.format.to_owned(),
            format!("{} MB", model.megabytes),
            model.summary.to_owned(),
        ]);
        let folder = model.path.as_deref().and_then(Path::parent);
        let place = folder.map_or_else(
            || format!("not here yet: {}", model.fetch),
            |folder| format!("here, in `{}`", folder.display()),
        );
        grid.row(["", "", "", &place]);
    }
    format!(
        "{}\n`--model` also takes a folder with config.json and safetensors, a .gguf file, or an \
            id `org/name` from the Hugging Face cache\n",
        grid.plain()
    )
}

fn model(model: &KnownModel) -> Value {
    json!({
        "kind": "model", "name": model.name, "summary": model.summary, "format": model.format,
        "megabytes": model.megabytes,
        "fetched": model.path.is_some(), "path": model.path, "fetch": model.fetch,
    })
}

/// The name, and what else it answers to.
fn names(entry: Entry) -> String {
    std::iter::once(entry.about().name)
        .chain(entry.about().aliases.iter().copied())
        .collect::<Vec<_>>()
        .join(", ")
}

/// As `reprpo list` has it in JSON; `file` is null where it is built in.
pub fn described(entry: Entry, registry: &Registry) -> Value {
    let about = entry.about();
    json!({
        "kind": entry.kind().name(), "name": about.name, "aliases": about.aliases,
        "summary": about.summary,
        "reference": about.reference, "needs": explain::needs(entry), "origin": about.origin,
        "version": about.version,
        "file": registry.file_of(entry).map(|f| &f.path),
    })
}
