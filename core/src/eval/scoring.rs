//! Computes the log-probabilities of preference pairs for evaluation.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::statistics::{CompletionScore, PairScore};
use crate::api::Side;
use crate::error::{Error, Result};
use crate::fingerprint::of_pairs;
use crate::model::{Adapted, Model};
use crate::reference::{Quantity, ReferenceCache, Values, blocks, compute};
use crate::report::Progress;
use crate::text::TokenPair;
use crate::world::checksum;

/// Scores every pair and returns the scores in the same order. Applies the adapter if `adapted` is
/// not `None`. Each forward pass scores as many pairs as fit into `tokens` tokens. A pair with more
/// tokens gets a separate pass.
///
/// # Errors
/// Fails if libtorch fails. Returns `Error::interrupted` when `stop` becomes true.
pub fn score_pairs(
    model: &Model,
    adapted: Option<&Adapted>,
    pairs: &[TokenPair],
    tokens: usize,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<Vec<PairScore>> {
    let logprobs = |block: &[TokenPair]| {
        Ok(compute(model, adapted, block, &[Quantity::Logprobs])?
            .into_iter()
            .map(Arc::new)
            .collect())
    };
    scores(model, adapted, logprobs, pairs, tokens, stop, progress)
}

/// Computes the same scores as [`score_pairs`], and takes the log-probabilities from `cache`, which
/// must be the cache of this model and adapter.
///
/// # Errors
/// Fails in the same cases as [`score_pairs`].
pub fn score_reference(
    cache: &mut ReferenceCache,
    model: &Model,
    adapted: Option<&Adapted>,
    pairs: &[TokenPair],
    tokens: usize,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<Vec<PairScore>> {
    let logprobs = |block: &[TokenPair]| cache.values(model, adapted, block, &[Quantity::Logprobs]);
    scores(model, adapted, logprobs, pairs, tokens, stop, progress)
}

/// Scores every pair with the log-probabilities of its block, which `logprobs` returns.
fn scores(
    model: &Model,
    adapted: Option<&Adapted>,
    mut logprobs: impl FnMut(&[TokenPair]) -> Result<Vec<Arc<Values>>>,
    pairs: &[TokenPair],
    tokens: usize,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<Vec<PairScore>> {
    by_block(model, adapted, pairs, tokens, stop, progress, |block| {
        let mut scores = Vec::with_capacity(block.len());
        for values in logprobs(block)? {
            for (i, pair) in block.iter().enumerate() {
                scores.push(pair_score(&values, i, pair)?);
            }
        }
        Ok(scores)
    })
}

/// Calls `score` for each block of pairs and returns all results in the order of the pairs. The
/// blocks are divided among the ranks. Each rank gets all results. They do not depend on the number
/// of ranks, because the blocks do not.
///
/// # Errors
/// Returns the error of `score`, or `Error::interrupted` when `stop` becomes true. Fails if the
/// ranks have different pairs or adapters.
pub(super) fn by_block<T: Serialize + DeserializeOwned>(
    model: &Model,
    adapted: Option<&Adapted>,
    pairs: &[TokenPair],
    tokens: usize,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
    mut score: impl FnMut(&[TokenPair]) -> Result<Vec<T>>,
) -> Result<Vec<T>> {
    let world = model.world();
    if world.size() > 1 {
        world.agree("the pairs to score", of_pairs(pairs).sha256)?;
        let tensors = adapted.map(Adapted::tensors).unwrap_or_default();
        world.agree("the adapter", checksum(tensors.into_iter().map(|(_, tensor)| tensor))?)?;
    }
    let all: Vec<&[TokenPair]> = blocks(pairs, tokens).collect();
    let (mut scores, mut stopped) = (Vec::new(), false);
    for round in all.chunks(world.size()) {
        if model.stops(stop)? {
            stopped = true;
            break;
        }
        match round.get(world.rank()) {
            Some(block) => scores.push(score(block)?),
            // The other ranks need this one to gather the weights.
            None if model.is_sharded() => drop(score(round[0])?),
            None => {}
        }
        progress.advance(round.iter().map(|block| block.len() as u64).sum(), &[]);
    }
    let done: usize = all.iter().take(scores.len() * world.size()).map(|block| block.len()).sum();
    let gathered = world.gather((stopped, scores))?;
    if gathered.iter().any(|(stopped, _)| *stopped) {
        return Err(Error::interrupted(format!(
            "interrupted after scoring {done} of {} pairs",
            pairs.len()
        )));
    }
    // Each rank has the blocks of its position in each round.
    let mut of_rank: Vec<_> = gathered.into_iter().map(|(_, scores)| scores.into_iter()).collect();
    let rounds = all.len().div_ceil(world.size());
    Ok((0..rounds)
        .flat_map(|_| of_rank.iter_mut().filter_map(Iterator::next).collect::<Vec<_>>())
        .flatten()
        .collect())
}

/// The score of the pair at position `i` of a block, from the log-probabilities of the block.
pub(super) fn pair_score(logprobs: &Values, i: usize, pair: &TokenPair) -> Result<PairScore> {
    let score = |side| -> Result<CompletionScore> {
        let tokens = pair.completion(side).len();
        Ok(CompletionScore::new(logprobs.sum(i, side)?, tokens))
    };
    Ok(PairScore {
        index: pair.row,
        chosen: score(Side::Chosen)?,
        rejected: score(Side::Rejected)?,
    })
}
