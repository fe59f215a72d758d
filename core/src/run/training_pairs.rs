//! The pairs that a run trains on, and those that it holds out for validation.

use super::held_out;
use super::plan::intervention;
use crate::config::Experiment;
use crate::error::Result;
use crate::eval::TrainingPairs;
use crate::registry::Registry;
use crate::session::Session;
use crate::text::{TokenPair, Tokenised};

/// Reads the pairs to train on and the held-out pairs. A method that is only evaluated
/// (`evaluate_only`) is not trained, so it has no held-out pairs.
///
/// # Errors
/// Fails in the same cases as [`Session::tokenise`], or if the requested number of pairs cannot be
/// held out.
pub fn read(
    session: &Session,
    experiment: &Experiment,
    evaluate_only: bool,
) -> Result<(Tokenised, Vec<TokenPair>)> {
    let train = &experiment.train;
    if train.validate_every.is_some() && !evaluate_only {
        held_out::read(session, train)
    } else {
        Ok((session.tokenise(&train.split, train, train.max_pairs)?, Vec::new()))
    }
}

/// Reads the pairs that a run of `experiment` trained on, to compare other pairs with them. The
/// session's data set must be the one that the run trained on.
///
/// # Errors
/// Fails if the pairs cannot be read or tokenised, or if the intervention cannot be built.
pub fn training_pairs(
    session: &Session,
    experiment: &Experiment,
    registry: &Registry,
) -> Result<TrainingPairs> {
    let method = intervention(experiment, &session.model, registry)?;
    let (pairs, _) = read(session, experiment, method.needs().evaluate_only)?;
    Ok(TrainingPairs::new(&experiment.train.split, &pairs))
}
