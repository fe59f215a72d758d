//! Pairs as a token stream: each prompt once, each completion once, whoever shares them.

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
use crate::model::{Model, Predicted};
use crate::text::TokenPair;

/// What a batch holds of its pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSpec {
    /// Completions whose tokens are scored.
    pub logprobs: Completions,
    /// Completions whose states are read.
    pub states: Completions,
    /// True if no two pairs share a row of the stream.
    pub apart: bool,
}

impl BatchSpec {
    /// Both completions of each pair, scored.
    pub const SCORED: Self =
        Self { logprobs: Completions::Both, states: Completions::Both, apart: false };

    /// The completions that the batch holds, at least the chosen one.
    fn held(self) -> Completions {
        let held = self.logprobs.or(self.states);
        if held.any() { held } else { Completions::Chosen }
    }
}

/// Rows of a stream that make up one side of b pairs, sequence after sequence.
#[derive(Debug)]
pub struct Rows {
    /// The rows `[m]`, int64.
    index: Tensor,
    /// The pair that each row belongs to `[m]`, int64, ascending.
    pub owner: Tensor,
    /// True for each token of a completion `[m]`, bool.
    pub completion: Tensor,
    /// Position among the m of the last row of the same pair `[m]`, int64.
    pub last: Tensor,
    /// Number of rows of each pair `[b]`.
    counts: Tensor,
}

impl Rows {
    /// These rows of `states` `[n …]`: `[m …]`.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn gather(&self, states: &Tensor) -> Result<Tensor> {
        Ok(states.f_index_select(0, &self.index)?)
    }

    /// The mean of each pair's rows of `values` `[m w]`: `[b w]`.
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
    /// The segments, each of which continues the one before.
    chain: Vec<usize>,
    /// The number of its first tokens that are the prompt.
    prompt: usize,
    /// Its tokens among the scored ones.
    scored: Range<usize>,
}

/// A batch of b pairs.
#[derive(Debug)]
pub struct PairBatch {
    /// The index of each pair, as in [`TokenPair::index`].
    pub indices: Vec<usize>,
    /// The tokens.
    pub stream: Stream,
    /// The scored tokens, completion after completion.
    pub predicted: Predicted,
    sequences: Vec<Sequence>,
    /// The sequence of each pair; empty for a side that the batch does not hold.
    of_pairs: Sides<Vec<usize>>,
    /// Completion tokens of the shorter side of each pair.
    shorter: Vec<usize>,
    kind: Kind,
    /// Rows that were asked for: the same ones serve every tap and every adapted module.
    rows: RefCell<HashMap<(Pooling, Side), Rc<Rows>>>,
}

/// Divides pairs into passes in their order. A pass holds at most `tokens` tokens, or one pair.
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

/// The conditions for sharing a prompt: its tokens, the rotation of its sequences, and the number
/// of the pair if pairs stay apart.
type PromptKey<'a> = (&'a [i64], Vec<usize>, Option<usize>);

/// A prompt with the number and the side of each pair that continues it.
type PromptMembers<'a> = (&'a [i64], Vec<(usize, Side)>);

impl PairBatch {
    /// Lays `pairs` out for `model`.
    ///
    /// # Errors
    /// Fails if the device runs out of memory.
    pub fn of(pairs: &[&TokenPair], spec: BatchSpec, model: &Model) -> Result<Self> {
        Self::new(pairs, spec, model.kind(), model.device(), |tokens| model.rotation_of(tokens))
    }

    /// Lays `pairs` out. `kind` is that of the numbers made from it. Sequences only share a prompt
    /// if `rotation_of` gives the same for their lengths, because the states of the prompt depend
    /// on the rotation.
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
        // A tree has to stand together, so completions are laid out prompt by prompt.
        let mut prompts: Vec<PromptMembers<'_>> = Vec::new();
        let mut known: HashMap<PromptKey<'_>, usize> = HashMap::new();
        let held = spec.held();
        for (i, pair) in pairs.iter().enumerate() {
            for side in held.sides() {
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
            Sides::of(|side| if held.has(side) { vec![0; pairs.len()] } else { Vec::new() });
        for (prompt, members) in prompts {
            let root = builder.push_prompt(prompt, None)?;
            let last = builder.tokens() as i64 - 1;
            let mut laid_out: HashMap<(&[i64], bool), usize> = HashMap::new();
            for (i, side) in members {
                let (tokens, scored) = (pairs[i].completion(side), spec.logprobs.has(side));
                // A completion that is not scored uses the rows of one that is, so that both have
                // the same states to the bit.
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
                    // The prompt's last token predicts the first one; every later one is predicted
                    // by the one before.
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
        let predicted = Predicted {
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

    /// Whether it holds no pair.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// The sequences of one side of the pairs.
    fn side(&self, side: Side) -> Result<impl ExactSizeIterator<Item = &Sequence>> {
        let of_pairs = self.of_pairs.get(side);
        if of_pairs.is_empty() {
            return Err(Error::internal(format!("the batch holds no {} completions", side.name())));
        }
        Ok(of_pairs.iter().map(|i| &self.sequences[*i]))
    }

    /// The rows of a sequence, in its order.
    fn rows_of(&self, sequence: &Sequence) -> Vec<usize> {
        let segments = self.stream.layout.segments();
        sequence.chain.iter().flat_map(|i| segments[*i].rows()).collect()
    }

    /// Values of the scored tokens `[m]` for one side of the pairs.
    ///
    /// # Errors
    /// Fails if the batch does not hold that side, or if memory runs out.
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

    /// The scored tokens of one side of pair `i`.
    ///
    /// # Errors
    /// Fails if the batch does not hold that side.
    pub fn scored(&self, i: usize, side: Side) -> Result<Range<usize>> {
        let sequence = self
            .side(side)?
            .nth(i)
            .ok_or_else(|| Error::internal(format!("the batch has no pair {i}")))?;
        Ok(sequence.scored.clone())
    }

    /// The kind of the numbers that are made from the stream: float32, or float64 in a float64
    /// model.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The rows that `pooling` looks at on one side of the pairs.
    ///
    /// # Errors
    /// Fails if the batch does not hold that side, or if memory runs out.
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

    /// States `[n w]` pooled for one side of the pairs, `[b w]`, in float32 (float64 in a float64
    /// model).
    ///
    /// # Errors
    /// Fails if the batch does not hold that side, or if memory runs out.
    pub fn pool(&self, states: &Tensor, pooling: Pooling, side: Side) -> Result<Tensor> {
        let rows = self.rows(pooling, side)?;
        rows.mean(&rows.gather(states)?.f_to_kind(self.kind)?)
    }

    /// The tokens of `rows`, each at its own row instead of the one before.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn own_tokens(&self, rows: &Rows) -> Result<Predicted> {
        Ok(Predicted { rows: rows.index.shallow_clone(), ids: rows.gather(&self.stream.ids)? })
    }

    /// Which pair each row of the stream belongs to `[n]`, int64, in a batch whose pairs are apart.
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
