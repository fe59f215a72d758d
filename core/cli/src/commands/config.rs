//! `reprpo config`.

use reprpo_core::Result;
use reprpo_core::config;
use serde_json::{Map, Value, json};

use crate::App;
use crate::args::{ConfigArgs, ConfigCommand, ShowArgs};

pub fn run(args: &ConfigArgs, app: &App<'_>) -> Result<()> {
    match &args.command {
        ConfigCommand::Show(args) => show(args, app),
        ConfigCommand::Schema => app.printer.json(&config::schema(app.registry)?),
    }
}

fn show(args: &ShowArgs, app: &App<'_>) -> Result<()> {
    let resolved = args.experiment.resolve(app)?;
    match (args.json, args.origin) {
        (false, false) => app.printer.data(&resolved.experiment.to_toml()),
        (false, true) => app.printer.data(&resolved.to_toml_with_origins()),
        (true, false) => app.printer.json(&resolved.experiment.to_json()),
        (true, true) => app.printer.json(&with_origins(&resolved)),
    }
}

/// The configuration as a JSON object that maps each field path to its value and origin:
/// `{ "train.lr": { "value": …, "origin": … } }`.
fn with_origins(resolved: &config::Resolved) -> Value {
    let mut leaves = Map::new();
    for (key, value) in resolved.experiment.to_json().as_object().into_iter().flatten() {
        match value.as_object() {
            Some(section) => section.iter().for_each(|(field, value)| {
                leaf(&mut leaves, format!("{key}.{field}"), value, resolved)
            }),
            None => leaf(&mut leaves, key.clone(), value, resolved),
        }
    }
    Value::Object(leaves)
}

fn leaf(leaves: &mut Map<String, Value>, path: String, value: &Value, resolved: &config::Resolved) {
    let origin = resolved.origins.get(&path).map(ToString::to_string);
    leaves.insert(path, json!({ "value": value, "origin": origin }));
}
