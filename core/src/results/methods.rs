//! Groups runs into methods, and the runs of a method into points with the same searched values.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::collect::{Collection, LeftOut, Member};
use super::recorded::{RecordedRun, plain};

/// The field that distinguishes the points of a method if no study names the searched fields.
const LEARNING_RATE: &str = "train.lr";

/// Sections and fields that are not part of a method. The comparability check covers those that
/// affect the scores.
const IGNORED: [&str; 12] = [
    "train.seed",
    "train.checkpoint_every",
    "train.metrics_every",
    "train.tensorboard",
    "out",
    "device",
    "recipe",
    "plugins",
    "model",
    "eval.",
    "cache.",
    "init_",
];

/// The only field of the evaluation that makes a method: an instruction instead of training.
const INSTRUCTION: &str = "eval.instruction";

/// How the tuned point of a method was selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tuned {
    /// The study selected it.
    Study,
    /// The method has a single point.
    Only,
    /// It has the lowest mean loss at the last validation of its runs.
    Validation,
    /// Nothing was selected, so every point has its own row.
    Unselected,
}

/// The runs of a method with the same searched values.
#[derive(Clone, Debug, PartialEq)]
pub struct MethodPoint {
    /// The searched fields and their values.
    pub values: BTreeMap<String, String>,
    /// Positions of the runs in the collection, sorted by seed.
    pub runs: Vec<usize>,
    /// True if `runs` are final runs of a study.
    pub is_final: bool,
}

/// A method with all its points.
#[derive(Clone, Debug, PartialEq)]
pub struct Method {
    /// Name of the method.
    pub name: String,
    /// Name of its intervention.
    pub intervention: String,
    /// The points, by learning rate.
    pub points: Vec<MethodPoint>,
    /// How the tuned point was selected.
    pub tuned: Tuned,
    /// Position of the tuned point; `None` if nothing was selected.
    pub tuned_point: Option<usize>,
}

/// A row of the main table: a method at one point.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Name of the row: the method, and its values if the method has several rows.
    pub name: String,
    /// Position of the method.
    pub method: usize,
    /// Name of the method's intervention.
    pub intervention: String,
    /// The searched values.
    pub values: BTreeMap<String, String>,
    /// Positions of the runs in the collection, sorted by seed.
    pub runs: Vec<usize>,
    /// How the point was selected.
    pub tuned: Tuned,
    /// True if these are runs of the search, because the study has no final runs at this point.
    pub search_runs: bool,
}

/// A run on the way into a point.
struct Entry {
    run: usize,
    seed: u64,
    values: BTreeMap<String, String>,
    is_final: bool,
}

/// Groups the runs of a collection. Runs with the same method, values and seed as another run are
/// returned as left out.
pub(super) fn group(all: &Collection) -> (Vec<Method>, Vec<LeftOut>) {
    let mut left_out = Vec::new();
    let mut methods = Vec::new();
    for (study, (_, file)) in all.studies.iter().enumerate() {
        for name in &file.methods {
            let entries: Vec<Entry> = entries_of(all, study, name);
            if entries.is_empty() {
                continue;
            }
            let tuned = file.tuned.get(name).map(text);
            let taken = methods.iter().any(|m: &Method| m.name == *name);
            let full = if taken { format!("{}: {name}", file.name) } else { name.clone() };
            methods.push(method(full, entries, tuned, all, &mut left_out));
        }
    }
    methods.extend(group_singles(all, &mut left_out));
    (methods, left_out)
}

fn entries_of(all: &Collection, study: usize, method: &str) -> Vec<Entry> {
    let members = all.members.iter().enumerate();
    members
        .filter_map(|(run, member)| {
            let place = member.place.as_ref()?;
            (place.study == study && place.method == method).then(|| Entry {
                run,
                seed: member.run.seed,
                values: text(&place.values),
                is_final: place.is_final,
            })
        })
        .collect()
}

/// Groups the runs that are not part of a study. Runs that only differ in the seed and the learning
/// rate are in one group.
fn group_singles(all: &Collection, left_out: &mut Vec<LeftOut>) -> Vec<Method> {
    let singles: Vec<(usize, &Member)> =
        all.members.iter().enumerate().filter(|(_, m)| m.place.is_none()).collect();
    let mut groups: Vec<(BTreeMap<String, String>, Vec<usize>)> = Vec::new();
    for (at, member) in &singles {
        let key = identity(&member.run);
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, runs)) => runs.push(*at),
            None => groups.push((key, vec![*at])),
        }
    }
    let base = |runs: &[usize]| all.members[runs[0]].run.method_parts().join(" × ");
    groups
        .iter()
        .map(|(key, runs)| {
            let mut name = base(runs);
            let rivals: Vec<&BTreeMap<String, String>> =
                groups.iter().filter(|(_, r)| base(r) == name).map(|(key, _)| key).collect();
            let differs = |field: &&String| rivals.iter().any(|r| r.get(*field) != key.get(*field));
            let differences: Vec<String> =
                key.keys().filter(differs).map(|f| format!("{f}={}", key[f])).collect();
            if !differences.is_empty() {
                name = format!("{name}, {}", differences.join(", "));
            }
            let entry = |&run: &usize| {
                let member = &all.members[run].run;
                let rate = member.field(LEARNING_RATE).map(|v| (LEARNING_RATE.to_owned(), v));
                Entry {
                    run,
                    seed: member.seed,
                    values: rate.into_iter().collect(),
                    is_final: false,
                }
            };
            method(name, runs.iter().map(entry).collect(), None, all, left_out)
        })
        .collect()
}

/// The fields that make the method of a run.
fn identity(run: &RecordedRun) -> BTreeMap<String, String> {
    let is_path = |field: &str, value: &Value| {
        field.starts_with("dataset.") && value.as_str().is_some_and(|text| text.contains('/'))
    };
    run.config
        .iter()
        .filter(|(field, value)| {
            *field != LEARNING_RATE
                && (*field == INSTRUCTION || !IGNORED.iter().any(|i| field.starts_with(i)))
                && !is_path(field, value)
        })
        .map(|(field, value)| (field.clone(), plain(value)))
        .collect()
}

fn text(values: &BTreeMap<String, Value>) -> BTreeMap<String, String> {
    values.iter().map(|(field, value)| (field.clone(), plain(value))).collect()
}

fn method(
    name: String,
    mut entries: Vec<Entry>,
    tuned: Option<BTreeMap<String, String>>,
    all: &Collection,
    left_out: &mut Vec<LeftOut>,
) -> Method {
    entries.sort_by_key(|e| (e.seed, !e.is_final));
    let mut points: Vec<(MethodPoint, Vec<Entry>)> = Vec::new();
    for entry in entries {
        let at = points.iter().position(|(p, _)| p.values == entry.values).unwrap_or_else(|| {
            let (values, is_final) = (entry.values.clone(), false);
            points.push((MethodPoint { values, runs: Vec::new(), is_final }, Vec::new()));
            points.len() - 1
        });
        points[at].1.push(entry);
    }
    let mut points: Vec<MethodPoint> = points
        .into_iter()
        .map(|(mut point, mut entries)| {
            // The search used its runs to select the values, so final runs replace them.
            point.is_final = entries.iter().any(|e| e.is_final);
            entries.retain(|e| e.is_final == point.is_final);
            let mut last: Option<&Entry> = None;
            for entry in &entries {
                match last.filter(|l| l.seed == entry.seed) {
                    Some(known) => left_out.push(LeftOut {
                        run: all.members[entry.run].run.folder.clone(),
                        reason: format!(
                            "it has the same method, values and seed as `{}`",
                            all.members[known.run].run.folder.display()
                        ),
                    }),
                    None => {
                        point.runs.push(entry.run);
                        last = Some(entry);
                    }
                }
            }
            point
        })
        .collect();
    let rate = |p: &MethodPoint| all.members[p.runs[0]].run.learning_rate().unwrap_or(0.0);
    points.sort_by(|a, b| rate(a).total_cmp(&rate(b)));
    let (how, at) = select(&points, tuned.as_ref(), all);
    let intervention =
        all.members[points[0].runs[0]].run.field("intervention.name").unwrap_or_default();
    Method { name, intervention, points, tuned: how, tuned_point: at }
}

/// Selects the tuned point.
fn select(
    points: &[MethodPoint],
    tuned: Option<&BTreeMap<String, String>>,
    all: &Collection,
) -> (Tuned, Option<usize>) {
    if let Some(at) = tuned.and_then(|values| points.iter().position(|p| p.values == *values)) {
        return (Tuned::Study, Some(at));
    }
    if points.len() == 1 {
        return (Tuned::Only, Some(0));
    }
    let finals: Vec<usize> = (0..points.len()).filter(|&i| points[i].is_final).collect();
    if let [only] = finals[..] {
        return (Tuned::Study, Some(only));
    }
    let losses: Option<Vec<f64>> = points
        .iter()
        .map(|p| {
            let losses: Option<Vec<f64>> =
                p.runs.iter().map(|&r| all.members[r].run.last_validation_loss()).collect();
            losses.map(|l| l.iter().sum::<f64>() / l.len() as f64)
        })
        .collect();
    let best = losses
        .and_then(|losses| (0..losses.len()).min_by(|&a, &b| losses[a].total_cmp(&losses[b])));
    match best {
        Some(at) => (Tuned::Validation, Some(at)),
        None => (Tuned::Unselected, None),
    }
}

/// Returns the rows of the main table.
pub(super) fn rows(methods: &[Method], all: &Collection) -> Vec<Row> {
    let mut rows = Vec::new();
    for (at, method) in methods.iter().enumerate() {
        for (i, point) in method.points.iter().enumerate() {
            if method.tuned_point.is_some_and(|tuned| tuned != i) {
                continue;
            }
            let mut name = method.name.clone();
            if method.tuned_point.is_none() {
                name = format!("{name}, {}", described(&point.values));
            }
            let searched = all.members[point.runs[0]].place.is_some() && method.points.len() > 1;
            rows.push(Row {
                name,
                method: at,
                intervention: method.intervention.clone(),
                values: point.values.clone(),
                runs: point.runs.clone(),
                tuned: method.tuned,
                search_runs: searched && !point.is_final,
            });
        }
    }
    rows
}

/// Formats searched values, e.g. `train.lr=1e-4`.
pub(super) fn described(values: &BTreeMap<String, String>) -> String {
    values.iter().map(|(field, value)| format!("{field}={value}")).collect::<Vec<_>>().join(", ")
}
