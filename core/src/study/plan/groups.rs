//! The groups of a study, from its file or from the flags of a grid.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Plan, SEED, origin};
use crate::config::{Assignment, Origin};
use crate::error::{Error, Result};
use crate::study::file::{Axis, Method, StudyFile};
use crate::study::sampler::Resource;
use crate::study::space::{Dimension, text};

/// Runs that only differ in their searched fields and their seed: a method, with one combination of
/// the values of the grid.
pub struct Group {
    /// The name, which is unique in the study and can be part of a folder's name.
    pub name: String,
    /// The values of the grid.
    pub labels: Vec<(String, Value)>,
    /// The searched fields; empty if the group is not searched.
    pub space: Vec<Dimension>,
    /// The seeds of the final runs; `None` for the seed of the experiment.
    pub seeds: Vec<Option<u64>>,
    pub(super) settings: Vec<Assignment>,
    /// The parts of the names of runs; `None` stands for the seed.
    pub(super) pattern: Vec<Option<String>>,
}

impl Plan {
    /// Plans the study of a file. `axes` are further fields of its grid, with their values as text.
    ///
    /// # Errors
    /// Fails if two groups have the same name, or if a field is in the grid and in the search.
    pub fn of_study(file: StudyFile, axes: &[(String, Vec<String>)]) -> Result<Self> {
        let mut seeds: Vec<Option<u64>> = match file.seeds.is_empty() {
            true => vec![None],
            false => file.seeds.iter().copied().map(Some).collect(),
        };
        let mut grid = file.grid.clone();
        for (field, values) in axes {
            if field == SEED {
                seeds = values.iter().map(|v| seed(v).map(Some)).collect::<Result<_>>()?;
                continue;
            }
            grid.retain(|axis| axis.field != *field);
            let values = values.iter().map(|value| Value::String(value.clone())).collect();
            grid.push(Axis { field: field.clone(), values });
        }
        if let Some(axis) = grid.iter().find(|axis| axis.field == SEED) {
            return Err(Error::new(format!("`{}` cannot be a field of `[grid]`", axis.field))
                .hint("write the seeds as `seeds = [1, 2, 3]`"));
        }
        let is_text = |field: &str| axes.iter().any(|(of_flag, _)| of_flag == field);
        let mut methods = file.methods.clone();
        if methods.is_empty() {
            let (settings, fields) = (Vec::new(), Vec::new());
            methods.push(Method { name: String::new(), settings, searched: true, fields });
        }
        let mut groups: Vec<Group> = Vec::new();
        for method in &methods {
            for labels in combinations(&grid) {
                let mut settings: Vec<Assignment> = labels
                    .iter()
                    .map(|(field, value)| match is_text(field) {
                        true => {
                            Assignment::text(field, &text(value), Origin::Flag("--over".into()))
                        }
                        false => Assignment::new(field, value.clone(), origin(&file, "grid")),
                    })
                    .collect();
                settings.extend(method.settings.clone());
                let parts: Vec<String> = [method.name.clone()]
                    .into_iter()
                    .chain(labels.iter().map(|(_, value)| slug(&text(value))))
                    .filter(|part| !part.is_empty())
                    .collect();
                let name = match parts.is_empty() {
                    true => slug(&file.name),
                    false => parts.join("-"),
                };
                let mut space = match (&file.search, method.searched) {
                    (Some(_), true) => file.fields.clone(),
                    _ => Vec::new(),
                };
                for own in method.fields.iter().filter(|_| method.searched) {
                    space.retain(|dimension| dimension.field != own.field);
                    space.push(own.clone());
                }
                let pattern = vec![Some(name.clone())];
                let seeds = seeds.clone();
                groups.push(Group { name, labels, space, seeds, settings, pattern });
            }
        }
        if file.search.is_some() && groups.iter().all(|group| group.space.is_empty()) {
            return Err(Error::new("the search has no fields to vary")
                .hint("write `\"train.lr\" = [1e-5, 1e-4]` in `[search.fields]`"));
        }
        let plan = Self {
            name: file.name.clone(),
            axes: grid.into_iter().map(|axis| axis.field).collect(),
            groups,
            search: file.search.clone(),
            all_points: file.all_points,
            base: file.base.clone(),
            file: Some(file),
        };
        plan.checked()
    }

    /// Plans a grid: every combination of the values, given as text. Its runs are in the folder of
    /// the study.
    ///
    /// # Errors
    /// Fails if a seed is not a whole number.
    pub fn of_grid(name: &str, axes: &[(String, Vec<String>)]) -> Result<Self> {
        let seeds = match axes.iter().find(|(field, _)| field == SEED) {
            Some((_, values)) => {
                values.iter().map(|v| seed(v).map(Some)).collect::<Result<Vec<_>>>()?
            }
            None => vec![None],
        };
        let grid: Vec<Axis> = axes
            .iter()
            .filter(|(field, _)| field != SEED)
            .map(|(field, values)| Axis {
                field: field.clone(),
                values: values.iter().map(|value| json!(value)).collect(),
            })
            .collect();
        let group = |labels: Vec<(String, Value)>| {
            let own = |field: &String| {
                labels.iter().find(|(f, _)| f == field).map(|(_, value)| slug(&text(value)))
            };
            let pattern: Vec<Option<String>> = axes.iter().map(|(f, _)| own(f)).collect();
            let parts: Vec<String> = pattern.iter().flatten().cloned().collect();
            let settings = labels
                .iter()
                .map(|(f, v)| Assignment::text(f, &text(v), Origin::Flag("--over".into())));
            Group {
                name: if parts.is_empty() { "run".to_owned() } else { parts.join("-") },
                settings: settings.collect(),
                labels,
                space: Vec::new(),
                seeds: seeds.clone(),
                pattern,
            }
        };
        let plan = Self {
            name: name.to_owned(),
            file: None,
            groups: combinations(&grid).into_iter().map(group).collect(),
            axes: axes.iter().map(|(field, _)| field.clone()).collect(),
            search: None,
            all_points: false,
            base: Vec::new(),
        };
        plan.checked()
    }

    fn checked(self) -> Result<Self> {
        let mut names = BTreeSet::new();
        if let Some(twice) = self.groups.iter().find(|group| !names.insert(&group.name)) {
            return Err(Error::new(format!(
                "two combinations of the study have the same name, `{}`",
                twice.name
            ))
            .hint("each combination must differ in letters or digits"));
        }
        let fixed = |group: &Group, field: &str| {
            group.settings.iter().any(|of_group| of_group.field() == field)
        };
        for group in &self.groups {
            let searched = group.space.iter().map(|dimension| dimension.field.as_str());
            for field in searched {
                if field == SEED {
                    return Err(Error::new(format!("`{SEED}` cannot be a searched field")));
                }
                if fixed(group, field) {
                    return Err(Error::new(format!(
                        "`{field}` is a searched field, but `{}` also sets it",
                        group.name
                    ))
                    .hint(
                        "remove one of the two; a method can have its own searched values in \
                        `[methods.NAME.search]`",
                    ));
                }
            }
            if self.halves(Resource::Pairs) && fixed(group, Resource::Pairs.field()) {
                return Err(Error::new("successive halving sets `train.max_pairs`")
                    .hint("set it in `[base]`"));
            }
        }
        Ok(self)
    }
}

fn seed(text: &str) -> Result<u64> {
    text.trim().parse().map_err(|_| {
        Error::new(format!("`{SEED}` must be a whole number, at least 0, got `{text}`"))
    })
}

/// Every combination of the values of a grid, the last axis varying fastest.
fn combinations(grid: &[Axis]) -> Vec<Vec<(String, Value)>> {
    grid.iter().fold(vec![Vec::new()], |all, axis| {
        all.into_iter()
            .flat_map(|head: Vec<(String, Value)>| {
                axis.values.iter().map(move |value| {
                    let mut labels = head.clone();
                    labels.push((axis.field.clone(), value.clone()));
                    labels
                })
            })
            .collect()
    })
}

/// Text that can be part of a folder's name.
pub(super) fn slug(text: &str) -> String {
    text.chars().map(|c| if c.is_alphanumeric() || "._+-".contains(c) { c } else { '_' }).collect()
}

/// A name of at most 120 characters. The end of a longer name is replaced by a digest.
pub(super) fn shortened(name: &str) -> String {
    const MOST: usize = 120;
    if name.chars().count() <= MOST {
        return name.to_owned();
    }
    let mut digest = crate::fingerprint::Parts::new("name of a run");
    digest.add(name.as_bytes());
    let start: String = name.chars().take(MOST - 9).collect();
    format!("{start}-{}", &digest.hex()[..8])
}
