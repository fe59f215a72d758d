//! The statistics of the training data that a method computes before its first step.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use tch::Device;

use super::assembled::Assembled;
use super::folder::Folder;
use super::plan::{Plan, fit_sites, intervention};
use crate::api::Statistics;
use crate::config::{Experiment, ReferenceModel};
use crate::error::{Context, Error, Result};
use crate::eval::Preferences;
use crate::reference::{BLOCK_TOKENS, ReferencePass, blocks};
use crate::registry::Registry;
use crate::report::Progress;
use crate::session::Session;
use crate::weights::{read_safetensors, write_safetensors};
use crate::world::checksum;

/// Name of the file in a run's folder that contains the statistics.
const FILE: &str = "statistics.safetensors";

/// Computes the statistics of the method from the states of the training pairs, and writes them to
/// the run's folder. A resumed run already has them. Then prepares the method and its edits.
/// Returns lines for the user.
///
/// # Errors
/// Fails if the method or libtorch returns an error, if another rank has other statistics, or if
/// the file cannot be written. Returns `Error::interrupted` if `stop` became true.
pub fn fit_statistics(
    plan: &mut Plan<'_>,
    run: &mut Assembled,
    folder: &Folder,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let statistics = match (&plan.fit_sites, plan.statistics.take()) {
        (None, _) => None,
        (Some(_), Some(statistics)) => Some(statistics),
        (Some(_), None) => {
            let begin = Instant::now();
            let statistics = compute(plan, run, stop, progress)
                .within(|| "cannot compute the statistics of the training data".to_owned())?;
            write(&statistics, folder.path())?;
            lines.push(format!(
                "statistics of the states of {} pairs computed in {:.1} s",
                plan.pairs.pairs.len(),
                begin.elapsed().as_secs_f64()
            ));
            Some(statistics)
        }
    };
    if let Some(statistics) = &statistics {
        let tensors = statistics.iter().map(|(_, tensor)| tensor.shallow_clone());
        plan.session.model.world().agree("the statistics of the method", checksum(tensors)?)?;
        plan.fingerprints.set_statistics(statistics)?;
    }
    run.install(statistics, &plan.session.model)?;
    lines.extend(run.adapted.edits().describe());
    Ok(lines)
}

/// Lets the method compute its statistics. The states are those of the reference, in the blocks
/// whose values are cached.
fn compute(
    plan: &Plan<'_>,
    run: &mut Assembled,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<Statistics> {
    let sites =
        plan.fit_sites.as_ref().ok_or_else(|| Error::internal("the method has no sites"))?;
    let all = plan.all_pairs();
    let trained: HashSet<usize> = plan.pairs.pairs.iter().map(|pair| pair.index).collect();
    let blocks: Vec<_> = blocks(&all, BLOCK_TOKENS)
        .filter(|block| block.iter().any(|pair| trained.contains(&pair.index)))
        .collect();
    let train = &plan.experiment.train;
    let from_start = train.reference == ReferenceModel::Start;
    let mut cache = plan.cache(plan.starts_from.as_ref().filter(|_| from_start));
    let pass = ReferencePass {
        model: &plan.session.model,
        adapted: run.initial.as_deref().filter(|_| from_start),
        cache: &mut cache,
    };
    let pairs: usize = blocks.iter().map(|block| block.len()).sum();
    progress.stage("statistics", Some(pairs as u64));
    let states = sites.gather(
        pass,
        &blocks,
        |pair| trained.contains(&pair.index),
        train.seed,
        stop,
        |pairs| progress.advance(pairs as u64, &[]),
    );
    progress.finish();
    run.objective.intervention().fit(&states?)
}

/// Writes the statistics to the run's folder.
fn write(statistics: &Statistics, folder: &Path) -> Result<()> {
    let tensors = statistics.iter().map(|(name, tensor)| {
        Ok((name.clone(), tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?))
    });
    write_safetensors(&folder.join(FILE), &tensors.collect::<Result<Vec<_>>>()?)
}

/// Reads the statistics from the folder of a run.
///
/// # Errors
/// Fails if the file is missing or damaged.
pub fn read(folder: &Path) -> Result<Statistics> {
    let path = folder.join(FILE);
    let tensors = read_safetensors(&path).map_err(|e| {
        e.hint("the run stores the statistics of its method there, so it must be repeated")
    })?;
    Ok(Statistics::new(tensors.into_iter().collect()))
}

/// Prepares the scores of the method of a finished run, for an evaluation. Returns `None` if pairs
/// are scored by log-probabilities, as for most methods.
///
/// # Errors
/// Fails if the method cannot be built, or if its statistics cannot be read.
pub fn preferences(
    experiment: &Experiment,
    folder: &Path,
    session: &Session,
    registry: &Registry,
) -> Result<Option<Preferences>> {
    let mut method = intervention(experiment, &session.model, registry)?;
    if !method.needs().preferences {
        return Ok(None);
    }
    method.set_statistics(&read(folder)?)?;
    let sites = fit_sites(experiment, method.as_ref(), session, registry)?;
    Ok(Some(Preferences::new(method, sites, experiment.train.seed)))
}
