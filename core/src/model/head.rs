//! Log-probabilities of given tokens. Logits are large, so the output head only runs on the rows
//! that predict these tokens.

use tch::{Kind, Tensor};

use super::Model;
use crate::error::Result;

/// The tokens to score, and the rows of the stream whose states predict them.
#[derive(Debug)]
pub struct PredictedTokens {
    /// For each token, the row of the stream that predicts it; int64, `[m]`.
    pub rows: Tensor,
    /// The token ids; int64, `[m]`.
    pub ids: Tensor,
}

/// Statistics for each scored token, without gradient. Each tensor is `[m]`, with the dtype of the
/// log-probabilities unless stated otherwise.
#[derive(Debug)]
pub struct TokenStats {
    /// Entropy over the vocabulary in nats, −Σ p log p.
    pub entropy: Tensor,
    /// Mean logit over the vocabulary.
    pub mean_logit: Tensor,
    /// 1 if the most probable token is the actual one, else 0; float32.
    pub correct: Tensor,
    /// log Σ p² over the vocabulary; `None` unless [`Detail::MetricsAndCollision`] is requested.
    pub log_collision: Option<Tensor>,
}

/// Selects the statistics to compute for each scored token, in addition to its log-probability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detail {
    /// No statistics.
    None,
    /// The statistics that are logged in training.
    Metrics,
    /// The logged statistics and the collision probability Σ p².
    MetricsAndCollision,
}

/// Number of rows for which logits are computed at once when no gradient is needed. With a
/// vocabulary of 50,000 tokens, the logits of 512 rows take 100 MB in float32.
const ROWS: i64 = 512;

impl Model {
    /// Computes log p of each predicted token, `[m]`, and the statistics that `detail` selects.
    /// `hidden` contains the final hidden states, `[n hidden]`. The results are float32, or float64
    /// in a float64 model.
    ///
    /// # Errors
    /// Fails if shapes do not match, or if memory runs out.
    pub fn logprobs(
        &self,
        hidden: &Tensor,
        predicted: &PredictedTokens,
        detail: Detail,
    ) -> Result<(Tensor, Option<TokenStats>)> {
        let hidden = hidden.f_index_select(0, &predicted.rows)?;
        let m = predicted.ids.size()[0];
        // If a gradient is needed, splitting the rows into chunks would not save memory, because
        // autograd keeps the logits of every chunk for the backward pass.
        let step = if hidden.requires_grad() { m.max(1) } else { ROWS };
        let mut logps = Vec::new();
        let (mut entropy, mut mean_logit, mut correct, mut log_collision) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut start = 0;
        while start < m {
            let len = step.min(m - start);
            let ids = predicted.ids.f_narrow(0, start, len)?;
            let logits = self.logits(&hidden.f_narrow(0, start, len)?)?;
            let logits =
                if self.kind() == Kind::Double { logits } else { logits.f_to_kind(Kind::Float)? };
            let normaliser = logits.f_logsumexp(-1, false)?;
            logps.push(
                logits
                    .f_gather(1, &ids.f_unsqueeze(1)?, false)?
                    .f_squeeze_dim(1)?
                    .f_sub(&normaliser)?,
            );
            if detail > Detail::None {
                let _guard = tch::no_grad_guard();
                let (logits, normaliser) = (logits.f_detach()?, normaliser.f_detach()?);
                // −Σ p log p = lse − Σ p·logit
                let expected = logits
                    .f_softmax(-1, None::<Kind>)?
                    .f_mul_(&logits)?
                    .f_sum_dim_intlist(-1, false, None::<Kind>)?;
                entropy.push(normaliser.f_sub(&expected)?);
                mean_logit.push(logits.f_mean_dim(-1, false, None::<Kind>)?);
                // log Σ p² = lse(2·logit) − 2·lse(logit)
                if detail == Detail::MetricsAndCollision {
                    log_collision
                        .push((&logits * 2.0).f_logsumexp(-1, false)?.f_sub(&(&normaliser * 2.0))?);
                }
                correct
                    .push(logits.f_argmax(-1, false)?.f_eq_tensor(&ids)?.f_to_kind(Kind::Float)?);
            }
            start += len;
        }
        let joined = |parts: &[Tensor]| -> Result<Tensor> { Ok(Tensor::f_cat(parts, 0)?) };
        let stats = if detail > Detail::None {
            let (entropy, mean_logit, correct) =
                (joined(&entropy)?, joined(&mean_logit)?, joined(&correct)?);
            let log_collision =
                if log_collision.is_empty() { None } else { Some(joined(&log_collision)?) };
            Some(TokenStats { entropy, mean_logit, correct, log_collision })
        } else {
            None
        };
        Ok((joined(&logps)?, stats))
    }

    /// Computes KL(policy ‖ reference) over the vocabulary for each predicted token, `[m]`, in
    /// nats. `hidden` and `reference` are the final hidden states of the policy and of the
    /// reference, each `[n hidden]`. The result is float32, or float64 in a float64 model. The
    /// gradient flows into `hidden`, but not into `reference`.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn divergence(
        &self,
        hidden: &Tensor,
        reference: &Tensor,
        predicted: &PredictedTokens,
    ) -> Result<Tensor> {
        let (hidden, reference) = (
            hidden.f_index_select(0, &predicted.rows)?,
            reference.f_detach()?.f_index_select(0, &predicted.rows)?,
        );
        let m = hidden.size()[0];
        let step = if hidden.requires_grad() { m.max(1) } else { ROWS };
        let log_softmax = |states: &Tensor, start: i64, len: i64| -> Result<Tensor> {
            let logits = self.logits(&states.f_narrow(0, start, len)?)?;
            let kind = if self.kind() == Kind::Double { Kind::Double } else { Kind::Float };
            Ok(logits.f_log_softmax(-1, kind)?)
        };
        let mut parts = Vec::new();
        let mut start = 0;
        while start < m {
            let len = step.min(m - start);
            let log_r = {
                let _guard = tch::no_grad_guard();
                log_softmax(&reference, start, len)?
            };
            let log_p = log_softmax(&hidden, start, len)?;
            parts.push(log_p.f_exp()?.f_mul(&log_p.f_sub(&log_r)?)?.f_sum_dim_intlist(
                -1,
                false,
                None::<Kind>,
            )?);
            start += len;
        }
        Ok(Tensor::f_cat(&parts, 0)?)
    }
}
