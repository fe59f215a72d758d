//! A batch as a flat stream of tokens, divided into segments. Each segment begins a sequence or
//! continues another segment.
//!
//! Embedding, norms, projections and the MLP act on a tensor `[n hidden]`, with one row per token
//! and no padding. A prompt that several completions share appears only once in the stream. Only
//! attention and positions depend on the layout.

use tch::{Device, Kind, Tensor};

use crate::api::PromptPlaces;
use crate::error::{Error, Result};

/// Consecutive tokens of one sequence, in the rows `start..start + len` of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Row of the first token.
    pub start: usize,
    /// Number of tokens.
    pub len: usize,
    /// Index of the segment that comes before this one in its sequence; `None` if the sequence
    /// starts here.
    pub continues: Option<usize>,
    /// True if the tokens belong to the prompt of every sequence that contains them.
    pub prompt: bool,
}

impl Segment {
    /// Row of the last token.
    pub fn last(&self) -> usize {
        self.start + self.len - 1
    }

    /// The rows of its tokens.
    pub fn rows(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.len
    }
}

/// The lengths of the shortest and of the longest sequence that contain a given segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceLengths {
    /// Length of the shortest sequence in tokens.
    pub shortest: usize,
    /// Length of the longest sequence in tokens.
    pub longest: usize,
}

/// The segments of a stream. Each segment is the child of the segment that it continues, so the
/// segments form trees. Each tree is contiguous, and parents come before their children.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    segments: Vec<Segment>,
    roots: Vec<usize>,
    past: usize,
}

impl Layout {
    /// All segments, in the order of the stream.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Number of tokens in the stream.
    pub fn tokens(&self) -> usize {
        self.segments.last().map_or(0, |s| s.start + s.len)
    }

    /// Number of cached tokens before the stream.
    pub fn past(&self) -> usize {
        self.past
    }

    /// Indices of the segments that begin a sequence.
    pub fn roots(&self) -> &[usize] {
        &self.roots
    }

    /// The segments of each tree, the root first.
    pub fn trees(&self) -> impl Iterator<Item = &[Segment]> {
        (0..self.roots.len()).map(|i| {
            &self.segments
                [self.roots[i]..self.roots.get(i + 1).copied().unwrap_or(self.segments.len())]
        })
    }

    /// Indices of segment `i` and of all segments before it in its sequence, the root first.
    pub fn chain(&self, i: usize) -> Vec<usize> {
        let mut chain = vec![i];
        while let Some(parent) = self.segments[chain[chain.len() - 1]].continues {
            chain.push(parent);
        }
        chain.reverse();
        chain
    }

    /// Number of tokens before segment `i` in its sequence, including cached tokens.
    pub fn offset(&self, i: usize) -> usize {
        self.segments[i].continues.map_or(self.past, |p| self.offset(p) + self.segments[p].len)
    }

    /// Returns, for each segment, the total lengths of the shortest and longest sequences that
    /// contain the segment.
    pub fn sequence_lengths(&self) -> Vec<SequenceLengths> {
        let mut lengths: Vec<Option<SequenceLengths>> = vec![None; self.segments.len()];
        // In reverse order, because descendants come after their ancestors.
        for i in (0..self.segments.len()).rev() {
            let own = *lengths[i].get_or_insert_with(|| {
                let end = self.offset(i) + self.segments[i].len;
                SequenceLengths { shortest: end, longest: end }
            });
            if let Some(parent) = self.segments[i].continues {
                let all = lengths[parent].get_or_insert(own);
                *all = SequenceLengths {
                    shortest: all.shortest.min(own.shortest),
                    longest: all.longest.max(own.longest),
                };
            }
        }
        lengths.into_iter().flatten().collect()
    }

    /// Number of tokens in the longest sequence, including cached tokens.
    pub fn longest(&self) -> usize {
        (0..self.segments.len()).map(|i| self.offset(i) + self.segments[i].len).max().unwrap_or(0)
    }
}

/// Builds a stream segment by segment.
#[derive(Debug, Default)]
pub struct StreamBuilder {
    ids: Vec<i64>,
    layout: Layout,
}

impl StreamBuilder {
    /// Starts a stream of one segment. The segment continues `past` cached tokens.
    pub fn continuing(past: usize) -> Self {
        Self { layout: Layout { past, ..Layout::default() }, ..Self::default() }
    }

    /// Appends a segment of a prompt, and returns its index.
    ///
    /// # Errors
    /// Fails in the same cases as [`push`](Self::push).
    pub fn push_prompt(&mut self, ids: &[i64], continues: Option<usize>) -> Result<usize> {
        let index = self.push(ids, continues)?;
        self.layout.segments[index].prompt = true;
        Ok(index)
    }

    /// Appends a segment that does not belong to a prompt, and returns its index.
    ///
    /// # Errors
    /// Fails if the segment is empty, or if it continues a segment of an earlier tree.
    pub fn push(&mut self, ids: &[i64], continues: Option<usize>) -> Result<usize> {
        if ids.is_empty() {
            return Err(Error::internal("cannot add an empty segment to a stream"));
        }
        if self.layout.past > 0 && !self.layout.segments.is_empty() {
            return Err(Error::internal(
                "a stream that continues a cache can only have one segment",
            ));
        }
        let index = self.layout.segments.len();
        match continues {
            None => self.layout.roots.push(index),
            Some(parent)
                if parent < index
                    && self.layout.roots.last().is_some_and(|root| parent >= *root) => {}
            Some(parent) => {
                return Err(Error::internal(format!(
                    "segment {index} continues segment {parent}, which is not in the last tree"
                )));
            }
        }
        self.layout.segments.push(Segment {
            start: self.ids.len(),
            len: ids.len(),
            continues,
            prompt: false,
        });
        self.ids.extend_from_slice(ids);
        Ok(index)
    }

    /// The segment with the index that `push` returned.
    pub fn segment(&self, index: usize) -> Segment {
        self.layout.segments[index]
    }

    /// Number of tokens so far.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Finishes the stream and moves it to `device`.
    ///
    /// # Errors
    /// Fails if the stream is empty, or if memory runs out.
    pub fn finish(self, device: Device) -> Result<Stream> {
        if self.ids.is_empty() {
            return Err(Error::internal("cannot build a stream without tokens"));
        }
        let positions: Vec<i64> = (0..self.layout.segments.len())
            .flat_map(|i| {
                let first = self.layout.offset(i) as i64;
                first..first + self.layout.segments[i].len as i64
            })
            .collect();
        Ok(Stream {
            ids: Tensor::from_slice(&self.ids).f_to_device(device)?,
            positions: Tensor::from_slice(&positions).f_to_device(device)?,
            bounds: self
                .ids
                .iter()
                .fold((i64::MAX, i64::MIN), |(low, high), id| (low.min(*id), high.max(*id))),
            layout: self.layout,
        })
    }
}

/// The tokens of a batch on a device.
#[derive(Debug)]
pub struct Stream {
    /// Token ids `[n]`, int64.
    pub ids: Tensor,
    /// Position of each token in its sequence, an int64 tensor `[n]`.
    pub positions: Tensor,
    /// The segments, and which segment each of them continues.
    pub layout: Layout,
    /// The smallest and the largest id, kept here because reading them from the device is slow.
    bounds: (i64, i64),
}

impl Stream {
    /// Checks that every id is valid for an embedding with `rows` rows. On a GPU, looking up an
    /// invalid id would make every later CUDA call in the process fail.
    ///
    /// # Errors
    /// Fails if an id is negative, or if it is `rows` or greater.
    pub fn check_ids(&self, rows: i64) -> Result<()> {
        let (low, high) = self.bounds;
        match [low, high].into_iter().find(|id| !(0..rows).contains(id)) {
            Some(id) => Err(Error::new(format!(
                "token ids must be from 0 to {} for this model, got {id}",
                rows - 1
            ))),
            None => Ok(()),
        }
    }

    /// The position of each row in its prompt, counted from the start and from the end of the
    /// prompt.
    ///
    /// # Errors
    /// Fails if prompts of different lengths share a segment, or if memory runs out.
    pub fn prompt_places(&self) -> Result<PromptPlaces> {
        let segments = self.layout.segments();
        let mut tokens_after: Vec<Option<usize>> = vec![None; segments.len()];
        // In reverse order, because descendants come after their ancestors.
        for (i, segment) in segments.iter().enumerate().rev().filter(|(_, segment)| segment.prompt)
        {
            let tokens = *tokens_after[i].get_or_insert(0) + segment.len;
            let Some(parent) = segment.continues else { continue };
            if *tokens_after[parent].get_or_insert(tokens) != tokens {
                return Err(Error::internal(
                    "prompts of different lengths share a segment, so its positions from the end \
                        are ambiguous",
                ));
            }
        }
        let (mut from_start, mut from_end) = (Vec::new(), Vec::new());
        for (i, segment) in segments.iter().enumerate() {
            if segment.prompt {
                let (first, len) = (self.layout.offset(i) as i64, segment.len as i64);
                let last = tokens_after[i].unwrap_or(0) as i64;
                from_start.extend(first..first + len);
                from_end.extend((last..last + len).rev());
            } else {
                from_start.extend(std::iter::repeat_n(-1, segment.len));
                from_end.extend(std::iter::repeat_n(-1, segment.len));
            }
        }
        let tensor = |v: &[i64]| Tensor::from_slice(v).f_to_device(self.ids.device());
        Ok(PromptPlaces { from_start: tensor(&from_start)?, from_end: tensor(&from_end)? })
    }

    /// Builds a stream with one segment per sequence from a right-padded batch. `ids` and `mask`
    /// are both `[b t]`; padding is left out of the stream.
    ///
    /// # Errors
    /// Fails if the shapes differ, if a row has no tokens, or if a row of the mask is not 1…10…0.
    pub fn from_padded(ids: &Tensor, mask: &Tensor, device: Device) -> Result<Self> {
        if ids.dim() != 2 || ids.size() != mask.size() {
            return Err(Error::new(format!(
                "ids and mask must both be [b t], got {:?} and {:?}",
                ids.size(),
                mask.size()
            )));
        }
        let mut builder = StreamBuilder::default();
        for row in 0..ids.size()[0] {
            let ids = Vec::<i64>::try_from(ids.get(row).to_kind(Kind::Int64))?;
            let mask = Vec::<i64>::try_from(mask.get(row).to_kind(Kind::Int64))?;
            let len = mask.iter().take_while(|m| **m == 1).count();
            if mask[len..].iter().any(|m| *m != 0) {
                return Err(Error::new(format!("row {row} of the mask is not right-padded")));
            }
            builder.push_prompt(&ids[..len], None)?;
        }
        builder.finish(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_positions_of_a_completion_continue_those_of_its_prompt() {
        let mut b = StreamBuilder::default();
        let prompt = b.push(&[5, 6, 7], None).unwrap();
        b.push(&[8, 9], Some(prompt)).unwrap();
        b.push(&[10], Some(prompt)).unwrap();
        b.push(&[1, 2], None).unwrap();
        let s = b.finish(Device::Cpu).unwrap();
        assert_eq!(Vec::<i64>::try_from(&s.positions).unwrap(), [0, 1, 2, 3, 4, 3, 0, 1]);
        assert_eq!(s.layout.trees().map(<[Segment]>::len).collect::<Vec<_>>(), [3, 1]);
        assert_eq!(s.layout.chain(2), [0, 2]);
        assert_eq!(s.layout.longest(), 5);
        let lengths: Vec<_> =
            s.layout.sequence_lengths().iter().map(|l| (l.shortest, l.longest)).collect();
        assert_eq!(lengths, [(4, 5), (5, 5), (4, 4), (2, 2)]);
    }

    #[test]
    fn places_in_a_prompt_are_counted_across_its_segments() {
        let mut b = StreamBuilder::default();
        let beginning = b.push_prompt(&[5, 6], None).unwrap();
        let rest = b.push_prompt(&[7, 8, 9], Some(beginning)).unwrap();
        b.push(&[1, 2], Some(rest)).unwrap();
        b.push(&[3], Some(beginning)).unwrap();
        let places = b.finish(Device::Cpu).unwrap().prompt_places().unwrap();
        assert_eq!(Vec::<i64>::try_from(&places.from_start).unwrap(), [0, 1, 2, 3, 4, -1, -1, -1]);
        assert_eq!(Vec::<i64>::try_from(&places.from_end).unwrap(), [4, 3, 2, 1, 0, -1, -1, -1]);
        let mut b = StreamBuilder::default();
        let shared = b.push_prompt(&[5, 6], None).unwrap();
        b.push_prompt(&[7], Some(shared)).unwrap();
        b.push_prompt(&[8, 9], Some(shared)).unwrap();
        assert!(b.finish(Device::Cpu).unwrap().prompt_places().is_err());
    }

    #[test]
    fn a_segment_cannot_continue_an_earlier_tree() {
        let mut b = StreamBuilder::default();
        let first = b.push(&[1], None).unwrap();
        b.push(&[2], None).unwrap();
        assert!(b.push(&[3], Some(first)).is_err());
        assert!(b.push(&[], None).is_err());
    }

    #[test]
    fn a_left_padded_batch_is_refused() {
        let ids = Tensor::from_slice(&[1i64, 2, 3, 4]).reshape([2, 2]);
        let mask = Tensor::from_slice(&[1i64, 1, 0, 1]).reshape([2, 2]);
        assert!(Stream::from_padded(&ids, &mask, Device::Cpu).is_err());
    }
}
