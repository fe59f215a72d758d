//! Computes the KL divergence of the trained model from the base model.

use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};

use super::scoring::{by_block, pair_score};
use super::statistics::PairScore;
use crate::api::{Completions, Side};
use crate::batch::PairBatch;
use crate::error::{Error, Result};
use crate::model::pass::Request;
use crate::model::{Adapted, Detail, Model};
use crate::reference::{Values, block_spec};
use crate::report::Progress;
use crate::text::TokenPair;

/// The scores of a pair from the adapted model, and its divergence from the base model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DivergedPair {
    /// The same scores as those of [`super::score_pairs`].
    pub score: PairScore,
    /// KL(adapted ‖ base) over the vocabulary, in nats: the mean over the tokens of the chosen
    /// completion.
    pub kl: f64,
}

/// Scores every pair with the adapter, and computes the KL divergence from the model without it.
/// Returns one result per pair, in the same order.
///
/// Each block needs a pass of both models. The logits are computed a chunk at a time and are not
/// kept.
///
/// # Errors
/// Fails if libtorch fails. Returns `Error::interrupted` when `stop` becomes true.
pub fn score_with_kl(
    model: &Model,
    adapted: &Adapted,
    pairs: &[TokenPair],
    tokens: usize,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<Vec<DivergedPair>> {
    by_block(model, Some(adapted), pairs, tokens, stop, progress, |block| {
        of_block(model, adapted, block)
    })
}

fn of_block(model: &Model, adapted: &Adapted, pairs: &[TokenPair]) -> Result<Vec<DivergedPair>> {
    let _guard = tch::no_grad_guard();
    let all: Vec<&TokenPair> = pairs.iter().collect();
    let batch = PairBatch::of(&all, block_spec(Some(adapted)), model)?;
    let hidden = |adapted| {
        let request = Request { adapted, hidden: true, ..Request::default() };
        let hidden = model.forward(&batch.stream, request)?.hidden;
        hidden.ok_or_else(|| Error::internal("the pass has no hidden states"))
    };
    let (base, policy) = (hidden(None)?, hidden(Some(adapted))?);
    let scores = model.score_tokens(&policy, &batch.predicted, Detail::NONE, Some(&base))?;
    let kl = scores.kl.ok_or_else(|| Error::internal("the pass has no KL divergence"))?;
    let logprobs = Values::of_logprobs(&batch, &scores.logprobs, Completions::Both)?;
    let kl = Values::of_logprobs(&batch, &kl, Completions::Chosen)?;
    let of_pair = |(i, pair): (usize, &TokenPair)| {
        let score = pair_score(&logprobs, i, pair)?;
        Ok(DivergedPair { score, kl: kl.sum(i, Side::Chosen)? / pair.chosen.len() as f64 })
    };
    pairs.iter().enumerate().map(of_pair).collect()
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::conformance::{Bench, Case, pairs};
    use crate::eval::score_pairs;
    use crate::report::Silent;

    fn scored(bench: &Bench, pairs: &[TokenPair], tokens: usize) -> Vec<DivergedPair> {
        let stop = AtomicBool::new(false);
        score_with_kl(&bench.model, &bench.adapted, pairs, tokens, &stop, &mut Silent).unwrap()
    }

    /// Returns the log-probabilities over the vocabulary of each token of the chosen completion,
    /// from the logits of a single sequence.
    fn log_p(bench: &Bench, on: bool, pair: &TokenPair) -> tch::Tensor {
        let batch = PairBatch::of(&[pair], block_spec(Some(&bench.adapted)), &bench.model).unwrap();
        let adapted = on.then_some(&bench.adapted);
        let request = Request { adapted, hidden: true, ..Request::default() };
        let hidden = bench.model.forward(&batch.stream, request).unwrap().hidden.unwrap();
        let scored: Vec<i64> = batch.scored(0, Side::Chosen).unwrap().to_vec();
        let rows = batch.predicted.rows.index_select(0, &tch::Tensor::from_slice(&scored));
        bench.model.logits(&hidden.rows(&rows).unwrap()).unwrap().log_softmax(-1, Kind::Double)
    }

    #[test]
    fn the_divergence_equals_that_of_the_whole_distribution() {
        let (bench, pairs) = (Bench::new(&Case::of_stand_ins(), 0).unwrap(), pairs());
        let _guard = tch::no_grad_guard();
        for (_, mut parameter) in bench.adapted.parameters() {
            let noise = parameter.randn_like() * 0.3;
            let _ = parameter.g_add_(&noise);
        }
        let found = scored(&bench, &pairs, 64);
        assert!(found.iter().all(|pair| pair.kl > 1e-4), "{found:?}");
        for (pair, found) in pairs.iter().zip(&found) {
            let (p, r) = (log_p(&bench, true, pair), log_p(&bench, false, pair));
            let kl = (p.exp() * (&p - r)).sum(Kind::Double).double_value(&[]);
            let mean = kl / pair.chosen.len() as f64;
            assert!((found.kl / mean - 1.0).abs() < 1e-3, "{} {mean}", found.kl);
        }
        let stop = AtomicBool::new(false);
        let scores =
            score_pairs(&bench.model, Some(&bench.adapted), &pairs, 64, &stop, &mut Silent);
        assert_eq!(found.iter().map(|pair| pair.score).collect::<Vec<_>>(), scores.unwrap());
    }
}
