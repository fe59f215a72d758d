//! Pairs as a token stream: each prompt once, each completion once, whoever shares them.

use std::collections::HashMap;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::api::{Completions, Pooling, TokenLogprobs};
use crate::error::Result;
use crate::model::Predicted;
use crate::model::stream::{Stream, StreamBuilder};
use crate::text::TokenPair;

/// What of a pair a batch has to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holds {
    /// Completions whose tokens are scored.
    pub logprobs: Completions,
    /// Whether rejected completions are there although they are not scored.
    pub rejected: bool,
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
    /// Rows of the data set.
    pub indices: Vec<usize>,
    /// The tokens.
    pub stream: Stream,
    /// The scored tokens, completion after completion.
    pub predicted: Predicted,
    /// Tokens of both sequences of every pair, prompts counted twice, as TRL counts them.
    pub num_tokens: usize,
    completions: Vec<Completion>,
    chosen: Vec<usize>,
    rejected: Vec<usize>,
    kind: Kind,
}

impl PairBatch {
    /// Lays `pairs` out. `kind` is that of the numbers made from it.
    ///
    /// # Errors
    /// Where the device runs out of memory.
    pub fn new(pairs: &[&TokenPair], holds: Holds, kind: Kind, device: Device) -> Result<Self> {
        let mut builder = StreamBuilder::default();
        let (mut completions, mut rows, mut ids) = (Vec::<Completion>::new(), Vec::new(), Vec::new());
        // A tree has to stand together, so pairs are laid out prompt by prompt.
        let mut prompts: Vec<(&[i64], Vec<usize>)> = Vec::new();
        let mut known: HashMap<&[i64], usize> = HashMap::new();
        for (i, pair) in pairs.iter().enumerate() {
            let at = *known.entry(&pair.prompt).or_insert_with(|| {
                prompts.push((&pair.prompt, Vec::new()));
                prompts.len() - 1
            });
            prompts[at].1.push(i);
        }
        let (mut chosen, mut rejected) = (vec![0; pairs.len()], vec![0; pairs.len()]);
        let mut next = 0;
        for (prompt, members) in prompts {
            let root = builder.push(prompt, None)?;
            let last = builder.tokens() as i64 - 1;
            let mut seen: HashMap<(&[i64], bool), usize> = HashMap::new();
            let mut add = |tokens, scored: bool| -> Result<usize> {
                if let Some(at) = seen.get(&(tokens, scored)) {
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
            for i in members {
                chosen[i] = add(&pairs[i].chosen, holds.logprobs >= Completions::Chosen)?;
                if holds.rejected || holds.logprobs == Completions::Both {
                    rejected[i] = add(&pairs[i].rejected, holds.logprobs == Completions::Both)?;
                }
            }
        }
        let num_tokens = pairs.iter().map(|p| 2 * p.prompt.len() + p.chosen.len() + p.rejected.len()).sum();
        let predicted = Predicted { rows: Tensor::from_slice(&rows).f_to_device(device)?, ids: Tensor::from_slice(&ids).f_to_device(device)? };
        let kind = if kind == Kind::Double { Kind::Double } else { Kind::Float };
        Ok(Self {
            indices: pairs.iter().map(|p| p.index).collect(),
            stream: builder.finish(device)?,
            predicted,
            num_tokens,
            completions,
            chosen,
            rejected,
            kind,
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
        })
    }

    /// Scored tokens of pair `i`, by side.
    pub fn scored(&self, i: usize, rejected: bool) -> Range<usize> {
        self.completions[self.side(rejected)[i]].scored.clone()
    }

    /// States `[n w]` pooled for one side of the pairs, `[b w]`, in float32 (float64 in a float64 model).
    ///
    /// # Errors
    /// What libtorch says.
    pub fn pool(&self, states: &Tensor, pooling: Pooling, rejected: bool) -> Result<Tensor> {
        let device = states.device();
        let segments = self.stream.layout.segments();
        let index = |v: &[i64]| Tensor::from_slice(v).f_to_device(device);
        let of = |c: &usize| &self.completions[*c];
        let side = self.side(rejected);
        if pooling == Pooling::Last {
            let rows: Vec<i64> = side.iter().map(|c| segments[of(c).segment].last() as i64).collect();
            return Ok(states.f_index_select(0, &index(&rows)?)?.f_to_kind(self.kind)?);
        }
        let (mut rows, mut owner, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        for (pair, c) in side.iter().enumerate() {
            let prompt = if pooling == Pooling::All { segments[of(c).prompt].rows() } else { 0..0 };
            let tokens = prompt.chain(segments[of(c).segment].rows());
            let before = rows.len();
            rows.extend(tokens.map(|r| r as i64));
            owner.extend(std::iter::repeat_n(pair as i64, rows.len() - before));
            counts.push((rows.len() - before) as f64);
        }
        let picked = states.f_index_select(0, &index(&rows)?)?.f_to_kind(self.kind)?;
        let sums = Tensor::f_zeros([side.len() as i64, picked.size()[1]], (self.kind, device))?.f_index_add(0, &index(&owner)?, &picked)?;
        Ok(sums.f_div(&Tensor::from_slice(&counts).f_to_kind(self.kind)?.f_to_device(device)?.f_unsqueeze(1)?)?)
    }
}
