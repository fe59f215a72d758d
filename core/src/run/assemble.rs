//! The second phase of a run: builds the adapter, the objective and the optimiser.

use super::assembled::{Assembled, Parts};
use super::checkpoint;
use super::plan::Plan;
use crate::config::ReferenceModel;
use crate::error::{Context, Result};

/// Assembles the planned run. A resumed run is restored from its checkpoint.
///
/// # Errors
/// Fails if the checkpoint cannot be restored, and in the same cases as [`Assembled::new`].
pub fn assemble(plan: &mut Plan<'_>) -> Result<Assembled> {
    let (intervention, taps) = plan.take_method()?;
    let (train, model) = (&plan.experiment.train, &plan.session.model);
    let starts_from = plan.starts_from.as_ref();
    let parts = Parts {
        intervention,
        taps,
        adapter: &plan.adapter,
        cache: plan.cache(starts_from.filter(|_| train.reference == ReferenceModel::Start)),
        leaves_flat_start: plan.checkpoint.is_none(),
    };
    let mut run = Assembled::new(model, parts, train)?;
    if let Some(resumed) = &plan.checkpoint {
        checkpoint::restore(&plan.folder, resumed.step, &mut run)
            .within(|| format!("cannot resume the run in `{}`", plan.folder.display()))?;
    }
    Ok(run)
}
