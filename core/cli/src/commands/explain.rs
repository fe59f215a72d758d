//! `reprpo explain`.

use reprpo_core::Result;
use reprpo_core::api::{LinearInfo, ModelInfo};
use reprpo_core::config::{Example, Field, TrainConfig, plugin_fields};
use reprpo_core::guard::faults;
use reprpo_core::registry::{
    Entry, InterventionEntry, PluginLibrary, Recipe, Registry, TypedEntry,
};
use reprpo_core::report::{Align, Grid};
use serde_json::{Value, json};

use crate::App;
use crate::args::ExplainArgs;
use crate::commands::list;

pub fn run(args: &ExplainArgs, app: &App<'_>) -> Result<()> {
    let (entries, recipe) = app.registry.find(&args.name)?;
    if args.json {
        let mut all = entries
            .into_iter()
            .map(|entry| as_json(entry, app.registry))
            .collect::<Result<Vec<_>>>()?;
        all.extend(recipe.map(|recipe| recipe_as_json(recipe, app.registry)));
        return app.printer.json(&Value::Array(all));
    }
    let mut all = entries
        .into_iter()
        .map(|entry| as_text(entry, app.registry))
        .collect::<Result<Vec<_>>>()?;
    all.extend(recipe.map(|recipe| recipe_as_text(recipe, app.registry)));
    app.printer.data(&all.join("\n"))
}

fn recipe_as_text(recipe: &Recipe, registry: &Registry) -> String {
    let Recipe { name, summary, reference, published, origin, version, .. } = recipe;
    let from = place(origin, version, registry.file_of_recipe(name));
    let mut text = format!(
        "{name} (recipe): {summary}\n\nIt sets the following values, which configuration files, \
            the environment, flags and `--set` override:\n\n{}",
        recipe.to_toml()
    );
    if !published.is_empty() {
        text.push_str(&format!("\nPublished: {published}\n"));
    }
    text.push_str(&format!(
        "\nReference: {reference}\nFrom:      {from}\nExample:   reprpo run --recipe {name}\n"
    ));
    text
}

fn recipe_as_json(recipe: &Recipe, registry: &Registry) -> Value {
    let mut described = list::recipe(recipe, registry);
    described["sets"] = json!(recipe.values);
    described["example"] = json!(format!("reprpo run --recipe {}", recipe.name));
    described
}

fn as_text(entry: Entry, registry: &Registry) -> Result<String> {
    let (about, kind) = (entry.about(), entry.kind().name());
    let mut text = format!("{} ({kind}): {}\n", about.name, about.summary);
    if !about.explain.trim().is_empty() {
        text.push_str(&format!("\n{}\n", about.explain.trim()));
    }
    if let Some(needs) = needs(entry) {
        text.push_str(&format!("\nNeeds: {needs}\n"));
    }
    if let Some(rate) = learning_rate(entry) {
        text.push_str(&format!("\nLearning rate: {rate}\n"));
    }
    match coefficient(entry) {
        Some(Ok(())) => text.push_str("\nCoefficient: any finite number (`--coefficient`)\n"),
        Some(Err(e)) => {
            text.push_str(&format!("\nCoefficient: only 0 and 1, because {}\n", e.in_a_line()));
        }
        None => {}
    }
    let fields = plugin_fields(entry.about())?;
    if fields.is_empty() {
        text.push_str("\nThis plugin has no fields.\n");
    } else {
        text.push_str(&format!(
            "\nFields, set with `--set {kind}.FIELD=VALUE` or under `[{kind}]` \
            in a configuration file:\n\n"
        ));
        let mut grid =
            Grid::new(["field", "type", "default", "description"].map(|c| (c, Align::Left)));
        rows(&mut grid, "", &fields);
        text.push_str(&grid.plain());
    }
    let from = place(about.origin, about.version, registry.file_of(entry));
    text.push_str(&format!(
        "\nReference: {}\nFrom:      {from}\nExample:   {}\n",
        about.reference,
        example(entry, registry)?
    ));
    Ok(text)
}

/// True if the plugin is an adapter without trainable parameters.
fn is_untrained(entry: Entry) -> bool {
    let Entry::Adapter(adapter) = entry else { return false };
    adapter.build("{}").is_ok_and(|adapter| !adapter.is_trainable())
}

/// The example of a plugin as a command. An adapter without trainable parameters is combined with
/// an intervention that takes no steps.
fn example(entry: Entry, registry: &Registry) -> Result<String> {
    let command = Example::of(entry)?.command();
    Ok(match registry.without_steps(&small_model()).first() {
        Some(intervention) if is_untrained(entry) => {
            format!("{command} --intervention {intervention}")
        }
        _ => command,
    })
}

/// Adds a row for each field, followed by the rows of its nested fields. `before` is the path of
/// the enclosing field, e.g. `train.`. At the top level, `before` is empty.
fn rows(grid: &mut Grid, before: &str, fields: &[Field]) {
    for field in fields {
        let name = format!("{before}{}", field.name);
        let default = if field.fields.is_empty() { shown(&field.default) } else { String::new() };
        grid.row([name.clone(), kind_of(field), default, field.description.clone()]);
        for word in field.choices.iter().filter(|w| !w.describes.is_empty()) {
            grid.row([
                String::new(),
                format!("  {}", word.value),
                String::new(),
                word.describes.clone(),
            ]);
        }
        rows(grid, &format!("{name}."), &field.fields);
    }
}

fn as_json(entry: Entry, registry: &Registry) -> Result<Value> {
    let mut described = list::described(entry, registry);
    described["explain"] = json!(entry.about().explain);
    described["example"] = json!(example(entry, registry)?);
    described["learning_rate"] = match entry {
        Entry::Intervention(intervention) => {
            intervention.learning_rate.map_or(Value::Null, |rate| json!({ "rate": rate }))
        }
        Entry::Adapter(adapter) => json!({ "factor": adapter.learning_rate_factor }),
        _ => Value::Null,
    };
    described["accepts_coefficient"] = json!(coefficient(entry).map(|accepted| accepted.is_ok()));
    described["fields"] = json!(plugin_fields(entry.about())?);
    Ok(described)
}

/// Describes how an intervention or adapter affects the default of `train.lr`.
fn learning_rate(entry: Entry) -> Option<String> {
    match entry {
        _ if is_untrained(entry) => None,
        Entry::Intervention(intervention) => {
            let rate = intervention.learning_rate.unwrap_or_else(|| TrainConfig::default().lr);
            Some(format!("the default of `train.lr` is {rate} times the factor of the adapter"))
        }
        Entry::Adapter(adapter) => Some(format!(
            "the intervention's default of `train.lr` is multiplied by {}",
            adapter.learning_rate_factor
        )),
        _ => None,
    }
}

/// Asks an adapter with its default configuration whether its change can be multiplied. Returns
/// `None` for other plugins, and if the adapter cannot be built.
fn coefficient(entry: Entry) -> Option<Result<()>> {
    let Entry::Adapter(adapter) = entry else { return None };
    let config = Value::Object(adapter.about.defaults().ok()?).to_string();
    let accepted = adapter.build(&config).ok()?.accepts_coefficient();
    // A method that fails here is still explained, as in `needs`.
    if faults::check().is_ok() { Some(accepted) } else { None }
}

/// Formats the origin of a plugin or recipe: the crate, the version, and the library file or "built
/// in".
fn place(origin: &str, version: &str, file: Option<&PluginLibrary>) -> String {
    match file {
        Some(file) => format!("{origin} {version}, `{}`", file.path.display()),
        None => format!("{origin} {version}, built in"),
    }
}

/// The type of a field. For an enumeration with more than three documented values, returns "one of
/// these", because the full type would make the column too wide. The rows below the field list the
/// values.
fn kind_of(field: &Field) -> String {
    let all_below =
        field.choices.iter().all(|w| !w.describes.is_empty()) && field.choices.len() > 3;
    if all_below { "one of these".to_owned() } else { field.kind.clone() }
}

fn shown(default: &Value) -> String {
    match default {
        Value::Null => "none".to_owned(),
        Value::String(s) if s.is_empty() => "\"\"".to_owned(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

/// Describes what an intervention with its default configuration needs from the engine. Returns
/// `None` for other plugins. Also returns `None` if the defaults do not fit the small example
/// model.
pub fn needs(entry: Entry) -> Option<String> {
    let intervention = InterventionEntry::of_entry(entry)?;
    let config = Value::Object(intervention.about.defaults().ok()?).to_string();
    let needs =
        intervention.build(&config, &small_model()).ok().map(|method| method.needs().describe());
    // A method that fails here is still listed. The error is reported when a run uses the method.
    if faults::check().is_ok() { needs } else { None }
}

fn small_model() -> ModelInfo {
    let (layers, hidden) = (4, 64);
    let linear = |layer: usize, name: &str| LinearInfo {
        name: format!("model.layers.{layer}.{name}"),
        layer: Some(layer),
        inputs: hidden,
        outputs: hidden,
    };
    let names = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ];
    let linears =
        (0..layers).flat_map(|layer| names.iter().map(move |name| linear(layer, name))).collect();
    ModelInfo {
        architecture: "llama".to_owned(),
        layers,
        hidden,
        heads: 4,
        head_dim: 16,
        vocab: 256,
        linears,
        parts: Vec::new(),
    }
}
