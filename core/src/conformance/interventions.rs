//! What an intervention promises besides.

use tch::{Device, Kind, Tensor};

use super::training::STEP;
use super::{Bench, Case, Invariant, Verdict};
use crate::api::{Logprobs, Pairs, Sides, Site, TapStates, TokenLogprobs};
use crate::error::Result;

/// What every intervention is held to, whatever it trains.
pub const INTERVENTIONS: &[Invariant] =
    &[Invariant { name: "a batch without what it asked for is an error", check: bare }];

fn bare(case: &Case) -> Result<Verdict> {
    let mut bench = Bench::new(case, 0)?;
    match bench.objective.intervention().loss(&Pairs::new(1, Vec::new(), None, None), STEP) {
        Ok(_) => {
            return Ok(Verdict::Violated(
                "it made a loss of a batch that holds nothing".to_owned(),
            ));
        }
        Err(e) if e.is_panic() => return Err(e),
        Err(_) => {}
    }
    // It may do without the rest at this step, but not panic.
    match bench.objective.intervention().loss(&partial(), STEP) {
        Err(e) if e.is_panic() => Err(e),
        _ => Ok(Verdict::Holds),
    }
}

/// One pair with the least that a method can ask for: the chosen completion's log-probability, and
/// pooled states of the policy alone.
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
