//! Invariants that apply only to interventions.

use tch::{Device, Kind, Tensor};

use super::training::STEP;
use super::{Bench, Case, Invariant, Verdict};
use crate::api::{Logprobs, Pairs, Sides, Site, TapStates, TokenLogprobs};
use crate::error::Result;

/// Invariants for interventions, in addition to [`TRAINING`](super::TRAINING).
pub const INTERVENTIONS: &[Invariant] =
    &[Invariant { name: "a batch that lacks the method's inputs is an error", check: bare }];

fn bare(case: &Case) -> Result<Verdict> {
    let mut bench = Bench::new(case, 0)?;
    match bench.objective.intervention().loss(&Pairs::new(1, Vec::new(), None, None), STEP) {
        Ok(_) => {
            return Ok(Verdict::Violated(
                "the method computed a loss from a batch without log-probabilities or states"
                    .to_owned(),
            ));
        }
        Err(e) if e.is_panic() => return Err(e),
        Err(_) => {}
    }
    // If only some inputs are missing, the method may return a loss or an error, but must not
    // panic.
    match bench.objective.intervention().loss(&partial(), STEP) {
        Err(e) if e.is_panic() => Err(e),
        _ => Ok(Verdict::Holds),
    }
}

/// A batch of one pair. It only has the log-probability of the chosen completion, and the policy's
/// pooled states.
fn partial() -> Pairs {
    let numbers = |shape: &[i64]| Tensor::ones(shape, (Kind::Double, Device::Cpu));
    let chosen = TokenLogprobs::new(
        -numbers(&[2]),
        numbers(&[2]).to_kind(Kind::Int64) - 1,
        numbers(&[1]) * 2.0,
    );
    let tap = TapStates::new(
        Site::Residual(1),
        Sides { chosen: numbers(&[1, 4]), rejected: -numbers(&[1, 4]) },
        None,
    );
    Pairs::new(1, vec![tap], Some(Logprobs::new(chosen, None)), None)
}
