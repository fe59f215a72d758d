//! The state of a run's folder: empty, interrupted or finished.
//!
//! The state is derived from the files in the folder. The same command line can therefore start or
//! continue a run, no matter when the previous process was killed.

use std::path::Path;

use serde_json::Value;

use super::checkpoint;
use super::marks::{is_temporary, lock, trained};
use super::validation;
use crate::config::{Experiment, changed_fields, flat, paths, shown};
use crate::error::{Context, Error, Result, quoted};
use crate::registry::Registry;

/// The progress of the run in a folder.
#[derive(Debug)]
pub enum Prior {
    /// The folder is missing or empty.
    None,
    /// The run was killed before its first checkpoint, and its folder contains nothing worth
    /// keeping.
    Begun,
    /// The run has a checkpoint. Contains the experiment that the run started with.
    Checkpoint(Box<Experiment>),
    /// The training is complete, but the result has not been evaluated.
    Trained(Box<Experiment>),
    /// The training and the evaluation are complete.
    Finished(Box<Experiment>),
}

/// Fields in which a command line may differ from the run that it continues.
const MAY_DIFFER: [&str; 10] = [
    "shard_base",
    "train.ranks",
    "train.tensorboard",
    "device",
    "out",
    "plugins",
    "train.checkpoint_every",
    "cache.reference",
    "cache.folder",
    "cache.max_gb",
];

impl Prior {
    /// Determines the progress of the run in `folder`. `asked` is the experiment on the command
    /// line.
    ///
    /// # Errors
    /// Fails if the folder contains something other than a run, if another process is writing to
    /// it, or if its run has a different configuration. The error names the fields that differ.
    pub fn find(folder: &Path, asked: &Experiment, registry: &Registry) -> Result<Self> {
        let names = names(folder)?;
        if names.is_empty() {
            return Ok(Self::None);
        }
        let config = folder.join("config.toml");
        if !config.is_file() {
            if let Some(foreign) = names.iter().find(|name| !is_temporary(name)) {
                return Err(Error::new(format!(
                    "`{}` is not the folder of a run: it contains `{foreign}`",
                    folder.display()
                ))
                .hint("choose a different `--out`"));
            }
            return Ok(Self::Begun);
        }
        let _lock = lock(folder)?;
        let mut recorded = Experiment::read(&config, registry)?;
        compare(folder, &recorded, asked, registry)?;
        // The command line determines the device, how often a checkpoint is written, and the cache.
        recorded.device.clone_from(&asked.device);
        recorded.train.checkpoint_every = asked.train.checkpoint_every;
        recorded.cache = asked.cache.clone();
        let recorded = Box::new(recorded);
        Ok(if trained(folder) {
            if !recorded.eval.enabled || folder.join("eval").join("summary.json").is_file() {
                Self::Finished(recorded)
            } else {
                Self::Trained(recorded)
            }
        } else if checkpoint::exists(folder) {
            Self::Checkpoint(recorded)
        } else {
            Self::Begun
        })
    }
}

/// True if another process is writing to the run in `folder`.
pub fn in_use(folder: &Path) -> bool {
    lock(folder).is_err()
}

/// Deletes the files of a run that was killed before its first checkpoint.
///
/// # Errors
/// Fails if another process is writing to the folder, if a file cannot be deleted, or if the
/// folder contains files that a run does not create.
pub fn clear(folder: &Path) -> Result<()> {
    let _lock = lock(folder)?;
    // Delete the configuration last. Until then, this file marks the folder as a run.
    let mut names = names(folder)?;
    names.sort_by_key(|name| name == "config.toml");
    let ours = |name: &str| {
        is_temporary(name)
            || [
                "config.toml",
                "metrics.jsonl",
                "environment.json",
                "tb",
                "log.txt",
                "checkpoints",
                "adapter",
                "transform",
                validation::FILE,
            ]
            .contains(&name)
    };
    if let Some(foreign) = names.iter().find(|name| !ours(name)) {
        return Err(Error::new(format!(
            "`{}` contains a run without a checkpoint, and `{foreign}`, which does not \
                belong to a run",
            folder.display()
        ))
        .hint("move this file elsewhere, or choose a different `--out`"));
    }
    for name in names {
        let path = folder.join(name);
        let removed = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.within(|| format!("cannot remove `{}`", path.display()))?;
    }
    Ok(())
}

/// Returns the names of the files and folders in `folder`. The list is empty if the folder is
/// missing.
fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.within(|| format!("cannot read the folder `{}`", folder.display()))?,
    };
    entries
        .map(|e| {
            Ok(e.within(|| format!("cannot read the folder `{}`", folder.display()))?
                .file_name()
                .to_string_lossy()
                .into_owned())
        })
        .collect()
}

/// Fails if the recorded experiment of a run differs from the experiment on the command line.
fn compare(
    folder: &Path,
    recorded: &Experiment,
    asked: &Experiment,
    registry: &Registry,
) -> Result<()> {
    let fields = |experiment: &Experiment| {
        flat(&paths::comparable(experiment, registry).to_json(), |path| !MAY_DIFFER.contains(&path))
    };
    let changed: Vec<_> = changed_fields(&fields(recorded), &fields(asked))
        .into_iter()
        .filter(|(path, then, now)| !same_source(path, then, now))
        .collect();
    if changed.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = changed.iter().map(|(path, ..)| format!("`{path}`")).collect();
    let details: Vec<String> = changed
        .iter()
        .map(|(path, then, now)| {
            format!("`{path}` is {} in the run and {} in this command", shown(then), shown(now))
        })
        .collect();
    Err(Error::new(format!(
        "the run in `{}` was started with a different configuration: {}",
        folder.display(),
        names.join(", ")
    ))
    .because(Error::new(details.join("; ")))
    .hint(format!(
        "to continue the run with its original configuration, use `reprpo run --resume {}`",
        quoted(folder)
    ))
    .hint("to start a new run with this configuration, choose a different `--out`"))
}

/// True if two values name the same repository. A run records the commit that it used, as
/// `org/name@commit`.
fn same_source(path: &str, then: &Value, now: &Value) -> bool {
    let (Some(then), Some(now)) = (then.as_str(), now.as_str()) else { return false };
    if path != "model" && !path.starts_with("dataset.") {
        return false;
    }
    let Some(at) = then.find('@') else { return false };
    let commit: String = then[at + 1..].chars().take_while(char::is_ascii_hexdigit).collect();
    let kept = format!("{}{}", &then[..at], &then[at + 1 + commit.len()..]);
    // The command names a branch, a tag or no revision. The run continues with the commit that it
    // recorded when it started.
    let (name, revision) = match now.split_once('@') {
        None => (now.to_owned(), ""),
        Some((name, rest)) => {
            let end = rest.find(':').unwrap_or(rest.len());
            (format!("{name}{}", &rest[end..]), &rest[..end])
        }
    };
    let is_commit = |text: &str| text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit());
    is_commit(&commit) && kept == name && !is_commit(revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_equals_itself_at_the_recorded_commit() {
        let commit = "93efa2f097d58c2a74874c7e644dbc9b0cee75a2";
        let same = |path: &str, then: &str, now: &str| same_source(path, &then.into(), &now.into());
        assert!(same("model", &format!("org/name@{commit}"), "org/name"));
        assert!(same("model", &format!("org/name/x.gguf@{commit}"), "org/name/x.gguf"));
        assert!(same("model", &format!("org/name@{commit}"), "org/name@main"));
        assert!(same("dataset.oos", &format!("org/name@{commit}:c:test"), "org/name:c:test"));
        assert!(!same("model", &format!("org/name@{commit}"), "org/other"));
        assert!(!same(
            "model",
            &format!("org/name@{commit}"),
            &format!("org/name@{}", commit.replace('9', "8"))
        ));
        assert!(!same("train.split", &format!("org/name@{commit}"), "org/name"));
        assert!(!same("model", "a@b", "a"));
    }
}
