//! The starting point of a training run, where the loss of some methods is flat.

use tch::Kind;

use crate::api::{Init, Needs};
use crate::config::TrainConfig;
use crate::error::Result;
use crate::model::Adapted;

/// Standard deviation of the noise that moves the adapter off a flat start, in learning rates. A
/// step of AdamW changes each parameter by about one learning rate, whatever the adapter, so a few
/// steps in random directions lead about as far. In a model that computes in bf16, the states must
/// move by more than the rounding, which is about 1 part in 250.
const STEPS: f64 = 5.0;

/// Adds normal noise, drawn from `train.seed`, to all trained parameters of `adapted` if the
/// method's loss is flat at its start. The base model and the reference do not change. Gives the
/// standard deviation of the noise, or `None` if nothing was moved.
///
/// # Errors
/// Fails if libtorch does.
pub fn leave_flat_start(
    needs: &Needs,
    adapted: &Adapted,
    train: &TrainConfig,
) -> Result<Option<f64>> {
    if !needs.flat_start {
        return Ok(None);
    }
    let _guard = tch::no_grad_guard();
    let std = STEPS * train.lr;
    for (name, mut tensor) in adapted.parameters() {
        let noise = Init::new(train.seed, "flat start", Kind::Double, tensor.device()).normal(
            &name,
            &tensor.size(),
            std,
        );
        let _ = tensor.f_add_(&noise.f_detach()?.f_to_kind(tensor.kind())?)?;
    }
    Ok(Some(std))
}
