//! Computes the values of the reference before the first step.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::assembled::Assembled;
use super::plan::Plan;
use crate::error::{Context, Result};
use crate::reference::{BLOCK_TOKENS, Usage, blocks};
use crate::report::Progress;
use crate::text::TokenPair;
use crate::train::Steps;

/// The progress is shown if the values are not complete after this time.
const SHOWN_AFTER: Duration = Duration::from_secs(1);

/// Computes the values of the reference for all pairs that the remaining steps and the validations
/// use, or reads them from the cache. The blocks do not depend on the seed, on the batches or on
/// the step, so a resumed run has the same values. Returns a line for the user, or `None` if the
/// method needs no such values.
///
/// If `stop` becomes true, returns early. Training then stops before its first step.
///
/// # Errors
/// Fails if memory runs out.
pub fn prepare(
    plan: &Plan<'_>,
    run: &mut Assembled,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<Option<String>> {
    if run.objective.reference_quantities().is_empty() {
        return Ok(None);
    }
    let begin = Instant::now();
    let all = plan.all_pairs();
    let steps = Steps::new(&plan.pairs.pairs, &plan.experiment.train);
    let mut is_needed = steps.used_from(plan.first_step(), &plan.pairs.pairs);
    is_needed.extend(plan.held_out.iter().map(|pair| pair.index));
    let needed: Vec<&[&TokenPair]> = blocks(&all, BLOCK_TOKENS)
        .filter(|block| block.iter().any(|pair| is_needed.contains(&pair.index)))
        .collect();
    let total: usize = needed.iter().map(|block| block.len()).sum();
    let (mut done, mut is_shown) = (0, false);
    let world = plan.session.model.world();
    for round in needed.chunks(world.size()) {
        if world.any(stop.load(Ordering::Relaxed))? {
            break;
        }
        if !is_shown && begin.elapsed() > SHOWN_AFTER {
            progress.stage("reference", Some(total as u64));
            progress.advance(done as u64, &[]);
            is_shown = true;
        }
        run.objective
            .prepare(&plan.session.model, round)
            .within(|| "cannot compute the values of the reference".to_owned())?;
        let pairs: usize = round.iter().map(|block| block.len()).sum();
        done += pairs;
        if is_shown {
            progress.advance(pairs as u64, &[]);
        }
    }
    if is_shown {
        progress.finish();
    }
    let own = run.objective.reference().usage();
    let mut usage = Usage::default();
    for [computed, memory, disk] in world.gather([own.computed, own.from_memory, own.from_disk])? {
        usage.computed += computed;
        usage.from_memory += memory;
        usage.from_disk += disk;
    }
    let found = match (usage.from_disk, usage.from_memory) {
        (0, 0) => String::new(),
        (0, n) => format!(", {n} were in memory"),
        (n, 0) => format!(", {n} were on disk"),
        (n, m) => format!(", {n} were on disk, {m} in memory"),
    };
    Ok(Some(format!(
        "values of the reference: {} pairs computed{found}, in {:.1} s",
        usage.computed,
        begin.elapsed().as_secs_f64()
    )))
}
