//! Checkpoints, from which a run can be resumed. A checkpoint contains the parameters, the
//! optimiser state, and the step.
//!
//! Everything else that a step depends on, such as the order of the pairs and dropout, is derived
//! from the seed and the step. The values of the reference are computed again, in the same blocks
//! and thus with the same bytes. Checkpoints of earlier versions contain them in
//! `reference.safetensors`, which is ignored.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use tch::{Device, Tensor};

use super::assembled::Assembled;
use super::best::Best;
use super::fingerprints::Fingerprints;
use super::marks;
use crate::error::{Context, Error, Result, quoted};
use crate::files::write_whole;
use crate::weights::{read_safetensors, write_safetensors};

const FINGERPRINTS: &str = "fingerprints.json";
const BEST: &str = "best.json";
const PARAMETERS: &str = "parameters.safetensors";

fn dir(run: &Path) -> PathBuf {
    run.join("checkpoints")
}

/// Folder for the parameters after step `step`, the step with the best validation so far.
fn dir_of_best(run: &Path, step: usize) -> PathBuf {
    dir(run).join(format!("best-{step}"))
}

/// Copies tensors to the CPU.
fn host(tensors: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>> {
    tensors
        .iter()
        .map(|(n, t)| Ok((n.clone(), t.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?)))
        .collect()
}

/// Writes a checkpoint into the run's folder after `step` finished steps, and removes the previous
/// checkpoint. `best` is the best validation so far, if the run has a validation.
///
/// # Errors
/// Fails if a file cannot be written.
pub fn save(
    folder: &Path,
    step: usize,
    run: &mut Assembled,
    fingerprints: &Fingerprints,
    best: Option<&Best>,
) -> Result<()> {
    let here = dir(folder).join(format!("step-{step}"));
    std::fs::create_dir_all(&here)
        .within(|| format!("cannot create the folder `{}`", here.display()))?;
    write_safetensors(&here.join(PARAMETERS), &host(&run.parameters())?)?;
    write_safetensors(&here.join("optimiser.safetensors"), &host(&run.optimiser.state())?)?;
    fingerprints.write(&here.join(FINGERPRINTS))?;
    if let Some(best) = best {
        let text = serde_json::to_string(best).map_err(|e| Error::internal(e.to_string()))?;
        write_whole(&here.join(BEST), text.as_bytes())?;
    }
    let latest = dir(folder).join("latest");
    let before = std::fs::read_to_string(&latest).ok();
    write_whole(&latest, format!("{step}\n").as_bytes())?;
    if let Some(old) =
        before.map(|b| b.trim().to_owned()).filter(|b| *b != step.to_string() && !b.is_empty())
    {
        // An old checkpoint that cannot be removed only costs disk space.
        let _ = std::fs::remove_dir_all(dir(folder).join(format!("step-{old}")));
    }
    keep_only_best(folder, best);
    Ok(())
}

/// Reads the best validation so far from the checkpoint of `step`. Returns `None` if the run that
/// wrote the checkpoint had no validation.
///
/// # Errors
/// Fails if the file cannot be read, or if its content is not valid.
pub fn best(run: &Path, step: usize) -> Result<Option<Best>> {
    let path = dir(run).join(format!("step-{step}")).join(BEST);
    if !path.exists() {
        return Ok(None);
    }
    let text =
        std::fs::read_to_string(&path).within(|| format!("cannot read `{}`", path.display()))?;
    serde_json::from_str(&text).map(Some).map_err(|e| {
        Error::new(format!("`{}` is not a valid checkpoint file", path.display())).because(e)
    })
}

/// Saves all trained parameters after `step` finished steps. Called when the validation after this
/// step is the best so far.
///
/// # Errors
/// Fails if a file cannot be written.
pub fn save_best(folder: &Path, step: usize, run: &Assembled) -> Result<()> {
    let here = dir_of_best(folder, step);
    std::fs::create_dir_all(&here)
        .within(|| format!("cannot create the folder `{}`", here.display()))?;
    write_safetensors(&here.join(PARAMETERS), &host(&run.parameters())?)
}

/// Restores the parameters that [`save_best`] saved after `step` steps.
///
/// # Errors
/// Fails if the file is missing or damaged.
pub fn restore_best(folder: &Path, step: usize, run: &Assembled) -> Result<()> {
    copy_into_parameters(read_safetensors(&dir_of_best(folder, step).join(PARAMETERS))?, run)
}

/// Removes the parameters that [`save_best`] saved after `step` steps. Called when a later
/// validation is better.
pub fn discard_best(folder: &Path, step: usize) {
    // A file that cannot be removed only costs disk space.
    let _ = std::fs::remove_dir_all(dir_of_best(folder, step));
}

/// Removes everything that [`save_best`] saved, except the parameters of `best`.
fn keep_only_best(folder: &Path, best: Option<&Best>) {
    let kept = best.and_then(Best::step).map(|step| format!("best-{step}"));
    remove(&dir(folder), &|name| name.starts_with("best-") && Some(name) != kept.as_deref());
}

/// True if the run has a checkpoint.
pub fn exists(run: &Path) -> bool {
    dir(run).join("latest").is_file()
}

/// Returns the number of steps that were finished when the run's checkpoint was written.
///
/// # Errors
/// Fails if there is no checkpoint, or if the training is complete.
pub fn latest(run: &Path) -> Result<usize> {
    let path = dir(run).join("latest");
    if marks::trained(run) {
        return Err(Error::new(format!(
            "the run in `{}` has already finished training",
            run.display()
        ))
        .hint(format!(
            "evaluate it again with `reprpo eval {}`, or train its adapter further with \
                `reprpo run --init-adapter {}`",
            quoted(run),
            quoted(run.join("adapter"))
        )));
    }
    let text = std::fs::read_to_string(&path).map_err(|e| {
        Error::new(format!("the run in `{}` has no checkpoint to resume", run.display()))
            .because(e)
            .hint("set `train.checkpoint_every`, and start the run again")
    })?;
    text.trim()
        .parse()
        .map_err(|_| Error::new(format!("`{}` does not contain a step number", path.display())))
}

/// Compares the fingerprints in the checkpoint of `step` with `now`, the fingerprints of the
/// resumed run. Returns the names of the inputs that differ. Differences are only allowed if
/// `inexact` is true.
///
/// # Errors
/// Fails if a file cannot be read. Unless `inexact` is true, also fails if an input differs or if
/// the checkpoint has no fingerprints.
pub fn check(run: &Path, step: usize, now: &Fingerprints, inexact: bool) -> Result<Vec<String>> {
    let given_up = |e: Error| {
        e.hint(
            "use `--inexact-resume` to resume anyway; the result can then differ from that of an \
            uninterrupted run",
        )
    };
    let Some(then) = Fingerprints::read(&dir(run).join(format!("step-{step}")).join(FINGERPRINTS))?
    else {
        if inexact {
            return Ok(vec!["unknown inputs (the checkpoint has no fingerprints)".to_owned()]);
        }
        return Err(given_up(
            Error::new(format!(
                "cannot check whether the run in `{}` still has the same inputs: its \
                checkpoint has no fingerprints",
                run.display()
            ))
            .because(Error::new("the checkpoint was written by an earlier version of reprpo")),
        ));
    };
    let (names, details): (Vec<String>, Vec<String>) = then.differences(now).into_iter().unzip();
    if names.is_empty() || inexact {
        return Ok(names);
    }
    let have = if names.len() == 1 { "has" } else { "have" };
    let e = Error::new(format!(
        "cannot resume the run in `{}`: {} {have} changed since its checkpoint was written",
        run.display(),
        names.join(", ")
    ))
    .because(Error::new(details.join("; ")));
    Err(given_up(e.hint("restore the original inputs, or start a new run")))
}

/// Restores the checkpoint of `step`.
///
/// # Errors
/// Fails if a file is damaged, or if it does not contain the parameters that this run trains.
pub fn restore(folder: &Path, step: usize, run: &mut Assembled) -> Result<()> {
    let here = dir(folder).join(format!("step-{step}"));
    run.optimiser.restore(read_safetensors(&here.join("optimiser.safetensors"))?)?;
    copy_into_parameters(read_safetensors(&here.join(PARAMETERS))?, run)
}

fn copy_into_parameters(mut values: IndexMap<String, Tensor>, run: &Assembled) -> Result<()> {
    let _guard = tch::no_grad_guard();
    for (name, tensor) in &run.parameters() {
        let value = values.swap_remove(name).ok_or_else(|| {
            Error::new(format!("the checkpoint does not contain the parameter `{name}`"))
        })?;
        if tensor.size() != value.size() {
            return Err(Error::new(format!(
                "`{name}` has shape {:?} in the checkpoint, but {:?} in this run",
                value.size(),
                tensor.size()
            )));
        }
        tensor.shallow_clone().f_copy_(&value)?;
    }
    if let Some(name) = values.keys().next() {
        return Err(Error::new(format!(
            "the checkpoint contains the parameter `{name}`, which this run does not train"
        )));
    }
    Ok(())
}

/// Removes all files and folders in `folder` whose name satisfies `stale`.
fn remove(folder: &Path, stale: &dyn Fn(&str) -> bool) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if stale(&entry.file_name().to_string_lossy()) {
            // A file that cannot be removed only costs disk space.
            let _ = if entry.path().is_dir() {
                std::fs::remove_dir_all(entry.path())
            } else {
                std::fs::remove_file(entry.path())
            };
        }
    }
}

/// Removes files that are newer than the checkpoint of `step`, and temporary files of a process
/// that was killed.
///
/// # Errors
/// Fails if the checkpoint is damaged.
pub fn tidy(run: &Path, step: usize) -> Result<()> {
    keep_only_best(run, best(run, step)?.as_ref());
    let latest = format!("step-{step}");
    remove(&dir(run), &|name| {
        marks::is_temporary(name) || (name.starts_with("step-") && name != latest)
    });
    remove(&dir(run).join(&latest), &marks::is_temporary);
    remove(run, &marks::is_temporary);
    Ok(())
}

/// Removes all checkpoints of a finished run.
pub fn discard(run: &Path) {
    // Remove `latest` first. If the process is killed halfway through, the run then has no
    // checkpoint rather than an incomplete one.
    let _ = std::fs::remove_file(dir(run).join("latest"));
    let _ = std::fs::remove_dir_all(dir(run));
}
