//! The values of one quantity for the pairs of a batch, in the memory of the host.

use std::borrow::Borrow;

use tch::{Device, Kind, Tensor};

use super::Quantity;
use crate::api::{Completions, Pooling, Side, Sides, Site};
use crate::batch::{BatchSpec, PairBatch, Sharing};
use crate::error::{Error, Result, catch_out_of_memory};
use crate::model::pass::Request;
use crate::model::{Adapted, Detail, Model};
use crate::text::TokenPair;

/// The values of one side: the bytes of all pairs, one pair after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rows {
    pub(super) bytes: Vec<u8>,
    /// Offset of the end of each pair in `bytes`.
    ends: Vec<usize>,
}

impl Rows {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
    }

    fn row(&self, pair: usize) -> Option<&[u8]> {
        let start = match pair {
            0 => 0,
            _ => *self.ends.get(pair - 1)?,
        };
        self.bytes.get(start..*self.ends.get(pair)?)
    }
}

/// The values of one [`Quantity`] for the pairs of a batch. Log-probabilities have one number per
/// token, and pooled states one number per coordinate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Values {
    pub(super) kind: Kind,
    pub(super) sides: Sides<Rows>,
}

impl Values {
    /// Copies the log-probabilities of the scored tokens of `batch`, `[m]`, from the device. The
    /// values of a side that is not in `sides` are empty.
    ///
    /// # Errors
    /// Fails if the batch does not contain a side, or if memory runs out.
    pub fn of_logprobs(batch: &PairBatch, logprobs: &Tensor, sides: Completions) -> Result<Self> {
        let (kind, bytes) = host(logprobs)?;
        let size = kind.elt_size_in_bytes();
        let mut values = Self { kind, sides: Sides::default() };
        for side in sides.sides() {
            let rows = values.sides.get_mut(side);
            for pair in 0..batch.len() {
                let scored = batch.scored(pair, side)?.iter().map(|k| *k as usize * size);
                let row: Vec<u8> = scored.flat_map(|at| bytes[at..at + size].to_vec()).collect();
                rows.push(&row);
            }
        }
        Ok(values)
    }

    /// Pools `states`, `[n w]`, over the tokens of each completion of `batch`, and copies the
    /// result from the device. The values of a side that is not in `sides` are empty.
    ///
    /// # Errors
    /// Fails if the batch does not contain a side, or if memory runs out.
    pub fn of_states(
        batch: &PairBatch,
        states: &Tensor,
        pooling: Pooling,
        sides: Completions,
    ) -> Result<Self> {
        let mut values = Self { kind: batch.kind(), sides: Sides::default() };
        for side in sides.sides() {
            let (kind, bytes) = host(&batch.pool(states, pooling, side)?)?;
            values.kind = kind;
            let rows = values.sides.get_mut(side);
            bytes.chunks_exact(bytes.len() / batch.len()).for_each(|row| rows.push(row));
        }
        Ok(values)
    }

    /// Combines the bytes of both sides, which were read from a file. Returns `None` if their
    /// lengths do not fit to the quantity and the pairs of the block.
    pub(super) fn of_bytes<P: Borrow<TokenPair>>(
        kind: Kind,
        bytes: Sides<Vec<u8>>,
        quantity: &Quantity,
        pairs: &[P],
    ) -> Option<Self> {
        let size = kind.elt_size_in_bytes();
        let width = bytes.chosen.len() / pairs.len().max(1);
        let rows = |(side, bytes): (Side, Vec<u8>)| {
            let mut end = 0;
            let ends: Vec<usize> = pairs
                .iter()
                .map(|pair| {
                    end += match quantity {
                        Quantity::Logprobs => pair.borrow().completion(side).len() * size,
                        Quantity::State(..) => width,
                    };
                    end
                })
                .collect();
            (end == bytes.len()).then_some(Rows { bytes, ends })
        };
        let Sides { chosen, rejected } = bytes;
        let chosen = rows((Side::Chosen, chosen))?;
        Some(Self { kind, sides: Sides { chosen, rejected: rows((Side::Rejected, rejected))? } })
    }

    /// Appends the values to `out`, for [`read`](Self::read).
    pub fn write(&self, out: &mut Vec<u8>) {
        let Sides { chosen, rejected } = &self.sides;
        out.push(u8::from(self.kind == Kind::Double));
        for rows in [chosen, rejected] {
            out.extend((rows.bytes.len() as u64).to_le_bytes());
            out.extend(&rows.bytes);
        }
    }

    /// Reads values of `quantity` for `pairs` from the start of `bytes`, and removes them from
    /// `bytes`. Returns `None` if the bytes do not fit to the quantity and the pairs.
    pub fn read<P: Borrow<TokenPair>>(
        bytes: &mut &[u8],
        quantity: &Quantity,
        pairs: &[P],
    ) -> Option<Self> {
        let (double, rest) = bytes.split_first()?;
        *bytes = rest;
        let kind = if *double == 1 { Kind::Double } else { Kind::Float };
        let mut side = || {
            let (size, rest) = bytes.split_first_chunk::<8>()?;
            let size = usize::try_from(u64::from_le_bytes(*size)).ok()?;
            let (side, rest) = rest.split_at_checked(size)?;
            *bytes = rest;
            Some(side.to_vec())
        };
        let sides = Sides { chosen: side()?, rejected: side()? };
        Self::of_bytes(kind, sides, quantity, pairs)
    }

    /// The dtype of the values: float64 for a float64 model, else float32.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The bytes of the values of one pair, which is the pair number `pair` of the batch.
    ///
    /// # Errors
    /// Fails if the batch does not have the pair or the side.
    pub fn row(&self, pair: usize, side: Side) -> Result<&[u8]> {
        self.sides.get(side).row(pair).ok_or_else(|| {
            let name = side.name();
            Error::internal(format!("the reference has no {name} values of pair {pair} in a batch"))
        })
    }

    /// The sum of the values of one pair. It is accumulated in float64 and then rounded to the
    /// dtype of the values, as in [`TokenLogprobs::sum`](crate::api::TokenLogprobs::sum).
    ///
    /// # Errors
    /// Fails if the batch does not have the pair or the side.
    pub fn sum(&self, pair: usize, side: Side) -> Result<f64> {
        let row = self.row(pair, side)?;
        Ok(match self.kind {
            Kind::Double => {
                row.as_chunks().0.iter().map(|bytes| f64::from_ne_bytes(*bytes)).sum::<f64>()
            }
            _ => {
                let values = row.as_chunks().0.iter().map(|bytes| f32::from_ne_bytes(*bytes));
                f64::from(values.map(f64::from).sum::<f64>() as f32)
            }
        })
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        let size = |rows: &Rows| rows.bytes.len() + size_of_val(&rows.ends[..]);
        size(&self.sides.chosen) + size(&self.sides.rejected)
    }
}

/// Copies a tensor to the host. Returns its dtype and its bytes.
fn host(tensor: &Tensor) -> Result<(Kind, Vec<u8>)> {
    let tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
    let kind = tensor.f_kind()?;
    let mut bytes = vec![0; tensor.numel() * kind.elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok((kind, bytes))
}

/// Computes quantities of the reference for the pairs of a block, in one forward pass. The
/// reference is `model` with the adapter `adapted`, or without an adapter.
///
/// The batch always contains both completions of each pair, and all their tokens are scored if any
/// are. So the values of a quantity do not depend on the other quantities.
///
/// # Errors
/// Fails if the model does not have a site, or if memory runs out.
pub fn compute<P: Borrow<TokenPair>>(
    model: &Model,
    adapted: Option<&Adapted>,
    pairs: &[P],
    quantities: &[Quantity],
) -> Result<Vec<Values>> {
    let pairs: Vec<&TokenPair> = pairs.iter().map(Borrow::borrow).collect();
    catch_out_of_memory(|| computed(model, adapted, &pairs, quantities))
        .map_err(|e| explain(e, &pairs, model))
}

fn computed(
    model: &Model,
    adapted: Option<&Adapted>,
    pairs: &[&TokenPair],
    quantities: &[Quantity],
) -> Result<Vec<Values>> {
    let _guard = tch::no_grad_guard();
    let batch = PairBatch::of(pairs, block_spec(adapted), model)?;
    let sites: Vec<Site> = quantities.iter().filter_map(Quantity::site).cloned().collect();
    let hidden = quantities.contains(&Quantity::Logprobs);
    let request = Request { adapted, sites: &sites, hidden, ..Request::default() };
    let reached = model.forward(&batch.stream, request)?;
    let mut states = reached.states.iter();
    let mut values = |quantity: &Quantity| match quantity {
        Quantity::Logprobs => {
            let hidden = reached
                .hidden
                .as_ref()
                .ok_or_else(|| Error::internal("the pass has no hidden states"))?;
            let scores = model.score_tokens(hidden, &batch.predicted, Detail::NONE, None)?;
            Values::of_logprobs(&batch, &scores.logprobs, Completions::Both)
        }
        Quantity::State(_, pooling) => {
            let states =
                states.next().ok_or_else(|| Error::internal("the pass has too few states"))?;
            Values::of_states(&batch, states, *pooling, Completions::Both)
        }
    };
    quantities.iter().map(&mut values).collect()
}

/// If `e` says that memory ran out, wraps it in an error that names the size of the block and the
/// settings that need less memory. Returns other errors unchanged.
fn explain(e: Error, pairs: &[&TokenPair], model: &Model) -> Error {
    let Some(memory) = e.out_of_memory() else { return e };
    let tokens = pairs.iter().map(|pair| pair.tokens());
    let longest = tokens.clone().max().unwrap_or_default();
    let explained = Error::new(format!(
        "memory ran out in a pass without gradients: {memory} for {} pair{} with {} tokens in all",
        pairs.len(),
        if pairs.len() == 1 { "" } else { "s" },
        tokens.sum::<usize>()
    ))
    .because(e)
    .hint(format!("lower `train.max_length`; the longest pair has {longest} tokens"));
    if model.kind() == Kind::Float {
        return explained.hint("compute in bfloat16 with `--dtype bf16`");
    }
    explained
}

/// The layout of a block's batch.
pub(crate) fn block_spec(adapted: Option<&Adapted>) -> BatchSpec {
    BatchSpec { sharing: Sharing::for_adapted(adapted), ..BatchSpec::SCORED }
}
