//! Computes the log-probabilities of preference pairs for evaluation.

use std::sync::atomic::{AtomicBool, Ordering};

use tch::Kind;

use super::statistics::{CompletionScore, PairScore};
use crate::api::{Side, Sides};
use crate::batch::{BatchSpec, PairBatch, Sharing, passes};
use crate::error::{Error, Result};
use crate::model::pass::Request;
use crate::model::{Adapted, Detail, Model};
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
    let _guard = tch::no_grad_guard();
    let mut scores = Vec::with_capacity(pairs.len());
    for now in passes(pairs, tokens) {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::interrupted(format!(
                "interrupted after scoring {} of {} pairs",
                scores.len(),
                pairs.len()
            )));
        }
        let spec = BatchSpec { sharing: Sharing::for_adapted(adapted), ..BatchSpec::SCORED };
        let batch = PairBatch::of(&now.iter().collect::<Vec<_>>(), spec, model)?;
        let reached = model
            .forward(&batch.stream, Request { adapted, hidden: true, ..Request::default() })?;
        if let Some(hidden) = &reached.hidden {
            let logps = model.score_tokens(hidden, &batch.predicted, Detail::NONE, None)?.logprobs;
            let sums = |side: Side| -> Result<Vec<f64>> {
                Ok(Vec::<f64>::try_from(
                    batch.tokens_of(&logps, side)?.sum().to_kind(Kind::Double),
                )?)
            };
            let Sides { chosen, rejected } = Sides::try_of(sums)?;
            for ((pair, chosen), rejected) in now.iter().zip(chosen).zip(rejected) {
                scores.push(PairScore {
                    index: pair.row,
                    chosen: CompletionScore { logp_sum: chosen, tokens: pair.chosen.len() },
                    rejected: CompletionScore { logp_sum: rejected, tokens: pair.rejected.len() },
                });
            }
        }
        progress.advance(now.len() as u64, &[]);
    }
    Ok(scores)
}
