//! Runs on several ranks. All ranks do the same, and rank 0 writes the run's folder. The other
//! ranks work in a temporary folder, so that no part of a run needs to know which rank it is on.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use super::fingerprints::Fingerprints;
use super::start::Start;
use crate::config::{Batch, Experiment, TrainConfig, flat};
use crate::error::{Context, Error, Result};
use crate::world::{World, differs};

/// Returns where this rank works. On all ranks but rank 0, this is a temporary folder, which also
/// has the checkpoint of a run that is resumed. It exists until the second value is dropped.
///
/// # Errors
/// Fails if the folder of a run to resume cannot be read, or if another rank has ended.
pub fn place(start: &Start, world: &World) -> Result<(Start, Option<TempDir>)> {
    let place = match world.is_first() {
        true => (start.clone(), None),
        false => {
            let temporary =
                tempfile::tempdir().within(|| "cannot create a temporary folder".to_owned())?;
            let own = temporary.path().join("run");
            let start = match start {
                Start::New(_) => Start::New(own),
                Start::Resume { folder, inexact } => {
                    bring(folder, &own, world.rank())?;
                    Start::Resume { folder: own, inexact: *inexact }
                }
            };
            (start, Some(temporary))
        }
    };
    // Rank 0 removes old files from the folder, so it waits for the other ranks.
    world.any(false)?;
    Ok(place)
}

/// Copies what a resumed run reads: the configuration, the metrics and the checkpoint.
fn bring(folder: &Path, own: &Path, rank: usize) -> Result<()> {
    copy(folder, own, &|name| ["config.toml", "metrics.jsonl", "checkpoints"].contains(&name))
        .map_err(|e| {
            Error::new(format!("rank {rank} cannot read the run in `{}`", folder.display()))
                .because(e)
                .hint(
                    "to resume a run on several machines, its folder must be on a file system \
                        that all of them share",
                )
        })
}

fn copy(from: &Path, to: &Path, wanted: &dyn Fn(&str) -> bool) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if !wanted(&name.to_string_lossy()) {
            continue;
        }
        let target = to.join(&name);
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &target, &|_| true)?,
            false => drop(fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}

/// Checks that the experiment can run on several ranks, and that it is the same on all ranks.
///
/// # Errors
/// Fails if it cannot, if the ranks differ, or if another rank has ended.
pub fn check(experiment: &Experiment, world: &World) -> Result<()> {
    if world.size() > 1 && experiment.train.batch == Batch::Auto {
        return Err(Error::new("`train.batch=auto` does not support several ranks")
            .hint("set `train.batch` to a number, the pairs in a micro-batch on each rank"));
    }
    agree_on(fields(experiment), world)
}

/// The fields that must be the same on all ranks, by name. Paths may differ between machines.
fn fields(experiment: &Experiment) -> BTreeMap<String, String> {
    const MAY_DIFFER: [&str; 8] =
        ["recipe", "plugins", "model", "device", "out", "init_adapter", "init_transform", "cache"];
    let all = flat(&experiment.to_json(), |path| {
        !MAY_DIFFER.iter().any(|f| path == *f || path.starts_with(&format!("{f}.")))
            && !path.starts_with("dataset.")
    });
    all.into_iter().map(|(field, value)| (format!("`{field}`"), value.to_string())).collect()
}

/// Describes the ranks and the size of a step; `None` for a single rank.
pub fn describe(train: &TrainConfig, world: &World) -> Option<String> {
    let ranks = world.size();
    (ranks > 1 || train.ranks > 1).then(|| {
        format!(
            "{ranks} rank{}; a step has {} pairs: {} × {} × {} (`train.batch` × \
                `train.accumulate` × `train.ranks`)",
            if ranks == 1 { "" } else { "s" },
            train.step_pairs(),
            train.batch.pairs(),
            train.accumulate,
            train.ranks
        )
    })
}

/// Checks that all ranks have the same inputs and the same version of this program.
///
/// # Errors
/// Fails if they differ. The error names the inputs and the ranks.
pub fn agree(fingerprints: &Fingerprints, world: &World) -> Result<()> {
    let mut own: BTreeMap<String, String> = BTreeMap::new();
    own.insert("the version of reprpo".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    own.insert("libtorch".to_owned(), crate::ffi::LIBTORCH_VERSION.to_owned());
    let value = serde_json::to_value(fingerprints).map_err(|e| Error::internal(e.to_string()))?;
    for (name, value) in value.as_object().into_iter().flatten() {
        match value {
            Value::Object(fields) if name == "configuration" => own.extend(
                fields.iter().map(|(field, value)| (format!("`{field}`"), value.to_string())),
            ),
            value => drop(own.insert(format!("the {}", name.replace('_', " ")), value.to_string())),
        }
    }
    agree_on(own, world)
}

/// Checks that the named values are the same on all ranks. Names of fields are in backticks.
fn agree_on(own: BTreeMap<String, String>, world: &World) -> Result<()> {
    if world.size() == 1 {
        return Ok(());
    }
    let all = world.gather(own)?;
    for (rank, other) in all.iter().enumerate().skip(1) {
        let names: Vec<&str> = all[0]
            .keys()
            .chain(other.keys().filter(|name| !all[0].contains_key(*name)))
            .filter(|name| all[0].get(*name) != other.get(*name))
            .map(String::as_str)
            .collect();
        if names.is_empty() {
            continue;
        }
        let mut e = differs(rank, &names.join(", "));
        for name in names.iter().filter(|name| name.starts_with('`')) {
            let value = |of: &BTreeMap<String, String>| of.get(*name).cloned().unwrap_or_default();
            e = e.hint(format!(
                "{name} is {} on rank 0 and {} on rank {rank}",
                value(&all[0]),
                value(other)
            ));
        }
        return Err(e);
    }
    Ok(())
}
