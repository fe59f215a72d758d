//! Log-probabilities of given tokens. Logits are large, so the output head only runs on the rows
//! that predict these tokens.

use tch::{Device, Kind, Tensor};

use super::Model;
use crate::error::Result;

/// Final hidden states, together with the output head that computes their logits.
#[derive(Debug)]
pub struct FinalStates {
    states: Tensor,
    head: Option<Tensor>,
}

impl FinalStates {
    /// Hidden states `[n hidden]` whose logits the model's own head computes.
    pub fn of_base(states: Tensor) -> Self {
        Self { states, head: None }
    }

    /// Sets the matrix of the head, `[vocab hidden]`.
    #[must_use]
    pub fn with_head(self, head: Tensor) -> Self {
        Self { head: Some(head), ..self }
    }

    /// The hidden states after the final norm, `[n hidden]`.
    pub fn states(&self) -> &Tensor {
        &self.states
    }

    /// The matrix of the head, `[vocab hidden]`; `None` stands for the model's own.
    pub fn head(&self) -> Option<&Tensor> {
        self.head.as_ref()
    }

    /// The states at the given rows. `rows` is int64, `[m]`.
    ///
    /// # Errors
    /// Fails if a row does not exist.
    pub fn rows(&self, rows: &Tensor) -> Result<Self> {
        Ok(self.with_states(self.states.f_index_select(0, rows)?))
    }

    /// The last state, `[1 hidden]`.
    ///
    /// # Errors
    /// Fails if there is no state.
    pub fn last(&self) -> Result<Self> {
        Ok(self.with_states(self.states.f_narrow(0, -1, 1)?))
    }

    fn with_states(&self, states: Tensor) -> Self {
        Self { states, head: self.head.as_ref().map(Tensor::shallow_clone) }
    }
}

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
    /// 1 if the token is the most probable one, else 0; float32.
    pub correct: Tensor,
}

/// Selects the values to compute for each scored token, in addition to its log-probability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// Compute [`TokenStats`], which are logged in training.
    pub stats: bool,
    /// Compute the collision probability Σ p².
    pub collision: bool,
}

impl Detail {
    /// Only the log-probability.
    pub const NONE: Self = Self { stats: false, collision: false };
}

/// The values of each scored token.
#[derive(Debug)]
pub struct TokenScores {
    /// log p of the token, `[m]`. The dtype is float64 in a float64 model, otherwise float32. The
    /// gradient flows into the hidden states.
    pub logprobs: Tensor,
    /// Statistics; `None` unless [`Detail::stats`] is set.
    pub stats: Option<TokenStats>,
    /// log Σ p² over the vocabulary `[m]`, without gradient; `None` unless [`Detail::collision`] is
    /// set.
    pub log_collision: Option<Tensor>,
    /// KL(policy ‖ reference) over the vocabulary in nats `[m]`, with a gradient like
    /// `logprobs`. `None` without the hidden states of a reference.
    pub kl: Option<Tensor>,
}

/// Maximum sizes of intermediate results, in bytes.
#[derive(Clone, Copy)]
struct Sizes {
    /// Size of the logits of one matrix product, in the dtype of the model.
    chunk: i64,
    /// Size of the logits that are converted to float32 at once on the CPU. These logits should fit
    /// into the cache of one core.
    block: i64,
}

impl Sizes {
    fn of(device: Device) -> Self {
        Self { chunk: logits_at_once(device), block: 1 << 20 }
    }
}

/// Returns the maximum size of the logits that are computed at once on `device`, in bytes.
///
/// Larger products are not faster on a CPU, but they are on a GPU.
pub fn logits_at_once(device: Device) -> i64 {
    if device.is_cuda() { 256 << 20 } else { 30 << 20 }
}

/// Tokens that are scored at once.
struct Chunk {
    /// Final hidden states of the policy, `[c hidden]`.
    hidden: Tensor,
    /// Token ids, `[c]`.
    ids: Tensor,
    /// Final hidden states of the reference, `[c hidden]`.
    reference: Option<Tensor>,
}

/// The matrices `[vocab hidden]` of the output heads.
struct Heads<'a> {
    /// The head of the policy.
    policy: &'a Tensor,
    /// The head of the reference; that of the policy if there is no reference.
    reference: &'a Tensor,
}

/// The results so far. Each list has one tensor per chunk or block, in the order of the tokens.
#[derive(Default)]
struct Parts {
    logprobs: Vec<Tensor>,
    entropy: Vec<Tensor>,
    mean_logit: Vec<Tensor>,
    correct: Vec<Tensor>,
    log_collision: Vec<Tensor>,
    kl: Vec<Tensor>,
    /// Gradients `[tokens hidden]` of `logprobs` and of `kl` with respect to the hidden states.
    logprob_gradients: Vec<Tensor>,
    kl_gradients: Vec<Tensor>,
}

impl Model {
    /// Scores the predicted tokens from the final hidden states `[n hidden]` of the policy.
    /// `reference` has the final hidden states `[n hidden]` of the reference.
    ///
    /// Logits are only computed for a chunk of tokens at a time, and never stored for a backward
    /// pass. Instead, each value is computed together with its gradient J with respect to the
    /// token's hidden state h. The result is `value + ⟨h − sg(h), J⟩`, where sg stops the gradient.
    /// The result and its first derivative are exact, but it has no second derivative.
    ///
    /// # Errors
    /// Fails if shapes do not match, or if memory runs out.
    pub fn score_tokens(
        &self,
        hidden: &FinalStates,
        predicted: &PredictedTokens,
        detail: Detail,
        reference: Option<&FinalStates>,
    ) -> Result<TokenScores> {
        let sizes = Sizes::of(self.device());
        self.score_in_chunks(hidden, predicted, detail, reference, sizes)
    }

    fn score_in_chunks(
        &self,
        hidden: &FinalStates,
        predicted: &PredictedTokens,
        detail: Detail,
        reference: Option<&FinalStates>,
        sizes: Sizes,
    ) -> Result<TokenScores> {
        let FinalStates { states: hidden, head } = hidden.rows(&predicted.rows)?;
        let reference = reference.map(|r| r.rows(&predicted.rows)).transpose()?;
        let mut parts = Parts::default();
        {
            let _guard = tch::no_grad_guard();
            let m = predicted.ids.size()[0];
            let row = self.info().vocab * self.kind().elt_size_in_bytes() as i64;
            let rows = (sizes.chunk / row).max(1);
            // A stored head is decoded once for all chunks.
            let own = || self.decoder.vocabulary().head();
            let of_reference = match &reference {
                Some(reference) => reference.head.as_ref().map(Tensor::shallow_clone),
                None => head.as_ref().map(Tensor::shallow_clone),
            };
            let (policy, of_reference) = match (head, of_reference) {
                (None, None) => {
                    let own = own()?;
                    (own.shallow_clone(), own)
                }
                (policy, other) => (policy.map_or_else(own, Ok)?, other.map_or_else(own, Ok)?),
            };
            let heads = Heads { policy: &policy, reference: &of_reference };
            let mut start = 0;
            while start < m {
                let len = rows.min(m - start);
                let part = |t: &Tensor| t.f_narrow(0, start, len);
                let chunk = Chunk {
                    hidden: part(&hidden)?,
                    ids: part(&predicted.ids)?,
                    reference: reference.as_ref().map(|r| part(r.states())).transpose()?,
                };
                self.score_chunk(
                    &chunk,
                    &heads,
                    detail,
                    hidden.requires_grad(),
                    sizes,
                    &mut parts,
                )?;
                start += len;
            }
        }
        let joined = |parts: &[Tensor]| -> Result<Option<Tensor>> {
            Ok(if parts.is_empty() { None } else { Some(Tensor::f_cat(parts, 0)?) })
        };
        let linear = |values: Tensor, gradients: &[Tensor]| -> Result<Tensor> {
            let Some(gradient) = joined(gradients)? else { return Ok(values) };
            let zero = hidden.f_sub(&hidden.f_detach()?)?.f_to_kind(values.kind())?;
            let change = zero.f_mul(&gradient)?;
            Ok(values.f_add(&change.f_sum_dim_intlist(-1, false, None::<Kind>)?)?)
        };
        let logprobs = match joined(&parts.logprobs)? {
            Some(logprobs) => linear(logprobs, &parts.logprob_gradients)?,
            None => hidden.f_select(1, 0)?.f_to_kind(self.score_kind())?,
        };
        let stats =
            match (joined(&parts.entropy)?, joined(&parts.mean_logit)?, joined(&parts.correct)?) {
                (Some(entropy), Some(mean_logit), Some(correct)) => {
                    Some(TokenStats { entropy, mean_logit, correct })
                }
                _ => None,
            };
        let kl = joined(&parts.kl)?.map(|kl| linear(kl, &parts.kl_gradients)).transpose()?;
        let log_collision = joined(&parts.log_collision)?;
        Ok(TokenScores { logprobs, stats, log_collision, kl })
    }

    /// The dtype of scores: float64 in a float64 model, otherwise float32.
    fn score_kind(&self) -> Kind {
        if self.kind() == Kind::Double { Kind::Double } else { Kind::Float }
    }

    /// Appends the scores of a chunk to `parts`, and their gradients if `with_gradients` is true.
    fn score_chunk(
        &self,
        Chunk { hidden, ids, reference }: &Chunk,
        heads: &Heads<'_>,
        detail: Detail,
        with_gradients: bool,
        sizes: Sizes,
        parts: &mut Parts,
    ) -> Result<()> {
        let kind = self.score_kind();
        let vocabulary = self.decoder.vocabulary();
        let logits = vocabulary.logits_with(heads.policy, hidden)?;
        let others = reference
            .as_ref()
            .map(|states| vocabulary.logits_with(heads.reference, states))
            .transpose()?;
        let c = ids.size()[0];
        let rows = match logits.device() {
            Device::Cpu => {
                (sizes.block / (self.info().vocab * kind.elt_size_in_bytes() as i64)).max(1)
            }
            _ => c,
        };
        let mut start = 0;
        while start < c {
            let len = rows.min(c - start);
            let block = |t: &Tensor| t.f_narrow(0, start, len);
            let ids = block(ids)?.f_unsqueeze(1)?;
            let of_block = block(&logits)?.f_to_kind(kind)?;
            let log_p = of_block.f_log_softmax(-1, None::<Kind>)?;
            let mean = |t: &Tensor| t.f_sum_dim_intlist(-1, false, None::<Kind>);
            parts.logprobs.push(log_p.f_gather(1, &ids, false)?.f_squeeze_dim(1)?);
            let p = log_p.f_exp()?;
            if detail.stats {
                parts.entropy.push(mean(&p.f_mul(&log_p)?)?.f_neg()?);
                parts.mean_logit.push(of_block.f_mean_dim(-1, false, None::<Kind>)?);
                parts.correct.push(
                    of_block
                        .f_argmax(-1, false)?
                        .f_eq_tensor(&ids.f_squeeze_dim(1)?)?
                        .f_to_kind(Kind::Float)?,
                );
            }
            if detail.collision {
                parts.log_collision.push((&log_p * 2.0).f_logsumexp(-1, false)?);
            }
            // The derivative of the soft cap, from the capped logits.
            let slope = match vocabulary.cap().filter(|_| with_gradients) {
                Some(cap) => Some(1.0 - of_block.f_div_scalar(cap)?.f_square()?),
                None => None,
            };
            let sloped = |gradient: Tensor| match &slope {
                Some(slope) => gradient.f_mul(slope),
                None => Ok(gradient),
            };
            if let Some(others) = &others {
                // ∂KL/∂logit = p·(log p − log r − KL)
                let ratio = log_p.f_sub(&block(others)?.f_log_softmax(-1, kind)?)?;
                let kl = mean(&p.f_mul(&ratio)?)?;
                if with_gradients {
                    let gradient = sloped(ratio.f_sub(&kl.f_unsqueeze(1)?)?.f_mul(&p)?)?;
                    block(others)?.f_copy_(&gradient)?;
                }
                parts.kl.push(kl);
            }
            if with_gradients {
                // ∂log p(id)/∂logit = [id] − p
                let one = Tensor::f_ones_like(&ids)?.f_to_kind(kind)?;
                let gradient = sloped(p.f_neg()?.f_scatter_add_(1, &ids, &one)?)?;
                block(&logits)?.f_copy_(&gradient)?;
            }
            start += len;
        }
        if with_gradients {
            let back = |gradient: &Tensor| vocabulary.back_projected(heads.policy, gradient);
            parts.logprob_gradients.push(back(&logits)?);
            if let Some(others) = &others {
                parts.kl_gradients.push(back(others)?);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::tiny::Fixture;

    const DEVICE: Device = Device::Cpu;

    fn model(architecture: &str, kind: Kind) -> Model {
        let fixture = Fixture::read().unwrap();
        let mut config = fixture.case(architecture, "default").unwrap().config.clone();
        match architecture {
            "gemma2" => config["final_logit_softcapping"] = json!(0.7),
            "granite" => config["logits_scaling"] = json!(3.0),
            _ => {}
        }
        let tensors = fixture.tensors(architecture, kind).unwrap();
        Model::from_tensors(&config, tensors, kind, DEVICE).unwrap()
    }

    /// Scores the tokens from all logits at once. Autograd keeps these logits.
    fn plain(
        model: &Model,
        hidden: &Tensor,
        reference: &Tensor,
        tokens: &PredictedTokens,
    ) -> TokenScores {
        let kind = model.score_kind();
        let log_softmax = |h: &Tensor| {
            let logits =
                model.logits(&FinalStates::of_base(h.index_select(0, &tokens.rows))).unwrap();
            (logits.to_kind(kind), logits.log_softmax(-1, kind))
        };
        let ((logits, log_p), (_, log_r)) = (log_softmax(hidden), log_softmax(reference));
        let p = log_p.exp();
        let sum = |t: Tensor| t.sum_dim_intlist(-1, false, None::<Kind>);
        TokenScores {
            logprobs: log_p.gather(1, &tokens.ids.unsqueeze(1), false).squeeze_dim(1),
            stats: Some(TokenStats {
                entropy: -sum(&p * &log_p),
                mean_logit: logits.mean_dim(-1, false, None::<Kind>),
                correct: logits.argmax(-1, false).eq_tensor(&tokens.ids).to_kind(Kind::Float),
            }),
            log_collision: Some(sum(p.square()).log()),
            kl: Some(sum(&p * (&log_p - log_r))),
        }
    }

    /// The largest difference, relative to the largest value.
    fn error(a: &Tensor, b: &Tensor) -> f64 {
        let [a, b] = [a, b].map(|t| t.to_kind(Kind::Double));
        ((&a - &b).abs().max() / b.abs().max()).double_value(&[])
    }

    #[test]
    fn chunked_scores_and_their_gradients_equal_the_plain_ones() {
        tch::manual_seed(1);
        for (architecture, kind, tolerance) in [
            ("llama", Kind::Double, 1e-12),
            ("llama", Kind::Float, 1e-5),
            ("llama", Kind::BFloat16, 1e-2),
            ("gemma2", Kind::Double, 1e-12),
            ("gemma2", Kind::Float, 1e-5),
            ("granite", Kind::Double, 1e-12),
            ("gpt2", Kind::Float, 1e-5),
        ] {
            let model = model(architecture, kind);
            let (n, m, vocab) = (40, 101, model.info().vocab);
            let random = || Tensor::randn([n, model.info().hidden], (kind, DEVICE));
            let tokens = PredictedTokens {
                rows: Tensor::randint(n, [m], (Kind::Int64, DEVICE)),
                ids: Tensor::randint(vocab, [m], (Kind::Int64, DEVICE)),
            };
            let (hidden, reference) = (random().set_requires_grad(true), random());
            // First one row per block and 13 rows per chunk, then several rows per block, then all
            // rows at once.
            let row = vocab * kind.elt_size_in_bytes() as i64;
            for sizes in [
                Sizes { chunk: 13 * row, block: 1 },
                Sizes { chunk: 50 * row, block: 28 * vocab },
                Sizes::of(DEVICE),
            ] {
                let ours = model
                    .score_in_chunks(
                        &FinalStates::of_base(hidden.shallow_clone()),
                        &tokens,
                        Detail { stats: true, collision: true },
                        Some(&FinalStates::of_base(reference.shallow_clone())),
                        sizes,
                    )
                    .unwrap();
                let theirs = plain(&model, &hidden, &reference, &tokens);
                let place = format!("{architecture}, {kind:?}, chunk size {}", sizes.chunk);
                let (stats, expected) = (ours.stats.unwrap(), theirs.stats.unwrap());
                let (kl, expected_kl) = (ours.kl.unwrap(), theirs.kl.unwrap());
                for (a, b) in [
                    (&ours.logprobs, &theirs.logprobs),
                    (&kl, &expected_kl),
                    (&stats.entropy, &expected.entropy),
                    (&stats.mean_logit, &expected.mean_logit),
                    (&ours.log_collision.unwrap(), &theirs.log_collision.unwrap()),
                ] {
                    // The logits are the same. Only the order of summation differs.
                    let tolerance = if kind == Kind::Double { 1e-12 } else { 1e-5 };
                    assert!(error(a, b) < tolerance, "{place}: error {}", error(a, b));
                }
                assert_eq!(stats.correct, expected.correct);
                for (a, b) in [(&ours.logprobs, &theirs.logprobs), (&kl, &expected_kl)] {
                    let weights = Tensor::randn([m], (model.score_kind(), DEVICE));
                    let gradient = |value: &Tensor| {
                        let loss = (value * &weights).sum(model.score_kind());
                        Tensor::run_backward(&[loss], &[&hidden], true, false).remove(0)
                    };
                    let difference = error(&gradient(a), &gradient(b));
                    assert!(difference < tolerance, "{place}: gradient error {difference}");
                }
            }
        }
    }

    #[test]
    fn scores_without_gradient_and_of_no_tokens_are_computed() {
        let model = model("llama", Kind::Float);
        let hidden = Tensor::randn([3, model.info().hidden], (Kind::Float, DEVICE));
        let of = |ids: &[i64]| PredictedTokens {
            rows: Tensor::zeros([ids.len() as i64], (Kind::Int64, DEVICE)),
            ids: Tensor::from_slice(ids),
        };
        let scores = model
            .score_tokens(
                &FinalStates::of_base(hidden.shallow_clone()),
                &of(&[1, 2]),
                Detail::NONE,
                None,
            )
            .unwrap();
        assert!(!scores.logprobs.requires_grad() && scores.stats.is_none() && scores.kl.is_none());
        let detail = Detail { stats: false, collision: true };
        let scores = model
            .score_tokens(&FinalStates::of_base(hidden.shallow_clone()), &of(&[1, 2]), detail, None)
            .unwrap();
        assert!(scores.stats.is_none() && scores.log_collision.is_some());
        let none = model
            .score_tokens(
                &FinalStates::of_base(hidden.shallow_clone()),
                &of(&[]),
                Detail { stats: true, collision: false },
                None,
            )
            .unwrap();
        assert_eq!(none.logprobs.size(), [0]);
        let hidden = hidden.set_requires_grad(true);
        let none = model
            .score_tokens(
                &FinalStates::of_base(hidden.shallow_clone()),
                &of(&[]),
                Detail { stats: true, collision: false },
                None,
            )
            .unwrap();
        none.logprobs.sum(Kind::Float).backward();
        assert_eq!(hidden.grad().abs().sum(Kind::Float).double_value(&[]), 0.0);
    }
}
