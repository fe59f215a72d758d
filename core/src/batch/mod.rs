//! Lays out the pairs of a batch as one token stream. A prompt or completion that several pairs
//! share appears only once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use tch::{Device, Kind, Tensor};

#[cfg(test)]
mod tests;

use crate::api::{Completions, Pooling, Side, Sides, TokenLogprobs};
use crate::error::{Error, Result};
use crate::model::stream::{Stream, StreamBuilder};
use crate::model::{Model, PredictedTokens};
use crate::text::TokenPair;

/// Specifies which completions of each pair a batch contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSpec {
    /// Completions whose tokens are scored.
    pub logprobs: Completions,
    /// Completions whose states are read.
    pub states: Completions,
    /// If true, pairs do not share rows of the stream.
    pub apart: bool,
}

impl BatchSpec {
    /// A batch that contains both completions of each pair and scores all of them.
    pub const SCORED: Self =
        Self { logprobs: Completions::Both, states: Completions::Both, apart: false };

    /// The completions in the batch: all that are scored or whose states are read. If there are
    /// none, the batch contains the chosen completions.
    fn completions(self) -> Completions {
        let needed = self.logprobs.or(self.states);
        if needed.any() { needed } else { Completions::Chosen }
    }
}

/// The rows of a stream that belong to one side of b pairs, ordered by pair.
#[derive(Debug)]
pub struct Rows {
    /// Index of each row in the stream, `[m]`, int64.
    index: Tensor,
    /// Index of the pair (0 to b − 1) that each row belongs to, `[m]`, int64, ascending.
    pub owner: Tensor,
    /// True for tokens of completions, `[m]`, bool.
    pub completion: Tensor,
    /// For each row, the position (0 to m − 1) of the last row of the same pair, `[m]`, int64.
    pub last: Tensor,
    /// Number of rows of each pair, `[b]`.
    counts: Tensor,
}

impl Rows {
    /// Selects these rows from `states`. The shape changes from `[n …]` to `[m …]`.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn gather(&self, states: &Tensor) -> Result<Tensor> {
        Ok(states.f_index_select(0, &self.index)?)
    }

    /// Averages `values` over the rows of each pair. The shape changes from `[m w]` to `[b w]`.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn mean(&self, values: &Tensor) -> Result<Tensor> {
        let (b, kind) = (self.counts.size()[0], values.kind());
        let sums = Tensor::f_zeros([b, values.size()[1]], (kind, values.device()))?.f_index_add(
            0,
            &self.owner,
            values,
        )?;
        Ok(sums.f_div(&self.counts.f_to_kind(kind)?.f_unsqueeze(1)?)?)
    }
}

/// A prompt and a completion in the stream, as a chain of segments.
#[derive(Clone, Debug)]
struct Sequence {
    /// Indices of the segments, each of which continues the previous one.
    chain: Vec<usize>,
    /// Number of prompt tokens, which come first.
    prompt: usize,
    /// Range of the sequence's completion tokens among the scored tokens.
    scored: Range<usize>,
}

/// A batch of b pairs.
#[derive(Debug)]
pub struct PairBatch {
    /// [`TokenPair::index`] of each pair.
    pub indices: Vec<usize>,
    /// The tokens of the batch.
    pub stream: Stream,
    /// The scored tokens, ordered by completion.
    pub predicted: PredictedTokens,
    sequences: Vec<Sequence>,
    /// Index of each pair's sequence; empty for a side that the batch does not contain.
    of_pairs: Sides<Vec<usize>>,
    /// Number of completion tokens of each pair's shorter side.
    shorter: Vec<usize>,
    kind: Kind,
    /// Caches the results of [`rows`](Self::rows), because all taps and adapted modules use the
    /// same rows.
    rows: RefCell<HashMap<(Pooling, Side), Rc<Rows>>>,
}

/// Divides pairs into consecutive groups, one per forward pass. A group has at most `tokens`
/// tokens, unless a single pair is longer.
pub fn passes(pairs: &[TokenPair], tokens: usize) -> impl Iterator<Item = &[TokenPair]> {
    let mut rest = pairs;
    std::iter::from_fn(move || {
        let mut total = 0;
        let fits = rest.iter().take_while(|p| {
            total += p.prompt.len() + p.chosen.len() + p.rejected.len();
            total <= tokens
        });
        let (now, later) = rest.split_at(fits.count().max(1).min(rest.len()));
        rest = later;
        (!now.is_empty()).then_some(now)
    })
}

/// Sequences with the same key share a prompt. The key consists of the prompt's tokens, the rotary
/// frequencies of the sequence (see [`Model::rotation_of`]), and the index of the pair if pairs
/// must not share rows.
type PromptKey<'a> = (&'a [i64], Vec<usize>, Option<usize>);

/// A prompt, with the pair index and side of each completion that continues it.
type PromptMembers<'a> = (&'a [i64], Vec<(usize, Side)>);

impl PairBatch {
    /// Lays out `pairs` for `model`.
    ///
    /// # Errors
    /// Fails if the device runs out of memory.
    pub fn of(pairs: &[&TokenPair], spec: BatchSpec, model: &Model) -> Result<Self> {
        Self::new(pairs, spec, model.kind(), model.device(), |tokens| model.rotation_of(tokens))
    }

    /// Lays out `pairs` for a model whose weights have the dtype `kind`. `rotation_of` identifies
    /// the rotary frequencies for a sequence of a given length, as in [`Model::rotation_of`].
    /// Sequences only share a prompt if their frequencies are equal, because the states of the
    /// prompt depend on them.
    ///
    /// # Errors
    /// Fails if the device runs out of memory.
    pub(crate) fn new(
        pairs: &[&TokenPair],
        spec: BatchSpec,
        kind: Kind,
        device: Device,
        rotation_of: impl Fn(usize) -> Vec<usize>,
    ) -> Result<Self> {
        let mut builder = StreamBuilder::default();
        let (mut sequences, mut rows, mut ids) = (Vec::<Sequence>::new(), Vec::new(), Vec::new());
        // A prompt and its completions must be adjacent in the stream, so they are grouped first.
        let mut prompts: Vec<PromptMembers<'_>> = Vec::new();
        let mut known: HashMap<PromptKey<'_>, usize> = HashMap::new();
        let completions = spec.completions();
        for (i, pair) in pairs.iter().enumerate() {
            for side in completions.sides() {
                let rotation = rotation_of(pair.prompt.len() + pair.completion(side).len());
                let next = prompts.len();
                let at =
                    *known.entry((&pair.prompt, rotation, spec.apart.then_some(i))).or_insert(next);
                if at == next {
                    prompts.push((&pair.prompt, Vec::new()));
                }
                prompts[at].1.push((i, side));
            }
        }
        let mut of_pairs =
            Sides::of(|side| if completions.has(side) { vec![0; pairs.len()] } else { Vec::new() });
        for (prompt, members) in prompts {
            let root = builder.push_prompt(prompt, None)?;
            let last = builder.tokens() as i64 - 1;
            let mut laid_out: HashMap<(&[i64], bool), usize> = HashMap::new();
            for (i, side) in members {
                let (tokens, scored) = (pairs[i].completion(side), spec.logprobs.has(side));
                // A completion that is not scored can reuse the rows of an identical completion
                // that is scored. The states of the two are then bitwise equal.
                let known = laid_out
                    .get(&(tokens, true))
                    .or_else(|| if scored { None } else { laid_out.get(&(tokens, false)) });
                if let Some(sequence) = known {
                    of_pairs.get_mut(side)[i] = *sequence;
                    continue;
                }
                let start = builder.tokens() as i64;
                let segment = builder.push(tokens, Some(root))?;
                let from = ids.len();
                if scored {
                    // The last prompt token predicts the first token of the completion, and each
                    // token predicts the next one.
                    rows.push(last);
                    rows.extend(start..start + tokens.len() as i64 - 1);
                    ids.extend_from_slice(tokens);
                }
                laid_out.insert((tokens, scored), sequences.len());
                of_pairs.get_mut(side)[i] = sequences.len();
                sequences.push(Sequence {
                    chain: vec![root, segment],
                    prompt: prompt.len(),
                    scored: from..ids.len(),
                });
            }
        }
        let predicted = PredictedTokens {
            rows: Tensor::from_slice(&rows).f_to_device(device)?,
            ids: Tensor::from_slice(&ids).f_to_device(device)?,
        };
        let kind = if kind == Kind::Double { Kind::Double } else { Kind::Float };
        Ok(Self {
            indices: pairs.iter().map(|p| p.index).collect(),
            stream: builder.finish(device)?,
            predicted,
            sequences,
            of_pairs,
            shorter: pairs.iter().map(|p| p.chosen.len().min(p.rejected.len())).collect(),
            kind,
            rows: RefCell::default(),
        })
    }

    /// Number of pairs b.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// True if the batch has no pairs.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// The sequences of one side of the pairs.
    fn side(&self, side: Side) -> Result<impl ExactSizeIterator<Item = &Sequence>> {
        let of_pairs = self.of_pairs.get(side);
        if of_pairs.is_empty() {
            return Err(Error::internal(format!("the batch has no {} completions", side.name())));
        }
        Ok(of_pairs.iter().map(|i| &self.sequences[*i]))
    }

    /// The rows of a sequence, in the order of its tokens.
    fn rows_of(&self, sequence: &Sequence) -> Vec<usize> {
        let segments = self.stream.layout.segments();
        sequence.chain.iter().flat_map(|i| segments[*i].rows()).collect()
    }

    /// Selects the values of one side of the pairs from `values`, which has one entry per scored
    /// token.
    ///
    /// # Errors
    /// Fails if the batch does not contain that side, or if memory runs out.
    pub fn tokens_of(&self, values: &Tensor, side: Side) -> Result<TokenLogprobs> {
        let (mut index, mut owner, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        for (pair, sequence) in self.side(side)?.enumerate() {
            let scored = sequence.scored.clone();
            counts.push(scored.len() as f64);
            owner.extend(std::iter::repeat_n(pair as i64, scored.len()));
            index.extend(scored.map(|i| i as i64));
        }
        let device = values.device();
        Ok(TokenLogprobs::new(
            values.f_index_select(0, &Tensor::from_slice(&index).f_to_device(device)?)?,
            Tensor::from_slice(&owner).f_to_device(device)?,
            Tensor::from_slice(&counts).f_to_kind(values.kind())?.f_to_device(device)?,
        ))
    }

    /// Range of the scored tokens that belong to one side of pair `i`.
    ///
    /// # Errors
    /// Fails if the batch does not contain that side.
    pub fn scored(&self, i: usize, side: Side) -> Result<Range<usize>> {
        let sequence = self
            .side(side)?
            .nth(i)
            .ok_or_else(|| Error::internal(format!("the batch has no pair {i}")))?;
        Ok(sequence.scored.clone())
    }

    /// The dtype of pooled states and of the log-probabilities: float64 for a float64 model, else
    /// float32.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The rows that `pooling` averages over, for one side of the pairs.
    ///
    /// # Errors
    /// Fails if the batch does not contain that side, or if memory runs out.
    pub fn rows(&self, pooling: Pooling, side: Side) -> Result<Rc<Rows>> {
        if let Some(rows) = self.rows.borrow().get(&(pooling, side)) {
            return Ok(Rc::clone(rows));
        }
        let rows = Rc::new(self.find_rows(pooling, side)?);
        self.rows.borrow_mut().insert((pooling, side), Rc::clone(&rows));
        Ok(rows)
    }

    fn find_rows(&self, pooling: Pooling, side: Side) -> Result<Rows> {
        let device = self.stream.ids.device();
        let (mut index, mut owner, mut completion, mut last, mut counts) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (pair, sequence) in self.side(side)?.enumerate() {
            let rows = self.rows_of(sequence);
            let (prompt, own) = rows.split_at(sequence.prompt);
            let (prompt, own): (&[usize], &[usize]) = match pooling {
                Pooling::Completion => (&[], own),
                Pooling::All => (prompt, own),
                Pooling::Common => (prompt, &own[..self.shorter[pair]]),
                Pooling::Last => (&[], &own[own.len() - 1..]),
            };
            let n = prompt.len() + own.len();
            completion.extend(
                std::iter::repeat_n(false, prompt.len())
                    .chain(std::iter::repeat_n(true, own.len())),
            );
            index.extend(prompt.iter().chain(own).map(|r| *r as i64));
            owner.extend(std::iter::repeat_n(pair as i64, n));
            last.extend(std::iter::repeat_n(index.len() as i64 - 1, n));
            counts.push(n as f64);
        }
        let integers = |v: &[i64]| Tensor::from_slice(v).f_to_device(device);
        Ok(Rows {
            index: integers(&index)?,
            owner: integers(&owner)?,
            completion: Tensor::from_slice(&completion).f_to_device(device)?,
            last: integers(&last)?,
            counts: Tensor::from_slice(&counts).f_to_kind(self.kind)?.f_to_device(device)?,
        })
    }

    /// Pools `states` for one side of the pairs. The shape changes from `[n w]` to `[b w]`. The
    /// result has the dtype [`kind`](Self::kind).
    ///
    /// # Errors
    /// Fails if the batch does not contain that side, or if memory runs out.
    pub fn pool(&self, states: &Tensor, pooling: Pooling, side: Side) -> Result<Tensor> {
        let rows = self.rows(pooling, side)?;
        rows.mean(&rows.gather(states)?.f_to_kind(self.kind)?)
    }

    /// Returns the tokens of `rows`. Each token is scored with the logits at its own row, instead
    /// of the logits at the previous row.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn own_tokens(&self, rows: &Rows) -> Result<PredictedTokens> {
        Ok(PredictedTokens {
            rows: rows.index.shallow_clone(),
            ids: rows.gather(&self.stream.ids)?,
        })
    }

    /// Index of the pair (0 to b − 1) that each row of the stream belongs to, `[n]`, int64. Only
    /// valid if no two pairs share a row ([`BatchSpec::apart`]).
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn row_owner(&self) -> Result<Tensor> {
        let mut owner = vec![0i64; self.stream.layout.tokens()];
        for of_pairs in [&self.of_pairs.chosen, &self.of_pairs.rejected] {
            for (pair, sequence) in of_pairs.iter().enumerate() {
                for row in self.rows_of(&self.sequences[*sequence]) {
                    owner[row] = pair as i64;
                }
            }
        }
        Ok(Tensor::from_slice(&owner).f_to_device(self.stream.ids.device())?)
    }
}
