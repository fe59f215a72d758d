//! Moves the adapter away from its initial values before training. Only used for methods whose loss
//! has zero gradient at these values.

use tch::Kind;

use crate::api::{Init, Needs};
use crate::config::TrainConfig;
use crate::error::Result;
use crate::model::Adapted;

/// Standard deviation of the noise, in units of the learning rate. AdamW changes each parameter by
/// about one learning rate per step, so the noise moves the adapter about as far as a few steps. A
/// bf16 model would round smaller noise away, because its precision is about 1 part in 250.
const STEPS: f64 = 5.0;

/// Adds normally distributed noise to all trainable parameters of `adapted`, if the method's loss
/// has zero gradient at their initial values. The random seed is `train.seed`. The base model and
/// the reference do not change. Returns the standard deviation of the noise, or `None` if no noise
/// was added.
///
/// # Errors
/// Fails if memory runs out.
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
