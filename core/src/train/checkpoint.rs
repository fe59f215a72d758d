//! A point from which a run can go on: parameters, optimiser state, what is kept of the reference, and the step.
//!
//! What else a step depends on (order of the pairs, dropout) is a function of the seed and the step.

use std::path::{Path, PathBuf};

use tch::{Device, Tensor};

use super::optimiser::AdamW;
use super::reference::Reference;
use crate::error::{Context, Error, Result, quoted};
use crate::files::write_whole;
use crate::weights::{read_safetensors, write_safetensors};

fn dir(run: &Path) -> PathBuf {
    run.join("checkpoints")
}

/// Writes the checkpoint of `step` finished steps into the run's folder, and removes the one before.
///
/// # Errors
/// Where a file cannot be written.
pub fn save(run: &Path, step: usize, parameters: &[(String, Tensor)], optimiser: &AdamW, reference: &Reference) -> Result<()> {
    let here = dir(run).join(format!("step-{step}"));
    std::fs::create_dir_all(&here).within(|| format!("cannot make the folder `{}`", here.display()))?;
    let host = |tensors: &[(String, Tensor)]| -> Result<Vec<(String, Tensor)>> {
        tensors.iter().map(|(n, t)| Ok((n.clone(), t.f_detach()?.f_to_device(tch::Device::Cpu)?.f_contiguous()?))).collect()
    };
    write_safetensors(&here.join("parameters.safetensors"), &host(parameters)?)?;
    write_safetensors(&here.join("optimiser.safetensors"), &host(&optimiser.state())?)?;
    write_safetensors(&here.join("reference.safetensors"), &host(&reference.state())?)?;
    let latest = dir(run).join("latest");
    let before = std::fs::read_to_string(&latest).ok();
    write_whole(&latest, format!("{step}\n").as_bytes())?;
    if let Some(old) = before.map(|b| b.trim().to_owned()).filter(|b| *b != step.to_string() && !b.is_empty()) {
        // A stale checkpoint costs disk and nothing else.
        let _ = std::fs::remove_dir_all(dir(run).join(format!("step-{old}")));
    }
    Ok(())
}

/// How many steps the run's checkpoint has finished.
///
/// # Errors
/// Where there is none.
pub fn latest(run: &Path) -> Result<usize> {
    let path = dir(run).join("latest");
    if !path.exists() && run.join("adapter").is_dir() {
        return Err(Error::new(format!("the run in `{}` has ended: there is nothing left to train", run.display())).hint(format!(
            "`reprpo eval {}` judges it again, `reprpo run --init-adapter {}` trains its adapter further",
            quoted(run),
            quoted(run.join("adapter"))
        )));
    }
    let text = std::fs::read_to_string(&path).map_err(|e| {
        Error::new(format!("the run in `{}` has no checkpoint to go on from", run.display())).because(e).hint("set `train.checkpoint_every`, and start again")
    })?;
    text.trim().parse().map_err(|_| Error::new(format!("`{}` does not hold a step", path.display())))
}

/// Goes back to the checkpoint of `step`.
///
/// # Errors
/// A damaged file, or one of other parameters.
pub fn restore(run: &Path, step: usize, parameters: &[(String, Tensor)], optimiser: &mut AdamW, reference: &mut Reference, device: Device) -> Result<()> {
    let here = dir(run).join(format!("step-{step}"));
    let mut values = read_safetensors(&here.join("parameters.safetensors"))?;
    optimiser.restore(read_safetensors(&here.join("optimiser.safetensors"))?)?;
    reference.restore(read_safetensors(&here.join("reference.safetensors"))?, device)?;
    let _guard = tch::no_grad_guard();
    for (name, tensor) in parameters {
        let value = values.swap_remove(name).ok_or_else(|| Error::new(format!("the checkpoint has no `{name}`")))?;
        tensor.shallow_clone().f_copy_(&value)?;
    }
    Ok(())
}

/// The run has ended: its checkpoints are of no more use.
pub fn discard(run: &Path) {
    let _ = std::fs::remove_dir_all(dir(run));
}
