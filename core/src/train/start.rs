//! The first place of a training run, where the loss of some methods is flat.

use tch::Kind;

use crate::api::{Init, Needs};
use crate::config::TrainConfig;
use crate::error::Result;
use crate::model::Adapted;

/// How far the adapter is moved off a flat start, in learning rates. A step of AdamW changes every number by about one
/// learning rate, whatever the adapter, so this is where some steps in random directions lead. In a model that computes
/// in bf16 the states must move by more than its rounding, about 1 in 250.
const STEPS: f64 = 5.0;

/// Moves `adapted` off its start if the method's loss is flat there: normal noise, drawn from the seed, on all that is
/// trained of it. The base model and the reference stay what they are. Gives the noise's standard deviation, or none if
/// nothing was moved.
///
/// # Errors
/// Fails if libtorch does.
pub fn leave_flat_start(needs: &Needs, adapted: &Adapted, train: &TrainConfig) -> Result<Option<f64>> {
    if !needs.flat_start {
        return Ok(None);
    }
    let _guard = tch::no_grad_guard();
    let std = STEPS * train.lr;
    for (name, mut tensor) in adapted.parameters() {
        let noise = Init::new(train.seed, "flat start", Kind::Double, tensor.device()).normal(&name, &tensor.size(), std);
        let _ = tensor.f_add_(&noise.f_detach()?.f_to_kind(tensor.kind())?)?;
    }
    Ok(Some(std))
}
