//! The folder of a run. It is created after all inputs have been checked, and is removed if the run
//! fails before its first checkpoint.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::record::{JsonLines, LogFile};
use super::{checkpoint, marks};
use crate::error::{Context, Error, Result, quoted};
use crate::files::write_whole;

/// The folder of a run in progress.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    keep: bool,
}

/// The recorders that write the files in the folder.
pub struct Files {
    /// The recorder of `log.txt`, which also locks the folder for this process.
    pub log: LogFile,
    /// The recorder of `metrics.jsonl` and `eval/`.
    pub jsonl: JsonLines,
}

impl Folder {
    /// Creates the folder and writes the run's configuration to it. The folder may already exist if
    /// it is empty. `config` receives the path of the folder, because the configuration can contain
    /// relative paths.
    ///
    /// # Errors
    /// Fails if the folder exists and is not empty, or if it cannot be created.
    pub fn create(path: &Path, config: impl FnOnce(&Path) -> String) -> Result<(Self, Files)> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)
                .within(|| format!("cannot create the folder `{}`", parent.display()))?;
        }
        std::fs::create_dir(path)
            .or_else(|e| if is_empty(path) { Ok(()) } else { Err(e) })
            .map_err(|e| {
                let e2 = Error::new(format!("cannot create the folder `{}`", path.display()));
                if e.kind() == std::io::ErrorKind::AlreadyExists {
                    e2.because(e).hint("choose a different `--out`, or remove the folder")
                } else {
                    e2.because(e)
                }
            })?;
        write_whole(&path.join("config.toml"), config(path).as_bytes())?;
        Self::open(path, locked(path, None)?, false)
    }

    /// Opens the folder of an interrupted run. If the caller has already locked the run's log,
    /// `lock` is the log file. Metrics after `step` are removed, because the resumed run writes
    /// them again.
    ///
    /// # Errors
    /// Fails if a file cannot be read or written.
    pub fn resume(path: &Path, step: usize, lock: Option<File>) -> Result<(Self, Files)> {
        let log = locked(path, lock)?;
        checkpoint::tidy(path, step)?;
        let metrics = path.join("metrics.jsonl");
        let text = std::fs::read_to_string(&metrics)
            .within(|| format!("cannot read `{}`", metrics.display()))?;
        // If the process ended between the checkpoint and the validation of the same step, the
        // resumed run repeats that validation.
        let validated = checkpoint::best(path, step)?.map_or(step, |best| best.validated);
        let kept: String = text
            .lines()
            .take_while(|line| is_up_to(line, step, validated))
            .flat_map(|l| [l, "\n"])
            .collect();
        write_whole(&metrics, kept.as_bytes())?;
        Self::open(path, log, true)
    }

    /// Overwrites the configuration in the folder. This is needed if the run is resumed with
    /// different inputs.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn rewrite(&self, config: &str) -> Result<()> {
        write_whole(&self.path.join("config.toml"), config.as_bytes())
    }

    fn open(path: &Path, log: File, keep: bool) -> Result<(Self, Files)> {
        let jsonl = JsonLines::new(append(path, "metrics.jsonl")?, path.join("eval"));
        Ok((Self { path: path.to_owned(), keep }, Files { log: LogFile::new(log), jsonl }))
    }

    /// Path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the hint for an error that ends the run. If there is a checkpoint, the hint says how
    /// to resume.
    pub fn remains(&self) -> String {
        let path = self.path.display();
        match self.path.join("checkpoints").is_dir() && self.keep {
            true => format!(
                "the last checkpoint is in `{path}`; resume it with `reprpo run --resume {}`, and \
                    add `--inexact-resume` if you change `config.toml`",
                quoted(&self.path)
            ),
            false => "the run's folder was removed because there was no checkpoint yet; set \
                `train.checkpoint_every` to write checkpoints"
                .to_owned(),
        }
    }

    /// Keeps the folder even if the run fails later.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

/// True if a resumed run keeps this line of `metrics.jsonl`. The line must be complete. It must
/// describe a training step up to `step`, or a validation up to step `validated`.
fn is_up_to(line: &str, step: usize, validated: usize) -> bool {
    let Ok(line) = serde_json::from_str::<Value>(line) else { return false };
    let last = if line.get("loss").is_some() { step } else { validated };
    line.get("step").and_then(Value::as_u64).is_some_and(|of| of <= last as u64)
}

/// True if `path` is an empty folder.
pub(super) fn is_empty(path: &Path) -> bool {
    path.read_dir().is_ok_and(|mut entries| entries.next().is_none())
}

/// Returns `lock` if it is given. Otherwise, opens and locks the log of the folder.
fn locked(path: &Path, lock: Option<File>) -> Result<File> {
    if let Some(log) = lock {
        return Ok(log);
    }
    let log = append(path, "log.txt")?;
    marks::lock_file(&log, path)?;
    Ok(log)
}

fn append(folder: &Path, name: &str) -> Result<File> {
    let path = folder.join(name);
    File::options()
        .create(true)
        .append(true)
        .open(&path)
        .within(|| format!("cannot write `{}`", path.display()))
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep {
            // An error here is ignored, because the error that ended the run is already being
            // returned.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_run_keeps_the_metrics_up_to_its_checkpoint() {
        let (step, validation) = (r#"{"step":4,"loss":0.5}"#, r#"{"step":4,"eval_loss":0.5}"#);
        assert!(is_up_to(step, 4, 4) && !is_up_to(step, 3, 3));
        assert!(is_up_to(validation, 4, 4));
        // The checkpoint was written before the validation of the same step, so the resumed run
        // repeats that validation.
        assert!(!is_up_to(validation, 4, 2));
        assert!(!is_up_to(&step[..9], 4, 4), "an incomplete line");
    }
}
