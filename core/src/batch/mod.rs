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
use crate::model::{Adapted, Model, PredictedTokens};
use crate::text::TokenPair;

/// Selects the sequences of a batch that may share rows of the stream. A shared row is computed
/// once, and receives the gradients of all its sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// All sequences share their common beginnings, even sequences of different pairs.
    Prefixes,
    /// Sequences with the same prompt share the prompt and the common beginnings of their
    /// completions. For adapters that depend on the position in the prompt.
    SamePrompt,
    /// The two sequences of a pair share the prompt. For methods that read the gradients of each
    /// pair.
    WithinPair,
    /// No sequences share rows. Tests compare the other choices with this one.
    Nothing,
}

impl Sharing {
    /// Returns the choice with the most sharing that gives exact results with this adapter.
    pub fn for_adapted(adapted: Option<&Adapted>) -> Self {
        if adapted.is_some_and(Adapted::changes_blocks) { Self::SamePrompt } else { Self::Prefixes }
    }
}

/// Specifies which completions of each pair a batch contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSpec {
    /// Completions whose tokens are scored.
    pub logprobs: Completions,
    /// Completions whose states are read.
    pub states: Completions,
    /// The sequences that may share rows of the stream.
    pub sharing: Sharing,
}

impl BatchSpec {
    /// A batch that contains both completions of each pair and scores all of them.
    pub const SCORED: Self =
        Self { logprobs: Completions::Both, states: Completions::Both, sharing: Sharing::Prefixes };

    /// The completions that are scored or whose states are read. If there are none, the chosen
    /// completions.
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

/// The tokens after the first one of b sequences.
#[derive(Debug)]
pub struct SequenceTokens {
    /// The tokens, and the rows before them.
    pub predicted: PredictedTokens,
    /// Index of the pair (0 to b − 1) that each token belongs to, `[m]`, int64, ascending.
    pub owner: Tensor,
    /// Number of tokens of each pair, `[b]`, with the dtype of the scores.
    pub counts: Tensor,
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
    /// Indices of the segments. Each segment continues the previous one.
    chain: Vec<usize>,
    /// Number of prompt tokens. The prompt comes first.
    prompt: usize,
    /// Indices of the completion tokens among the scored tokens. Empty if the sequence is not
    /// scored.
    scored: Vec<i64>,
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
    /// Index of each pair's sequence. Empty for a side that is not in the batch.
    of_pairs: Sides<Vec<usize>>,
    /// For each pair, the number of tokens in the shorter completion.
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

impl PairBatch {
    /// Lays out `pairs` for `model`.
    ///
    /// # Errors
    /// Fails if the device runs out of memory.
    pub fn of(pairs: &[&TokenPair], spec: BatchSpec, model: &Model) -> Result<Self> {
        Self::new(pairs, spec, model.kind(), model.device(), |tokens| model.rotation_of(tokens))
    }

    /// Lays out `pairs` for a model with weights of dtype `kind`. `rotation_of` is
    /// [`Model::rotation_of`], which identifies the rotary frequencies for the length of a
    /// sequence. Sequences share a prompt only if their frequencies are equal, because the
    /// frequencies change the states of the prompt.
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
        let completions = spec.completions();
        // Sequences that may share rows must be adjacent in the stream, so they are grouped first.
        let mut groups: Vec<Vec<Planned>> = Vec::new();
        let mut known: HashMap<GroupKey<'_>, usize> = HashMap::new();
        for (i, pair) in pairs.iter().enumerate() {
            for side in completions.sides() {
                let tokens = [&pair.prompt[..], pair.completion(side)].concat();
                let owner = match spec.sharing {
                    Sharing::Prefixes | Sharing::SamePrompt => None,
                    Sharing::WithinPair => Some((i, None)),
                    Sharing::Nothing => Some((i, Some(side))),
                };
                let prompt = (spec.sharing != Sharing::Prefixes).then_some(&pair.prompt[..]);
                let key = (rotation_of(tokens.len()), prompt, owner);
                let next = groups.len();
                let group = *known.entry(key).or_insert(next);
                if group == next {
                    groups.push(Vec::new());
                }
                let (prompt, scored) = (pair.prompt.len(), spec.logprobs.has(side));
                let equal = groups[group]
                    .iter_mut()
                    .find(|other| other.prompt == prompt && other.tokens == tokens);
                match equal {
                    Some(other) => {
                        other.members.push((i, side));
                        other.scored |= scored;
                    }
                    None => groups[group].push(Planned {
                        tokens,
                        prompt,
                        scored,
                        members: vec![(i, side)],
                    }),
                }
            }
        }
        let mut of_pairs =
            Sides::of(|side| if completions.has(side) { vec![0; pairs.len()] } else { Vec::new() });
        let mut builder = StreamBuilder::default();
        let (mut sequences, mut rows, mut ids) = (Vec::<Sequence>::new(), Vec::new(), Vec::new());
        for group in groups {
            let mut chains = vec![Vec::new(); group.len()];
            let all: Vec<usize> = (0..group.len()).collect();
            if spec.sharing == Sharing::Prefixes {
                lay_out(&mut builder, &group, &all, 0, MIN_SHARED, &mut chains)?;
            } else {
                let prompt = group[0].prompt;
                let root = builder.push_prompt(&group[0].tokens[..prompt], None)?;
                chains.iter_mut().for_each(|chain| chain.push(root));
                let least = match spec.sharing {
                    Sharing::Prefixes | Sharing::SamePrompt => MIN_SHARED,
                    Sharing::WithinPair | Sharing::Nothing => usize::MAX,
                };
                lay_out(&mut builder, &group, &all, prompt, least, &mut chains)?;
            }
            // Index of each scored token, by its row and id.
            let mut indices: HashMap<(usize, i64), i64> = HashMap::new();
            for (planned, chain) in group.into_iter().zip(chains) {
                let mut scored = Vec::new();
                if planned.scored {
                    let stream: Vec<usize> =
                        chain.iter().flat_map(|i| builder.segment(*i).rows()).collect();
                    // Each token is predicted by the token before it.
                    let predicting = &stream[planned.prompt - 1..];
                    for (row, id) in predicting.iter().zip(&planned.tokens[planned.prompt..]) {
                        scored.push(*indices.entry((*row, *id)).or_insert_with(|| {
                            rows.push(*row as i64);
                            ids.push(*id);
                            ids.len() as i64 - 1
                        }));
                    }
                }
                for (i, side) in planned.members {
                    of_pairs.get_mut(side)[i] = sequences.len();
                }
                sequences.push(Sequence { chain, prompt: planned.prompt, scored });
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

    /// Selects the values of one side of the pairs. `values` has one entry per scored token.
    ///
    /// # Errors
    /// Fails if the batch does not contain that side, or if memory runs out.
    pub fn tokens_of(&self, values: &Tensor, side: Side) -> Result<TokenLogprobs> {
        let (mut index, mut owner, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        for (pair, sequence) in self.side(side)?.enumerate() {
            counts.push(sequence.scored.len() as f64);
            owner.extend(std::iter::repeat_n(pair as i64, sequence.scored.len()));
            index.extend_from_slice(&sequence.scored);
        }
        let device = values.device();
        Ok(TokenLogprobs::new(
            values.f_index_select(0, &Tensor::from_slice(&index).f_to_device(device)?)?,
            Tensor::from_slice(&owner).f_to_device(device)?,
            Tensor::from_slice(&counts).f_to_kind(values.kind())?.f_to_device(device)?,
        ))
    }

    /// Indices of one completion of pair `i` among the scored tokens, `[tokens]`.
    ///
    /// # Errors
    /// Fails if the batch does not contain that side or that pair.
    pub fn scored(&self, i: usize, side: Side) -> Result<&[i64]> {
        let sequence = self
            .side(side)?
            .nth(i)
            .ok_or_else(|| Error::internal(format!("the batch has no pair {i}")))?;
        Ok(&sequence.scored)
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

    /// Returns the tokens of `rows`. A token is scored with the logits at its own row, not with the
    /// logits at the previous row.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn own_tokens(&self, rows: &Rows) -> Result<PredictedTokens> {
        Ok(PredictedTokens {
            rows: rows.index.shallow_clone(),
            ids: rows.gather(&self.stream.ids)?,
        })
    }

    /// Returns every token after the first one of the sequences on one side of the pairs, including
    /// the tokens of the prompts.
    ///
    /// # Errors
    /// Fails if the batch does not contain that side, or if memory runs out.
    pub fn sequence_tokens(&self, side: Side) -> Result<SequenceTokens> {
        let (mut before, mut own) = (Vec::new(), Vec::new());
        let (mut owner, mut counts) = (Vec::new(), Vec::new());
        for (pair, sequence) in self.side(side)?.enumerate() {
            let rows: Vec<i64> = self.rows_of(sequence).into_iter().map(|row| row as i64).collect();
            let n = rows.len() - 1;
            before.extend_from_slice(&rows[..n]);
            own.extend_from_slice(&rows[1..]);
            owner.extend(std::iter::repeat_n(pair as i64, n));
            counts.push(n as f64);
        }
        let device = self.stream.ids.device();
        let integers = |v: &[i64]| Tensor::from_slice(v).f_to_device(device);
        Ok(SequenceTokens {
            predicted: PredictedTokens {
                rows: integers(&before)?,
                ids: self.stream.ids.f_index_select(0, &integers(&own)?)?,
            },
            owner: integers(&owner)?,
            counts: Tensor::from_slice(&counts).f_to_kind(self.kind)?.f_to_device(device)?,
        })
    }

    /// Index of the pair (0 to b − 1) that each row of the stream belongs to, `[n]`, int64. Only
    /// valid if no two pairs share a row ([`Sharing::WithinPair`]).
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

/// Minimum number of tokens in a shared segment, except at the end of a common prompt. Every
/// segment adds a call to attention in each block. For fewer tokens, computing them twice is
/// cheaper.
const MIN_SHARED: usize = 8;

/// Sequences with the same key may share rows. The first element is the rotation of the sequence.
/// The other elements are the prompt, the index of the pair and the side. They are `None` if they
/// may differ.
type GroupKey<'a> = (Vec<usize>, Option<&'a [i64]>, Option<(usize, Option<Side>)>);

/// A sequence that is not in the stream yet.
struct Planned {
    /// The prompt and the completion.
    tokens: Vec<i64>,
    /// Number of tokens of the prompt.
    prompt: usize,
    scored: bool,
    /// The pairs and sides that have this sequence.
    members: Vec<(usize, Side)>,
}

/// Appends the tokens of the sequences `which` to the stream, starting at the position `from`. Adds
/// the new segments to the chains of the sequences. The sequences must be equal before `from`. They
/// share a segment only if it has at least `least` tokens, if it ends their common prompt, or if
/// the sequences are equal.
fn lay_out(
    builder: &mut StreamBuilder,
    group: &[Planned],
    which: &[usize],
    from: usize,
    least: usize,
    chains: &mut [Vec<usize>],
) -> Result<()> {
    let first = &group[which[0]].tokens;
    let common = which.iter().fold(first.len(), |common, i| {
        let equal = first.iter().zip(&group[*i].tokens).take_while(|(a, b)| a == b).count();
        common.min(equal)
    });
    let too_short = common - from < least;
    // Short prompts are shared too.
    let prompt = group[which[0]].prompt;
    if too_short
        && least < usize::MAX
        && (from + 1..=common).contains(&prompt)
        && which.iter().all(|i| group[*i].prompt == prompt)
    {
        push_shared(builder, group, which, from..prompt, chains)?;
        return lay_out(builder, group, which, prompt, least, chains);
    }
    // Groups the sequences by their first token after the common beginning. The key `None` is for
    // sequences that end there.
    let mut branches: Vec<(Option<i64>, Vec<usize>)> = Vec::new();
    for i in which {
        let next = group[*i].tokens.get(common).copied();
        match branches.iter_mut().find(|(token, _)| *token == next) {
            Some((_, members)) => members.push(*i),
            None => branches.push((next, vec![*i])),
        }
    }
    let is_last = branches.len() == 1;
    if !too_short || is_last {
        push_shared(builder, group, which, from..common, chains)?;
    }
    if is_last {
        return Ok(());
    }
    let from = if too_short { from } else { common };
    for (next, members) in branches {
        if too_short || next.is_some() {
            lay_out(builder, group, &members, from, least, chains)?;
        }
    }
    Ok(())
}

/// Appends the tokens at the positions `range` as one segment. The sequences `which` must have the
/// same tokens there.
fn push_shared(
    builder: &mut StreamBuilder,
    group: &[Planned],
    which: &[usize],
    range: Range<usize>,
    chains: &mut [Vec<usize>],
) -> Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    let tokens = &group[which[0]].tokens[range.clone()];
    let parent = chains[which[0]].last().copied();
    let segment = if which.iter().all(|i| group[*i].prompt >= range.end) {
        builder.push_prompt(tokens, parent)?
    } else {
        builder.push(tokens, parent)?
    };
    which.iter().for_each(|i| chains[*i].push(segment));
    Ok(())
}
