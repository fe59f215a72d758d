//! Writes `study.json` and `study.toml`, for programs that read a study.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::engine::Study;
use super::objective::OBJECTIVE;
use super::plan::Plan;
use super::results::{Phase, Results, State, Trial};
use super::space::Point;
use crate::error::Result;
use crate::files::write_whole;

/// Name of the record of a study.
pub const FILE: &str = "study.json";

/// The set on which the points are selected: `validation` or `shift`.
pub fn selected_on(plan: &Plan) -> &'static str {
    match plan.search.as_ref().is_some_and(|search| search.select_on_shift) {
        true => "shift",
        false => "validation",
    }
}

/// Writes `study.json` and `study.toml`.
///
/// # Errors
/// Fails if the file cannot be written.
pub fn write(study: &Study<'_>, results: &Results) -> Result<()> {
    write_file(study.plan, study.folder)?;
    let json = json(study, results);
    write_whole(&study.folder.join(FILE), format!("{json:#}\n").as_bytes())
}

fn json(study: &Study<'_>, results: &Results) -> Value {
    let plan = study.plan;
    let trial = |trial: &Trial| {
        let run = &results.runs[&trial.run];
        let (state, error) = match &run.state {
            State::Missing => ("missing", None),
            State::Failed(error) => ("failed", Some(error)),
            // A run with a part of the resource only decides which points get more.
            State::Finished if trial.share < 1.0 => ("pruned", None),
            State::Finished => ("finished", None),
        };
        let group = &plan.groups[trial.group];
        let folder = run.folder.strip_prefix(study.folder).unwrap_or(&run.folder);
        let mut json = json!({
            "method": group.name,
            "phase": if trial.phase == Phase::Search { "search" } else { "final" },
            "values": values(&trial.point),
            "seed": run.experiment.train.seed,
            "run": folder,
            "state": state,
            "score": run.score,
            "error": error,
            "threads": run.threads,
        });
        if !group.labels.is_empty() {
            json["grid"] = Value::Object(group.labels.iter().cloned().collect());
        }
        if trial.share < 1.0 {
            json["share"] = json!(trial.share);
        }
        json
    };
    let names: Vec<&str> = plan.groups.iter().map(|group| group.name.as_str()).collect();
    json!({
        "name": plan.name,
        "command": study.command,
        "objective": OBJECTIVE,
        "selected_on": selected_on(plan),
        "sampler": plan.search.as_ref().map(|search| search.sampler.name()),
        "methods": names,
        "tuned": tuned(plan, results),
        "trials": results.ordered().into_iter().map(trial).collect::<Vec<_>>(),
    })
}

fn tuned(plan: &Plan, results: &Results) -> Map<String, Value> {
    let points = plan.groups.iter().zip(&results.tuned);
    points
        .filter_map(|(group, point)| Some((group.name.clone(), values(point.as_ref()?))))
        .collect()
}

/// A point as a JSON object.
pub fn values(point: &Point) -> Value {
    Value::Object(point.iter().cloned().collect())
}

/// The first message to an external sampler.
pub fn start(plan: &Plan) -> Value {
    let searched = plan.groups.iter().filter(|group| !group.space.is_empty());
    let methods: Map<String, Value> = searched
        .map(|group| {
            let fields: Map<String, Value> =
                group.space.iter().map(|d| (d.field.clone(), d.json())).collect();
            let trials = plan.search.as_ref().map(|search| search.points(&group.space));
            (group.name.clone(), json!({ "fields": fields, "trials": trials }))
        })
        .collect();
    json!({
        "type": "start", "study": plan.name, "objective": OBJECTIVE, "direction": "maximize",
        "selected_on": selected_on(plan), "methods": methods,
    })
}

/// The last message to an external sampler.
pub fn end(plan: &Plan, results: &Results) -> Value {
    json!({ "type": "end", "tuned": tuned(plan, results) })
}

/// Reads the number of threads of each finished run from the record of an earlier process. Without
/// a record, the numbers are not known.
pub fn threads(folder: &Path) -> BTreeMap<String, usize> {
    let read = || -> Option<BTreeMap<String, usize>> {
        let text = std::fs::read_to_string(folder.join(FILE)).ok()?;
        let study: Value = serde_json::from_str(&text).ok()?;
        let of = |trial: &Value| {
            let name =
                Path::new(trial["run"].as_str()?).file_name()?.to_string_lossy().into_owned();
            Some((name, trial["threads"].as_u64()? as usize))
        };
        Some(study["trials"].as_array()?.iter().filter_map(of).collect())
    };
    read().unwrap_or_default()
}

/// Writes `study.toml`: the study with the values of all keys, also of those that its file leaves
/// out. Does nothing for a grid.
///
/// # Errors
/// Fails if the file cannot be written.
fn write_file(plan: &Plan, folder: &Path) -> Result<()> {
    let Some(file) = &plan.file else { return Ok(()) };
    let mut text = String::from("# Written by `reprpo sweep`.\n");
    let mut line = |text_of_line: String| {
        text.push_str(&text_of_line);
        text.push('\n');
    };
    let name = |name: &str| toml::Value::String(name.to_owned()).to_string();
    line(format!("name = {}", name(&plan.name)));
    let seeds: Vec<String> = plan
        .groups
        .first()
        .into_iter()
        .flat_map(|group| group.seeds.iter().flatten().map(u64::to_string))
        .collect();
    if !seeds.is_empty() {
        line(format!("seeds = [{}]", seeds.join(", ")));
    }
    if plan.search.is_some() {
        line(format!("final = \"{}\"", if plan.all_points { "all" } else { "tuned" }));
    }
    let value = |value: &Value| {
        toml::Value::try_from(value).map_or_else(|_| name("none"), |value| value.to_string())
    };
    let assignments = |all: &[crate::config::Assignment]| -> Vec<String> {
        all.iter().map(|a| format!("{} = {}", name(&a.field()), value(&a.value()))).collect()
    };
    line("\n[base]".to_owned());
    assignments(&file.base).into_iter().for_each(&mut line);
    if !file.grid.is_empty() {
        line("\n[grid]".to_owned());
        for axis in &file.grid {
            let values: Vec<String> = axis.values.iter().map(value).collect();
            line(format!("{} = [{}]", name(&axis.field), values.join(", ")));
        }
    }
    let dimension = |d: &super::space::Dimension| {
        let values = match &d.values {
            super::space::Values::List(list) => {
                format!("[{}]", list.iter().map(value).collect::<Vec<_>>().join(", "))
            }
            super::space::Values::Range { low, high, log, integer } => {
                format!("{{ low = {low:?}, high = {high:?}, log = {log}, integer = {integer} }}")
            }
        };
        format!("{} = {values}", name(&d.field))
    };
    for method in &file.methods {
        line(format!("\n[methods.{}]", name(&method.name)));
        assignments(&method.settings).into_iter().for_each(&mut line);
        if !method.searched {
            line("search = false".to_owned());
        } else if !method.fields.is_empty() {
            line(format!("\n[methods.{}.search]", name(&method.name)));
            method.fields.iter().map(dimension).for_each(&mut line);
        }
    }
    if let Some(search) = &plan.search {
        line("\n[search]".to_owned());
        line(format!("sampler = \"{}\"", search.sampler.name()));
        search.trials.into_iter().for_each(|trials| line(format!("trials = {trials}")));
        for (key, number) in [
            ("seed", search.seed as usize),
            ("batch", search.batch),
            ("startup", search.startup),
            ("factor", search.factor),
            ("rungs", search.rungs),
        ] {
            line(format!("{key} = {number}"));
        }
        line(format!("resource = \"{}\"", search.resource.field()));
        line(format!("select_on_shift = {}", search.select_on_shift));
        line("\n[search.fields]".to_owned());
        file.fields.iter().map(dimension).for_each(&mut line);
    }
    write_whole(&folder.join("study.toml"), text.as_bytes())
}
