//! GGUF files, versions 2 and 3: llama.cpp's format, in which small models travel as one file.
//!
//! What comes out has Hugging Face's names, order of rows and configuration, so that no model file
//! knows where its weights came from. Numbers are taken from their blocks straight into the memory
//! of the tensor.

mod blocks;
mod decode;
mod metadata;
mod names;
mod order;
mod part;
mod split;
mod types;

use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};
use indexmap::IndexMap;
use serde_json::Value;
use tch::{Kind, Tensor};

pub use decode::in_order;
pub use metadata::Metadata;
pub use split::{is_later_part, names};
pub use types::plain;

use super::memory::{Element, Mapped, filled};
use crate::error::{Error, Result};
use names::RopeFactors;
use order::Order;
use part::Placed;

/// No head has more pairs of numbers to turn.
const MOST_ROPE_FACTORS: i64 = 1 << 14;

/// A GGUF model, mapped, with its headers checked: one file, or the parts of a split one.
#[derive(Debug)]
pub struct Gguf {
    files: Vec<Arc<Mapped>>,
    metadata: Metadata,
    config: Value,
    tensors: IndexMap<String, Stored>,
}

#[derive(Debug)]
struct Stored {
    /// Which of the files it is in.
    file: usize,
    placed: Placed,
    order: Order,
    /// What Hugging Face's numbers are less than the file's.
    offset: f32,
}

impl Gguf {
    /// Maps a file and checks its header; of a split model any part brings the others along.
    ///
    /// # Errors
    /// A file that cannot be read, is cut off or no GGUF; a part that is missing; an architecture
    /// or a number type that is not read.
    pub fn open(path: &Path) -> Result<Self> {
        let parts = split::open(path)?;
        let (mut files, mut metadata, mut placed) = (Vec::new(), None, Vec::new());
        for (i, part) in parts.into_iter().enumerate() {
            files.push(part.file);
            // The first part speaks for all.
            metadata.get_or_insert(part.metadata);
            placed.extend(part.tensors.into_iter().map(|(name, placed)| {
                (name, Stored { file: i, placed, order: Order::Same, offset: 0.0 })
            }));
        }
        let metadata =
            metadata.ok_or_else(|| Error::internal(format!("`{}` has no part", path.display())))?;

        let architecture = names::architecture(&metadata)?;
        let shape = architecture.shape(&metadata)?;
        let mut tensors: IndexMap<String, Stored> = IndexMap::new();
        let mut rope = RopeFactors::default();
        for (theirs, mut stored) in placed {
            let at = files[stored.file].path().display();
            if let Some(factors) = rope.of(&theirs) {
                let few = stored.few(&files[stored.file]);
                *factors = Some(few.ok_or_else(|| {
                    Error::new(format!(
                        "`{at}` has a tensor `{theirs}` of {:?}, more than any head has",
                        stored.placed.shape
                    ))
                })?);
                continue;
            }
            let name = architecture.rename(&theirs).ok_or_else(|| {
                Error::new(format!(
                    "`{at}` has a tensor `{theirs}` that its architecture is not known to have"
                ))
            })?;
            (stored.order, stored.offset) =
                (architecture.order(&name, &shape), architecture.offset(&name));
            if let Some(heads) =
                stored.placed.shape.first().and_then(|&rows| stored.order.misfit(rows))
            {
                let shape = &stored.placed.shape;
                return Err(Error::new(format!(
                    "tensor `{theirs}` in `{at}` has the shape {shape:?}, whose rows {heads} \
                        heads cannot share"
                )));
            }
            if stored.order == Order::Transposed && stored.placed.shape.len() != 2 {
                return Err(Error::new(format!(
                    "tensor `{theirs}` in `{at}` has the shape {:?}, and is not a matrix",
                    stored.placed.shape
                )));
            }
            // Its numbers change places one by one, and those of a block cannot.
            if stored.order != Order::Same
                && stored.placed.shape.len() == 1
                && stored.placed.format.block > 1
            {
                return Err(Error::new(format!(
                    "tensor `{theirs}` in `{at}` is a bias of the type {}, which is not read",
                    stored.placed.format.name
                ))
                .hint("read: F32, F16, BF16"));
            }
            if let Some(first) = tensors.insert(name, stored) {
                return Err(Error::new(format!(
                    "`{at}` is no valid GGUF file: it has a second tensor `{theirs}`"
                ))
                .hint(format!("the first one is in `{}`", files[first.file].path().display())));
            }
        }
        let vocab =
            tensors.get(&architecture.embedding()).and_then(|t| t.placed.shape.first()).copied();
        let vocab = vocab.ok_or_else(|| {
            Error::new(format!("`{}` has no tensor `token_embd.weight`", path.display()))
        })?;
        let config = architecture
            .config(&metadata, vocab, &rope, &|name| {
                tensors.get(name).and_then(|t| t.placed.shape.first()).copied()
            })
            .map_err(|e| e.within(format!("cannot read `{}`", path.display())))?;
        Ok(Self { files, metadata, config, tensors })
    }

    /// What the file says about itself, in llama.cpp's words.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The same in Hugging Face's words.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The tensors' names in Hugging Face's words, in the file's order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The number types in the file, each once.
    pub fn formats(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        for t in self.tensors.values() {
            if !names.contains(&t.placed.format.name) {
                names.push(t.placed.format.name);
            }
        }
        names
    }

    /// For each file, its bytes and the length of its header in bytes.
    pub(super) fn bytes(&self) -> impl Iterator<Item = (&Mapped, usize)> {
        self.files.iter().enumerate().map(|(i, file)| {
            let header =
                self.tensors.values().filter(|t| t.file == i).map(|t| t.placed.at.start).min();
            (file.as_ref(), header.unwrap_or(file.len()))
        })
    }

    /// How many files the model is in.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// One tensor as plain numbers of the kind, on the CPU. Beside it, little of the file stays in
    /// memory.
    ///
    /// # Errors
    /// Where there is no tensor of that name, or not enough memory.
    pub fn read(&self, name: &str, kind: Kind) -> Result<Tensor> {
        let stored = self.tensors.get(name).ok_or_else(|| {
            Error::new(format!("no tensor `{name}` in `{}`", self.files[0].path().display()))
        })?;
        let (file, mut shape) = (&self.files[stored.file], stored.placed.shape.clone());
        if stored.order == Order::Transposed {
            shape.reverse();
        }
        match kind {
            Kind::Float => filled::<f32>(&shape, |out| stored.decode(file, out)),
            Kind::BFloat16 => filled::<bf16>(&shape, |out| stored.decode(file, out)),
            Kind::Half => filled::<f16>(&shape, |out| stored.decode(file, out)),
            other => Ok(filled::<f32>(&shape, |out| stored.decode(file, out))?.f_to_kind(other)?),
        }
    }
}

impl Stored {
    /// The numbers of a short list.
    fn few(&self, file: &Mapped) -> Option<Vec<f64>> {
        let numel: i64 = self.placed.shape.iter().product();
        let mut numbers =
            vec![0f32; usize::try_from(numel).ok().filter(|_| numel <= MOST_ROPE_FACTORS)?];
        decode::blocks(
            self.placed.format,
            &file[self.placed.at.clone()],
            &mut numbers,
            self.offset,
        );
        Some(numbers.into_iter().map(f64::from).collect())
    }

    fn decode<T: Element>(&self, file: &Mapped, out: &mut [T]) {
        let Placed { format, shape, at } = &self.placed;
        match self.order {
            Order::Same => decode::in_order(format, file, at.clone(), out, self.offset),
            Order::Transposed => {
                decode::transposed(format, file, at.clone(), out, self.offset, shape[0] as usize)
            }
            order => decode::by_rows(
                format,
                file,
                at.clone(),
                out,
                self.offset,
                (shape[0] as usize, order),
            ),
        }
    }
}

#[cfg(test)]
mod tests;
