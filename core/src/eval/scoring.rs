//! Computes the log-probabilities of preference pairs for evaluation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::statistics::{CompletionScore, PairScore};
use crate::api::Side;
use crate::error::{Error, Result};
use crate::model::{Adapted, Model};
use crate::reference::{Quantity, ReferenceCache, Values, blocks, compute};
use crate::report::Progress;
use crate::text::TokenPair;

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
    scores(logprobs, pairs, tokens, stop, progress)
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
    scores(logprobs, pairs, tokens, stop, progress)
}

/// Scores every pair with the log-probabilities of its block, which `logprobs` returns.
fn scores(
    mut logprobs: impl FnMut(&[TokenPair]) -> Result<Vec<Arc<Values>>>,
    pairs: &[TokenPair],
    tokens: usize,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<Vec<PairScore>> {
    by_block(pairs, tokens, stop, progress, |block| {
        let mut scores = Vec::with_capacity(block.len());
        for values in logprobs(block)? {
            for (i, pair) in block.iter().enumerate() {
                scores.push(pair_score(&values, i, pair)?);
            }
        }
        Ok(scores)
    })
}

/// Calls `score` for each block of pairs and returns all results in the order of the pairs.
///
/// # Errors
/// Returns the error of `score`, or `Error::interrupted` when `stop` becomes true.
pub(super) fn by_block<T>(
    pairs: &[TokenPair],
    tokens: usize,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
    mut score: impl FnMut(&[TokenPair]) -> Result<Vec<T>>,
) -> Result<Vec<T>> {
    let mut scores = Vec::with_capacity(pairs.len());
    for block in blocks(pairs, tokens) {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::interrupted(format!(
                "interrupted after scoring {} of {} pairs",
                scores.len(),
                pairs.len()
            )));
        }
        scores.extend(score(block)?);
        progress.advance(block.len() as u64, &[]);
    }
    Ok(scores)
}

/// The score of the pair at position `i` of a block, from the log-probabilities of the block.
pub(super) fn pair_score(logprobs: &Values, i: usize, pair: &TokenPair) -> Result<PairScore> {
    let score = |side| -> Result<CompletionScore> {
        let tokens = pair.completion(side).len();
        Ok(CompletionScore { logp_sum: logprobs.sum(i, side)?, tokens })
    };
    Ok(PairScore {
        index: pair.row,
        chosen: score(Side::Chosen)?,
        rejected: score(Side::Rejected)?,
    })
}
