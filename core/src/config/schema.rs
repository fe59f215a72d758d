//! The JSON schema of the experiment.

use serde_json::{Value, json};

use super::Experiment;
use super::flag::FLAGS;
use crate::error::Result;
use crate::registry::{Kind, Registry};

/// The JSON schema of the whole experiment, including the fields of every plugin.
///
/// # Errors
/// Fails if the schema of a plugin cannot be read.
pub fn schema(registry: &Registry) -> Result<Value> {
    let mut root = schemars::schema_for!(Experiment).to_value();
    for kind in Kind::ALL {
        let choices: Vec<Value> = registry
            .of(kind)
            .map(|entry| {
                let mut schema = entry.about().schema()?;
                if let Some(defs) = schema.get_mut("$defs").map(Value::take) {
                    // All definitions are moved to the root of the document. The prefix keeps type
                    // names of different plugins from colliding.
                    let prefix = format!("{}-{}-", kind.name(), entry.about().name);
                    rename_references(&mut schema, &prefix);
                    for (name, mut definition) in defs.as_object().cloned().unwrap_or_default() {
                        rename_references(&mut definition, &prefix);
                        root["$defs"][format!("{prefix}{name}")] = definition;
                    }
                }
                if let Some(map) = schema.as_object_mut() {
                    map.remove("$schema");
                    map.remove("$defs");
                    map.insert("title".into(), json!(entry.about().name));
                    map.insert("description".into(), json!(entry.about().summary));
                    map.insert("required".into(), json!(["name"]));
                }
                schema["properties"]["name"] = json!({ "const": entry.about().name });
                Ok(schema)
            })
            .collect::<Result<_>>()?;
        root["properties"][kind.name()]["anyOf"] = Value::Array(choices);
        if let Some(section) = root["properties"][kind.name()].as_object_mut() {
            section.remove("$ref");
        }
    }
    remove_flags(&mut root);
    if let Some(map) = root.as_object_mut() {
        // No field is required, because a file may omit fields that another layer sets.
        map.remove("required");
        if let Some(defs) = map.get_mut("$defs").and_then(Value::as_object_mut) {
            defs.remove("Choice");
        }
    }
    Ok(root)
}

fn rename_references(schema: &mut Value, prefix: &str) {
    match schema {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(target) if key == "$ref" => {
                        *target = target.replace("#/$defs/", &format!("#/$defs/{prefix}"))
                    }
                    other => rename_references(other, prefix),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|v| rename_references(v, prefix)),
        _ => {}
    }
}

/// Removes the command-line flags from the schemas of the fields, because files do not use flags.
fn remove_flags(root: &mut Value) {
    let own = ["TrainConfig", "EvalConfig", "CacheConfig"].map(|name| format!("/$defs/{name}"));
    for table in std::iter::once("").chain(own.iter().map(String::as_str)) {
        let properties = root
            .pointer_mut(table)
            .and_then(|table| table.get_mut("properties"))
            .and_then(Value::as_object_mut);
        properties
            .into_iter()
            .flat_map(|map| map.values_mut())
            .filter_map(Value::as_object_mut)
            .for_each(|field| drop(field.shift_remove(FLAGS)));
    }
}
