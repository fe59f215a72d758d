//! `reprpo list`.

use std::path::Path;

use reprpo_core::Result;
use reprpo_core::registry::{Entry, Kind, Recipe};
use reprpo_core::report::{Align, Grid};
use reprpo_core::weights::{KnownModel, known_models};
use serde_json::{Value, json};

use crate::App;
use crate::args::{ListArgs, Listed};

pub fn run(args: &ListArgs, app: &App<'_>) -> Result<()> {
    let kinds = args.kind.map_or_else(|| Kind::ALL.to_vec(), |listed| listed.kind().into_iter().collect());
    let models = if matches!(args.kind, None | Some(Listed::Models)) { known_models() } else { Vec::new() };
    let recipes: Vec<&Recipe> = if matches!(args.kind, None | Some(Listed::Recipes)) { app.registry.recipes().collect() } else { Vec::new() };
    if args.json {
        let plugins = kinds.iter().flat_map(|k| app.registry.of(*k)).map(described);
        let all: Vec<Value> = plugins.chain(recipes.iter().map(|r| recipe(r))).chain(models.iter().map(model)).collect();
        return app.printer.json(&Value::Array(all));
    }
    let sections = kinds.iter().map(|kind| {
        let mut grid = Grid::new([kind.plural().as_str(), "from", "what it does"].map(|c| (c, Align::Left)));
        for entry in app.registry.of(*kind) {
            let about = &entry.about;
            grid.row([names(entry), format!("{} {}", about.origin, about.version), about.summary.to_owned()]);
            if !about.reference.is_empty() {
                grid.row(["", "", &format!("({})", about.reference)]);
            }
        }
        grid.plain()
    });
    let mut text: Vec<String> = sections.collect();
    if !recipes.is_empty() {
        text.push(recipes_text(&recipes));
    }
    if !models.is_empty() {
        text.push(models_text(&models));
    }
    app.printer.data(&text.join("\n"))
}

fn recipes_text(recipes: &[&Recipe]) -> String {
    let mut grid = Grid::new(["recipes", "from", "what it does"].map(|c| (c, Align::Left)));
    for recipe in recipes {
        grid.row([recipe.name.clone(), format!("{} {}", recipe.origin, recipe.version), recipe.summary.clone()]);
        grid.row(["", "", &format!("({})", recipe.reference)]);
    }
    format!("{}\n`--recipe NAME` sets its values below everything else that is said; `reprpo explain NAME` shows them\n", grid.plain())
}

/// As `reprpo list` has it in JSON.
pub fn recipe(recipe: &Recipe) -> Value {
    json!({
        "kind": "recipe", "name": recipe.name, "aliases": [], "summary": recipe.summary, "reference": recipe.reference,
        "published": recipe.published, "origin": recipe.origin, "version": recipe.version,
    })
}

fn models_text(models: &[KnownModel]) -> String {
    let mut grid = Grid::new(["models", "format", "size", "what it is"].map(|c| (c, Align::Left)));
    for model in models {
        grid.row([model.name.to_owned(), model.format.to_owned(), format!("{} MB", model.megabytes), model.summary.to_owned()]);
        let folder = model.path.as_deref().and_then(Path::parent);
        let place = folder.map_or_else(|| format!("not here yet: {}", model.fetch), |folder| format!("here, in `{}`", folder.display()));
        grid.row(["", "", "", &place]);
    }
    format!("{}\n`--model` also takes a folder with config.json and safetensors, a .gguf file, or an id `org/name` from the Hugging Face cache\n", grid.plain())
}

fn model(model: &KnownModel) -> Value {
    json!({
        "kind": "model", "name": model.name, "summary": model.summary, "format": model.format, "megabytes": model.megabytes,
        "fetched": model.path.is_some(), "path": model.path, "fetch": model.fetch,
    })
}

/// The name, and what else it answers to.
fn names(entry: &Entry) -> String {
    std::iter::once(entry.about.name).chain(entry.about.aliases.iter().copied()).collect::<Vec<_>>().join(", ")
}

fn described(entry: &Entry) -> Value {
    let about = &entry.about;
    json!({
        "kind": entry.kind().name(), "name": about.name, "aliases": about.aliases, "summary": about.summary,
        "reference": about.reference, "origin": about.origin, "version": about.version,
    })
}
