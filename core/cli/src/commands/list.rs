//! `reprpo list`.

use std::path::Path;

use reprpo_core::Result;
use reprpo_core::config::Suite;
use reprpo_core::registry::PluginLibrary;
use reprpo_core::registry::{Entry, Kind, Recipe, Registry};
use reprpo_core::report::{Align, Grid};
use reprpo_core::weights::{KnownModel, known_models};
use serde_json::{Value, json};

use crate::App;
use crate::args::{ListArgs, ListKind};
use crate::commands::explain;

pub fn run(args: &ListArgs, app: &App<'_>) -> Result<()> {
    let kinds =
        args.kind.map_or_else(|| Kind::ALL.to_vec(), |kind| kind.plugin().into_iter().collect());
    let models = match args.kind {
        None | Some(ListKind::Models) => known_models(),
        _ => Vec::new(),
    };
    let recipes: Vec<&Recipe> = match args.kind {
        None | Some(ListKind::Recipes) => app.registry.recipes().collect(),
        _ => Vec::new(),
    };
    let suites = match args.kind {
        None | Some(ListKind::Suites) => Suite::all()?,
        _ => Vec::new(),
    };
    if args.json {
        let plugins = kinds
            .iter()
            .flat_map(|k| app.registry.of(*k))
            .map(|entry| described(entry, app.registry));
        let all: Vec<Value> = plugins
            .chain(recipes.iter().map(|r| recipe(r, app.registry)))
            .chain(suites.iter().map(suite))
            .chain(models.iter().map(model))
            .collect();
        return app.printer.json(&Value::Array(all));
    }
    let text = if args.long {
        long_text(&kinds, &recipes, &suites, &models, app.registry)
    } else {
        short_text(&kinds, &recipes, &suites, &models, app.registry)
    };
    app.printer.data(&text)
}

/// Maximum number of characters in a line of the short list.
const WIDTH: usize = 100;

/// The list with one line per name, grouped by kind.
fn short_text(
    kinds: &[Kind],
    recipes: &[&Recipe],
    suites: &[Suite],
    models: &[KnownModel],
    registry: &Registry,
) -> String {
    let line = |name: &str, summary: &str, remark| ListLine {
        name: name.to_owned(),
        summary: summary.to_owned(),
        remark,
    };
    let plugin = |entry: Entry| line(entry.about().name, entry.about().summary, "");
    let model = |model: &KnownModel| {
        let remark = if model.path.is_some() { "" } else { " (not downloaded)" };
        line(model.name, model.summary, remark)
    };
    let recipe = |recipe: &&Recipe| line(&recipe.name, &recipe.summary, "");
    let mut groups: Vec<(String, Vec<ListLine>)> = kinds
        .iter()
        .map(|kind| (kind.plural(), registry.of(*kind).map(plugin).collect()))
        .collect();
    groups.push(("recipes".to_owned(), recipes.iter().map(recipe).collect()));
    let suite = |suite: &Suite| line(&suite.name, &suite.summary, "");
    groups.push(("suites".to_owned(), suites.iter().map(suite).collect()));
    groups.push(("models".to_owned(), models.iter().map(model).collect()));
    groups.retain(|(_, lines)| !lines.is_empty());
    let mut text = String::new();
    for (kind, lines) in &groups {
        let width = lines.iter().map(|line| line.name.chars().count()).max().unwrap_or(0);
        text.push_str(&format!("\x1b[1m{kind}\x1b[0m\n"));
        lines.iter().for_each(|line| text.push_str(&line.text(width)));
    }
    text + "\nSee `reprpo explain NAME` for details, and `reprpo list --long` for references and \
        files.\n"
}

/// A line of the short list.
struct ListLine {
    name: String,
    summary: String,
    /// Text appended to the summary. It is never shortened.
    remark: &'static str,
}

impl ListLine {
    /// Formats the line, with the name padded to `width` and the summary shortened to fit into
    /// [`WIDTH`].
    fn text(&self, width: usize) -> String {
        let Self { name, summary, remark } = self;
        let room = WIDTH.saturating_sub(width + 4 + remark.chars().count());
        format!("  {name:<width$}  {}{remark}\n", shortened(summary, room))
    }
}

/// Shortens a summary to at most `room` characters. A longer summary is cut at the end of a clause.
/// If the result would use less than a third of the room, the summary is cut after a word instead,
/// and an ellipsis is appended.
fn shortened(summary: &str, room: usize) -> String {
    let length = |text: &str| text.chars().count();
    if length(summary) <= room {
        return summary.to_owned();
    }
    let clause = [", ", "; ", ": ", " ("]
        .iter()
        .flat_map(|end| summary.match_indices(end))
        .map(|(at, _)| &summary[..at])
        .filter(|head| length(head) <= room && 3 * length(head) >= room)
        .filter(|head| head.matches('(').count() == head.matches(')').count())
        .max_by_key(|head| head.len());
    if let Some(clause) = clause {
        return clause.to_owned();
    }
    let mut short = String::new();
    for word in summary.split(' ') {
        if short.chars().count() + word.chars().count() + 2 > room {
            break;
        }
        short.push_str(word);
        short.push(' ');
    }
    format!("{} …", short.trim_end_matches([' ', ',', ';', ':']))
}

/// The detailed list. It also shows each plugin's aliases, crate, reference and file, and what the
/// plugin needs from the engine.
fn long_text(
    kinds: &[Kind],
    recipes: &[&Recipe],
    suites: &[Suite],
    models: &[KnownModel],
    registry: &Registry,
) -> String {
    let sections = kinds.iter().map(|kind| {
        let mut grid =
            Grid::new([kind.plural().as_str(), "from", "description"].map(|c| (c, Align::Left)));
        for entry in registry.of(*kind) {
            let about = entry.about();
            grid.row([names(entry), from(entry, registry), about.summary.to_owned()]);
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
        text.push(recipes_text(recipes, registry));
    }
    if !suites.is_empty() {
        text.push(suites_text(suites));
    }
    if !models.is_empty() {
        text.push(models_text(models));
    }
    if let (false, false) = (kinds.is_empty(), registry.loaded().is_empty()) {
        text.push(files_text(registry.loaded()));
    }
    text.join("\n")
}

/// The table of loaded plugin files with their full paths. The other tables only show file names.
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

/// The crate and version of a plugin, followed by the name of its library file. For a built-in
/// plugin, "built in" replaces the file name.
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
    let mut grid = Grid::new(["recipes", "from", "description"].map(|c| (c, Align::Left)));
    for recipe in recipes {
        let from = place(recipe.origin, recipe.version, registry.file_of_recipe(&recipe.name));
        grid.row([recipe.name.clone(), from, recipe.summary.clone()]);
        grid.row(["", "", &format!("({})", recipe.reference)]);
    }
    format!(
        "{}\n`--recipe NAME` sets the values of a recipe, which all other settings override; \
            `reprpo explain NAME` shows them\n",
        grid.plain()
    )
}

/// A recipe as an item of `reprpo list --json`.
pub fn recipe(recipe: &Recipe, registry: &Registry) -> Value {
    json!({
        "kind": "recipe", "name": recipe.name, "aliases": [], "summary": recipe.summary,
        "reference": recipe.reference,
        "published": recipe.published, "origin": recipe.origin, "version": recipe.version,
        "file": registry.file_of_recipe(&recipe.name).map(|f| &f.path),
    })
}

/// The suites with their training sets and shifts.
fn suites_text(suites: &[Suite]) -> String {
    let mut grid = Grid::new(["suites", "trained on", "shifts"].map(|c| (c, Align::Left)));
    for suite in suites {
        grid.row([suite.name.as_str(), "", &suite.summary]);
        grid.row(["", "", &format!("({})", suite.reference.trim())]);
        for set in &suite.training_sets {
            let shifts: Vec<&str> = set.shifts.iter().map(|shift| shift.name.as_str()).collect();
            grid.row(["", &set.datasets[0].to_string(), &shifts.join(", ")]);
        }
        if !suite.others.is_empty() {
            let shifts: Vec<&str> = suite.others.iter().map(|shift| shift.name.as_str()).collect();
            grid.row(["", "anything else", &shifts.join(", ")]);
        }
    }
    format!(
        "{}\n`--suite` also takes a TOML file; `reprpo list suites --json` shows the data of each \
            shift\n",
        grid.plain()
    )
}

/// A suite as an item of `reprpo list --json`. `pairs` has one item per training set and shift.
fn suite(suite: &Suite) -> Value {
    json!({
        "kind": "suite", "name": suite.name, "aliases": [], "summary": suite.summary,
        "reference": suite.reference.trim(), "pairs": suite.pairs(),
    })
}

fn models_text(models: &[KnownModel]) -> String {
    let mut grid = Grid::new(["models", "format", "size", "description"].map(|c| (c, Align::Left)));
    for model in models {
        grid.row([
            model.name.to_owned(),
            model.format.to_owned(),
            format!("{} MB", model.megabytes),
            model.summary.to_owned(),
        ]);
        let folder = model.path.as_deref().and_then(Path::parent);
        let place = folder.map_or_else(
            || format!("not downloaded: {}", model.fetch),
            |folder| format!("in `{}`", folder.display()),
        );
        grid.row(["", "", "", &place]);
    }
    format!(
        "{}\n`--model` also takes a folder with config.json and safetensors, a .gguf file, or an \
            id `org/name` from the Hugging Face hub\n",
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

/// The name and the aliases of a plugin.
fn names(entry: Entry) -> String {
    std::iter::once(entry.about().name)
        .chain(entry.about().aliases.iter().copied())
        .collect::<Vec<_>>()
        .join(", ")
}

/// A plugin as an item of `reprpo list --json`. `file` is null for built-in plugins.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_summaries_are_shortened_to_the_width() {
        assert_eq!(shortened("one, two, three", 15), "one, two, three");
        assert_eq!(shortened("one, two, three", 14), "one, two");
        assert_eq!(shortened("one, two three four", 15), "one, two …");
        assert_eq!(shortened("one two (three, four)", 16), "one two");
        assert_eq!(shortened("one two three", 11), "one two …");
        let line =
            |remark| ListLine { name: "name".into(), summary: "word ".repeat(40), remark }.text(12);
        for remark in ["", " (not downloaded)"] {
            let text = line(remark);
            assert!(text.chars().count() - 1 <= WIDTH && text.contains("word …"), "{text}");
            assert!(text.ends_with(&format!("{remark}\n")), "{text}");
        }
    }
}
