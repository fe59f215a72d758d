//! A run's folder. It is created after all inputs have been checked, and removed if the run fails
//! before its first checkpoint.

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

/// The recorders of the files in the folder.
pub struct Files {
    /// The recorder of `log.txt`, whose lock keeps other processes out of the folder.
    pub log: LogFile,
    /// The recorder of `metrics.jsonl` and `eval/`.
    pub jsonl: JsonLines,
}

impl Folder {
    /// Creates the folder and writes the run's configuration, which can depend on the folder's
    /// path. The folder may exist if it is empty.
    ///
    /// # Errors
    /// Fails if it exists and is not empty, or if it cannot be made.
    pub fn create(path: &Path, config: impl FnOnce(&Path) -> String) -> Result<(Self, Files)> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)
                .within(|| format!("cannot make the folder `{}`", parent.display()))?;
        }
        std::fs::create_dir(path)
            .or_else(|e| if is_empty(path) { Ok(()) } else { Err(e) })
            .map_err(|e| {
                let e2 = Error::new(format!("cannot make the folder `{}`", path.display()));
                if e.kind() == std::io::ErrorKind::AlreadyExists {
                    e2.because(e).hint("give another `--out`, or remove it")
                } else {
                    e2.because(e)
                }
            })?;
        write_whole(&path.join("config.toml"), config(path).as_bytes())?;
        Self::open(path, locked(path, None)?, false)
    }

    /// Continues in the folder of an interrupted run. `lock` is the run's log if it is already
    /// locked. Metrics past `step` were not part of the checkpoint, and are removed.
    ///
    /// # Errors
    /// Fails if a file cannot be read or written.
    pub fn resume(path: &Path, step: usize, lock: Option<File>) -> Result<(Self, Files)> {
        let log = locked(path, lock)?;
        checkpoint::tidy(path, step)?;
        let metrics = path.join("metrics.jsonl");
        let text = std::fs::read_to_string(&metrics)
            .within(|| format!("cannot read `{}`", metrics.display()))?;
        // A validation may have been made again after the checkpoint of its step.
        let validated = checkpoint::best(path, step)?.map_or(step, |best| best.validated);
        let kept: String = text
            .lines()
            .take_while(|line| is_up_to(line, step, validated))
            .flat_map(|l| [l, "\n"])
            .collect();
        write_whole(&metrics, kept.as_bytes())?;
        Self::open(path, log, true)
    }

    /// Replaces the configuration of a run that continues with a different one.
    ///
    /// # Errors
    /// Fails if it cannot be written.
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

    /// A hint for an error that ends the run: the checkpoint that is left, if any.
    pub fn remains(&self) -> String {
        let path = self.path.display();
        match self.path.join("checkpoints").is_dir() && self.keep {
            true => format!(
                "`{path}` keeps the last checkpoint: `reprpo run --resume {}` resumes it; with a \
                    changed `config.toml`, add `--inexact-resume`",
                quoted(&self.path)
            ),
            false => "no folder of the run is left: there was no checkpoint yet, which \
                `train.checkpoint_every` makes"
                .to_owned(),
        }
    }

    /// Keeps the folder even if the run fails later.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

/// True for a complete line of `metrics.jsonl` about one of the first `step` steps, or about a
/// validation after one of the first `validated` steps.
fn is_up_to(line: &str, step: usize, validated: usize) -> bool {
    let Ok(line) = serde_json::from_str::<Value>(line) else { return false };
    let last = if line.get("loss").is_some() { step } else { validated };
    line.get("step").and_then(Value::as_u64).is_some_and(|of| of <= last as u64)
}

/// True if there is a folder at `path` and nothing in it.
pub(super) fn is_empty(path: &Path) -> bool {
    path.read_dir().is_ok_and(|mut entries| entries.next().is_none())
}

/// Opens and locks the log of the folder, unless `lock` is the locked log.
fn locked(path: &Path, lock: Option<File>) -> Result<File> {
    if let Some(log) = lock {
        return Ok(log);
    }
    let log = append(path, "log.txt")?;
    marks::lock_file(&log, path)?;
    Ok(log)
}

/// Opens a file of the folder to append lines to it.
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
            // Another error is already being returned, and is more helpful.
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
        // The checkpoint was written before the validation of its step.
        assert!(!is_up_to(validation, 4, 2));
        assert!(!is_up_to(&step[..9], 4, 4), "an incomplete line");
    }
}
