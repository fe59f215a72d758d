//! Invariants of a method's description: its documentation, fields and JSON schema.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use tch::Kind as Dtype;

use super::example::example;
use super::{Invariant, Method, Verdict, fixture};
use crate::api::{Init, Site, TransformCx};
use crate::config::{Field, plugin_fields};
use crate::error::Result;
use crate::registry::Entry;

/// The invariants for methods of every kind.
pub const DESCRIBED: &[Invariant<Method>] = &[
    Invariant { name: "the method and all its fields are documented", check: documented },
    Invariant {
        name: "the defaults match the fields of the schema, and survive a round trip through JSON",
        check: round_trip,
    },
    Invariant { name: "no field is called `name`, which is reserved", check: names },
    Invariant { name: "an unknown field is an error", check: unknown_field },
    Invariant { name: "a configuration with values of the wrong type is an error", check: misfit },
    Invariant { name: "the documented example is valid and runs", check: example },
];

/// The method's JSON schema.
fn schema(entry: Entry) -> Result<Value> {
    entry.about().schema()
}

fn documented(method: &Method) -> Result<Verdict> {
    let about = method.entry.about();
    for (what, text) in
        [("summary", about.summary), ("explanation", about.explain), ("reference", about.reference)]
    {
        if text.trim().is_empty() {
            return Ok(Verdict::Violated(format!("the {what} is empty")));
        }
    }
    if about.summary.contains('\n') || about.summary.trim_end().ends_with('.') {
        return Ok(Verdict::Violated(format!(
            "the summary must be one line without a full stop, got {:?}",
            about.summary
        )));
    }
    let schema = schema(method.entry)?;
    let mut bare = Vec::new();
    undescribed(&schema, &schema, "", &mut bare);
    Ok(Verdict::unless(
        (!bare.is_empty()).then(|| format!("fields without a doc comment: {}", bare.join(", "))),
    ))
}

/// Adds the paths of all undocumented fields in the subschema `part` to `bare`. A field is
/// documented if it or its type has a description. `root` is the whole schema.
fn undescribed(root: &Value, part: &Value, path: &str, bare: &mut Vec<String>) {
    let described = |v: &Value| {
        v.get("description").and_then(Value::as_str).is_some_and(|text| !text.trim().is_empty())
    };
    let target = |v: &Value| {
        v.get("$ref")
            .and_then(Value::as_str)
            .and_then(|r| root.pointer(r.strip_prefix('#')?))
            .cloned()
    };
    for (name, field) in part.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        if !described(field) && !target(field).as_ref().is_some_and(described) {
            bare.push(format!("`{path}`"));
        }
        undescribed(root, field, &path, bare);
    }
    for key in ["items", "additionalProperties"] {
        part.get(key).into_iter().for_each(|inner| undescribed(root, inner, path, bare));
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        part.get(key)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .for_each(|inner| undescribed(root, inner, path, bare));
    }
    // Named types are checked once here, not at every reference.
    for (name, inner) in part.get("$defs").and_then(Value::as_object).into_iter().flatten() {
        undescribed(root, inner, name, bare);
    }
}

fn round_trip(method: &Method) -> Result<Verdict> {
    let (about, defaults) = (method.entry.about(), method.entry.about().defaults()?);
    let schema = schema(method.entry)?;
    let in_schema: BTreeSet<&String> = schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(Map::keys)
        .collect();
    let in_defaults: BTreeSet<&String> = defaults.keys().collect();
    if in_schema != in_defaults {
        return Ok(Verdict::Violated(format!(
            "the schema has the fields {in_schema:?}, but the defaults have {in_defaults:?}"
        )));
    }
    if let Entry::Adapter(adapter) = method.entry
        && let Some(stray) = adapter.adjustable.iter().find(|field| !defaults.contains_key(**field))
    {
        return Ok(Verdict::Violated(format!(
            "`{stray}` is listed as adjustable, but the configuration has no such field"
        )));
    }
    let written = Value::Object(defaults);
    let again = about.rewrite(&written.to_string())?;
    let same = serde_json::from_str::<Value>(&again).is_ok_and(|again| again == written);
    Ok(Verdict::unless((!same).then(|| {
        format!("{written} becomes {again} when it is deserialised and serialised again")
    })))
}

fn names(method: &Method) -> Result<Verdict> {
    let taken = schema(method.entry)?.pointer("/properties/name").is_some();
    Ok(Verdict::unless(taken.then(|| "a field is called `name`".to_owned())))
}

fn unknown_field(method: &Method) -> Result<Verdict> {
    const STRAY: &str = "no_such_field";
    let defaults = method.entry.about().defaults()?;
    let mut tables = vec![String::new()];
    fn nested(fields: &[Field], path: &str, tables: &mut Vec<String>) {
        for field in fields.iter().filter(|f| !f.fields.is_empty()) {
            let path = format!("{path}/{}", field.name);
            nested(&field.fields, &path, tables);
            tables.push(path);
        }
    }
    nested(&plugin_fields(method.entry.about())?, "", &mut tables);
    for path in tables {
        let mut config = Value::Object(defaults.clone());
        if let Some(table) = config.pointer_mut(&path) {
            table[STRAY] = json!(1);
        }
        if method.entry.about().check(&config.to_string()).is_ok() {
            let place = if path.is_empty() {
                "the configuration".to_owned()
            } else {
                format!("`{}`", &path[1..])
            };
            return Ok(Verdict::Violated(format!(
                "{place} accepts an unknown field; add `#[serde(deny_unknown_fields)]` to its type"
            )));
        }
    }
    Ok(Verdict::Holds)
}

fn misfit(method: &Method) -> Result<Verdict> {
    let about = method.entry.about();
    for text in ["", "{", "7", "\"text\""] {
        match build(method.entry, text) {
            Ok(()) => {
                return Ok(Verdict::Violated(format!(
                    "the invalid configuration `{text}` was accepted"
                )));
            }
            Err(e) if e.is_panic() => return Err(e),
            Err(_) => {}
        }
    }
    let defaults = about.defaults()?;
    for field in plugin_fields(about)? {
        let odd = [json!(true), json!("~"), json!(0.5), json!({ "~": "~" })]
            .into_iter()
            .find(|value| field.refuses(value));
        let Some(odd) = odd else { continue };
        let mut config = defaults.clone();
        config.insert(field.name.clone(), odd.clone());
        if about.check(&Value::Object(config).to_string()).is_ok() {
            return Ok(Verdict::Violated(format!(
                "`{}` accepts {odd}, but its type in the schema is {}",
                field.name, field.kind
            )));
        }
    }
    Ok(Verdict::Holds)
}

fn build(entry: Entry, json: &str) -> Result<()> {
    let model = fixture::model(Dtype::Double)?;
    match entry {
        Entry::Intervention(entry) => entry.build(json, model.info()).map(drop),
        Entry::Adapter(entry) => entry.build(json).map(drop),
        Entry::Transform(entry) => {
            let site = Site::Residual(1);
            let [embedding, unembedding] = &model.embeddings()?;
            let cx = TransformCx {
                model: model.info(),
                site: &site,
                width: model.info().width(&site)?,
                embedding,
                unembedding,
            };
            entry.build(json, &cx, &mut Init::new(0, "", Dtype::Double, model.device())).map(drop)
        }
        Entry::Tap(entry) => entry.build(json).map(drop),
        Entry::Dataset(entry) => entry.build(json).map(drop),
    }
}
