//! Pairs as a token stream: each prompt once, each completion once, whoever shares them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use tch::{Device, Kind, Tensor};

#[cfg(test)]
mod tests;

use crate::api::{Completions, Pooling, TokenLogprobs};
use crate::error::Result;
use crate::model::stream::{Stream, StreamBuilder};
use crate::model::{Model, Predicted};
use crate::text::TokenPair;

/// What of a pair a batch has to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holds {
    /// Completions whose tokens are scored.
    pub logprobs: Completions,
    /// Whether rejected completions are there although they are not scored.
    pub rejected: bool,
    /// Whether pairs share nothing, so that every row of the stream belongs to one of them.
    pub apart: bool,
}

/// Rows of a stream that make up one side of b pairs, sequence after sequence.
#[derive(Debug)]
pub struct Rows {
    /// The rows `[m]`, int64.
    index: Tensor,
    /// Which pair each belongs to `[m]`, int64, ascending.
    pub owner: Tensor,
    /// Whether each is a token of the completion `[m]`, bool.
    pub completion: Tensor,
    /// Where among the m the last one of the same pair stands `[m]`, int64.
    pub last: Tensor,
    /// How many each pair has `[b]`.
    counts: Tensor,
}

impl Rows {
    /// These rows of `states` `[n …]`: `[m …]`.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn gather(&self, states: &Tensor) -> Result<Tensor> {
        Ok(states.f_index_select(0, &self.index)?)
    }

    /// The mean of each pair's rows of `values` `[m w]`: `[b w]`.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn mean(&self, values: &Tensor) -> Result<Tensor> {
        let (b, kind) = (self.counts.size()[0], values.kind());
        let sums = Tensor::f_zeros([b, values.size()[1]], (kind, values.device()))?.f_index_add(0, &self.owner, values)?;
        Ok(sums.f_div(&self.counts.f_to_kind(kind)?.f_unsqueeze(1)?)?)
    }
}

/// One completion of the stream.
#[derive(Clone, Debug)]
struct Completion {
    prompt: usize,
    segment: usize,
    /// Its tokens among the scored ones.
    scored: Range<usize>,
}

/// A batch of b pairs over c different completions.
#[derive(Debug)]
pub struct PairBatch {
    /// The index of each pair, as in [`TokenPair::index`].
    pub indices: Vec<usize>,
    /// The tokens.
    pub stream: Stream,
    /// The scored tokens, completion after completion.
    pub predicted: Predicted,
    completions: Vec<Completion>,
    chosen: Vec<usize>,
    rejected: Vec<usize>,
    kind: Kind,
    /// Rows that were asked for: the same ones serve every tap and every adapted module.
    rows: RefCell<HashMap<(Pooling, bool), Rc<Rows>>>,
}

/// The conditions for sharing a prompt: its tokens, the rotation of its sequences, and the number of the pair if pairs
/// stay apart.
type PromptKey<'a> = (&'a [i64], Vec<usize>, Option<usize>);

/// A prompt with the sequences that continue it: the number of each pair, and true for its rejected completion.
type PromptMembers<'a> = (&'a [i64], Vec<(usize, bool)>);

impl PairBatch {
    /// Lays `pairs` out for `model`.
    ///
    /// # Errors
    /// Fails if the device runs out of memory.
    pub fn of(pairs: &[&TokenPair], holds: Holds, model: &Model) -> Result<Self> {
        Self::new(pairs, holds, model.kind(), model.device(), |tokens| model.rotation_of(tokens))
    }

    /// Lays `pairs` out. `kind` is that of the numbers made from it. Sequences only share a prompt if `rotation_of` gives
    /// the same for their lengths, because the states of the prompt depend on the rotation.
    ///
    /// # Errors
    /// Fails if the device runs out of memory.
    pub(super) fn new(pairs: &[&TokenPair], holds: Holds, kind: Kind, device: Device, rotation_of: impl Fn(usize) -> Vec<usize>) -> Result<Self> {
        let mut builder = StreamBuilder::default();
        let (mut completions, mut rows, mut ids) = (Vec::<Completion>::new(), Vec::new(), Vec::new());
        // A tree has to stand together, so completions are laid out prompt by prompt.
        let mut prompts: Vec<PromptMembers<'_>> = Vec::new();
        let mut known: HashMap<PromptKey<'_>, usize> = HashMap::new();
        let holds_rejected = holds.rejected || holds.logprobs == Completions::Both;
        for (i, pair) in pairs.iter().enumerate() {
            for (side, completion) in [(false, &pair.chosen), (true, &pair.rejected)].into_iter().filter(|(side, _)| !side || holds_rejected) {
                let rotation = rotation_of(pair.prompt.len() + completion.len());
                let next = prompts.len();
                let at = *known.entry((&pair.prompt, rotation, holds.apart.then_some(i))).or_insert(next);
                if at == next {
                    prompts.push((&pair.prompt, Vec::new()));
                }
                prompts[at].1.push((i, side));
            }
        }
        let (mut chosen, mut rejected) = (vec![0; pairs.len()], vec![0; pairs.len()]);
        let mut next = 0;
        for (prompt, members) in prompts {
            let root = builder.push(prompt, None)?;
            let last = builder.tokens() as i64 - 1;
            let mut seen: HashMap<(&[i64], bool), usize> = HashMap::new();
            let mut add = |tokens, scored: bool| -> Result<usize> {
                // A completion that is not scored uses the rows of one that is, so that both have the same states to the bit.
                if let Some(at) = seen.get(&(tokens, true)).or_else(|| if scored { None } else { seen.get(&(tokens, false)) }) {
                    return Ok(*at);
                }
                let start = builder.tokens() as i64;
                let segment = builder.push(tokens, Some(root))?;
                let from = ids.len();
                if scored {
                    // The prompt's last token predicts the first one; every later one is predicted by the one before.
                    rows.push(last);
                    rows.extend(start..start + tokens.len() as i64 - 1);
                    ids.extend_from_slice(tokens);
                }
                completions.push(Completion { prompt: root, segment, scored: from..ids.len() });
                seen.insert((tokens, scored), next);
                next += 1;
                Ok(next - 1)
            };
            for (i, side) in members {
                if side {
                    rejected[i] = add(&pairs[i].rejected, holds.logprobs == Completions::Both)?;
                } else {
                    chosen[i] = add(&pairs[i].chosen, holds.logprobs >= Completions::Chosen)?;
                }
            }
        }
        let predicted = Predicted { rows: Tensor::from_slice(&rows).f_to_device(device)?, ids: Tensor::from_slice(&ids).f_to_device(device)? };
        let kind = if kind == Kind::Double { Kind::Double } else { Kind::Float };
        Ok(Self {
            indices: pairs.iter().map(|p| p.index).collect(),
            stream: builder.finish(device)?,
            predicted,
            completions,
            chosen,
            rejected,
            kind,
            rows: RefCell::default(),
        })
    }

    /// b.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether it holds no pair.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    fn side(&self, rejected: bool) -> &[usize] {
        if rejected { &self.rejected } else { &self.chosen }
    }

    /// Values of the scored tokens `[m]` as one side of the pairs.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn tokens_of(&self, values: &Tensor, rejected: bool) -> Result<TokenLogprobs> {
        let (mut index, mut owner, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        for (pair, completion) in self.side(rejected).iter().enumerate() {
            let scored = self.completions[*completion].scored.clone();
            counts.push(scored.len() as f64);
            owner.extend(std::iter::repeat_n(pair as i64, scored.len()));
            index.extend(scored.map(|i| i as i64));
        }
        let device = values.device();
        Ok(TokenLogprobs {
            per_token: values.f_index_select(0, &Tensor::from_slice(&index).f_to_device(device)?)?,
            owner: Tensor::from_slice(&owner).f_to_device(device)?,
            tokens: Tensor::from_slice(&counts).f_to_kind(values.kind())?.f_to_device(device)?,
            log_collision: None,
        })
    }

    /// Scored tokens of pair `i`, by side.
    pub fn scored(&self, i: usize, rejected: bool) -> Range<usize> {
        self.completions[self.side(rejected)[i]].scored.clone()
    }

    /// The kind of the numbers that are made from the stream: float32, or float64 in a float64 model.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The rows that `pooling` looks at on one side of the pairs.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn rows(&self, pooling: Pooling, rejected: bool) -> Result<Rc<Rows>> {
        if let Some(rows) = self.rows.borrow().get(&(pooling, rejected)) {
            return Ok(Rc::clone(rows));
        }
        let rows = Rc::new(self.find_rows(pooling, rejected)?);
        self.rows.borrow_mut().insert((pooling, rejected), Rc::clone(&rows));
        Ok(rows)
    }

    fn find_rows(&self, pooling: Pooling, rejected: bool) -> Result<Rows> {
        let device = self.stream.ids.device();
        let segments = self.stream.layout.segments();
        let (mut index, mut owner, mut completion, mut last, mut counts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (pair, c) in self.side(rejected).iter().enumerate() {
            let of = &self.completions[*c];
            let rows = segments[of.segment].rows();
            let shorter = || segments[self.completions[self.chosen[pair]].segment].len.min(segments[self.completions[self.rejected[pair]].segment].len);
            let (prompt, own) = match pooling {
                Pooling::Completion => (0..0, rows),
                Pooling::All | Pooling::Original => (segments[of.prompt].rows(), rows),
                Pooling::Common => (segments[of.prompt].rows(), rows.start..rows.start + shorter()),
                Pooling::Last => (0..0, rows.end - 1..rows.end),
            };
            let n = prompt.len() + own.len();
            completion.extend(std::iter::repeat_n(false, prompt.len()).chain(std::iter::repeat_n(true, own.len())));
            index.extend(prompt.chain(own).map(|r| r as i64));
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

    /// States `[n w]` pooled for one side of the pairs, `[b w]`, in float32 (float64 in a float64 model). `Original`
    /// pools as `All`: it looks at transformed states, which these are not.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn pool(&self, states: &Tensor, pooling: Pooling, rejected: bool) -> Result<Tensor> {
        let rows = self.rows(pooling, rejected)?;
        rows.mean(&rows.gather(states)?.f_to_kind(self.kind)?)
    }

    /// The tokens of `rows`, each at its own row instead of the one before.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn own_tokens(&self, rows: &Rows) -> Result<Predicted> {
        Ok(Predicted { rows: rows.index.shallow_clone(), ids: rows.gather(&self.stream.ids)? })
    }

    /// Which pair each row of the stream belongs to `[n]`, int64, in a batch whose pairs are apart.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn row_owner(&self) -> Result<Tensor> {
        let segments = self.stream.layout.segments();
        let mut owner = vec![0i64; self.stream.layout.tokens()];
        for pair in 0..self.len() {
            for c in [self.chosen[pair], self.rejected[pair]] {
                let of = &self.completions[c];
                for row in segments[of.prompt].rows().chain(segments[of.segment].rows()) {
                    owner[row] = pair as i64;
                }
            }
        }
        Ok(Tensor::from_slice(&owner).f_to_device(self.stream.ids.device())?)
    }
}
