//! Reads GGUF files (versions 2 and 3), llama.cpp's model format.
//!
//! Tensor names, row order and settings are converted to Hugging Face's format, so that the model
//! code does not depend on the file format. Quantised blocks are decoded directly into the memory
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

pub use decode::{blocks, in_order};
pub use metadata::Metadata;
pub use split::{is_later_part, names};
#[cfg(test)]
pub use types::FORMATS;
pub use types::{Format, plain};

use super::memory::{Element, Mapped, filled, joined};
use super::stored::{Loaded, StoredMatrix};
use crate::error::{Error, Result};
use names::RopeFactors;
use order::Order;
use part::TensorInfo;

/// Maximum number of rotary factors in a tensor. A tensor has one factor for each pair of
/// dimensions in a head. All known models have far fewer factors.
const MAX_ROPE_FACTORS: i64 = 1 << 14;

/// A GGUF model, which may be split into several files. The files are memory-mapped and validated.
#[derive(Debug)]
pub struct Gguf {
    files: Vec<Arc<Mapped>>,
    metadata: Metadata,
    config: Value,
    tensors: IndexMap<String, StoredTensor>,
}

#[derive(Debug)]
struct StoredTensor {
    /// Index of the file in `Gguf::files`.
    file: usize,
    placed: TensorInfo,
    order: Order,
    /// Hugging Face's weights are the numbers in the file minus this offset.
    offset: f32,
}

impl Gguf {
    /// Maps a file into memory and validates its header. If the model is split into several files,
    /// opens all of them. `path` may be any of these files.
    ///
    /// # Errors
    /// Fails if a file is missing, unreadable, incomplete or not a GGUF file. Also fails if the
    /// architecture, a setting or a number type is not supported.
    pub fn open(path: &Path) -> Result<Self> {
        let parts = split::open(path)?;
        let (mut files, mut metadata, mut placed) = (Vec::new(), None, Vec::new());
        for (i, part) in parts.into_iter().enumerate() {
            files.push(part.file);
            // The first part contains the metadata of the whole model.
            metadata.get_or_insert(part.metadata);
            placed.extend(part.tensors.into_iter().map(|(name, placed)| {
                (name, StoredTensor { file: i, placed, order: Order::Same, offset: 0.0 })
            }));
        }
        let metadata =
            metadata.ok_or_else(|| Error::internal(format!("`{}` has no part", path.display())))?;

        let architecture = names::architecture(&metadata)?;
        let shape = architecture.shape(&metadata)?;
        let mut tensors: IndexMap<String, StoredTensor> = IndexMap::new();
        let mut rope = RopeFactors::default();
        for (gguf_name, mut stored) in placed {
            let at = files[stored.file].path().display();
            if let Some(factors) = rope.of(&gguf_name) {
                let numbers = stored.decode_small(&files[stored.file]);
                *factors = Some(numbers.ok_or_else(|| {
                    Error::new(format!(
                        "tensor `{gguf_name}` in `{at}` has the shape {:?}, which is too large for \
                        rotary factors",
                        stored.placed.shape
                    ))
                })?);
                continue;
            }
            let name = architecture.rename(&gguf_name).ok_or_else(|| {
                Error::new(format!(
                    "tensor `{gguf_name}` in `{at}` does not belong to the model's architecture"
                ))
            })?;
            (stored.order, stored.offset) =
                (architecture.order(&name, &shape), architecture.offset(&name));
            if let Some(heads) =
                stored.placed.shape.first().and_then(|&rows| stored.order.misfit(rows))
            {
                let shape = &stored.placed.shape;
                return Err(Error::new(format!(
                    "tensor `{gguf_name}` in `{at}` has the shape {shape:?}, whose rows cannot be \
                    divided among {heads} heads"
                )));
            }
            if stored.order == Order::Transposed && stored.placed.shape.len() != 2 {
                return Err(Error::new(format!(
                    "tensor `{gguf_name}` in `{at}` must be a matrix, but has the shape {:?}",
                    stored.placed.shape
                )));
            }
            // Reordering a bias moves individual numbers, which is not possible inside a quantised
            // block.
            if stored.order != Order::Same
                && stored.placed.shape.len() == 1
                && stored.placed.format.block > 1
            {
                return Err(Error::new(format!(
                    "tensor `{gguf_name}` in `{at}` is a bias of type {}, which is not supported",
                    stored.placed.format.name
                ))
                .hint("valid: F32, F16, BF16"));
            }
            if let Some(first) = tensors.insert(name, stored) {
                return Err(Error::new(format!(
                    "`{at}` is not a valid GGUF file: duplicate tensor `{gguf_name}`"
                ))
                .hint(format!(
                    "download the file again; `{}` also contains this tensor",
                    files[first.file].path().display()
                )));
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

    /// The metadata of the file, under llama.cpp's keys.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The configuration in the format of Hugging Face's config.json.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The Hugging Face names of the tensors, in the order of the tensors in the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The number types of the tensors, without duplicates.
    pub fn formats(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        for t in self.tensors.values() {
            if !names.contains(&t.placed.format.name) {
                names.push(t.placed.format.name);
            }
        }
        names
    }

    /// The content of each file, with the length of its header in bytes.
    pub(super) fn bytes(&self) -> impl Iterator<Item = (&Mapped, usize)> {
        self.files.iter().enumerate().map(|(i, file)| {
            let header =
                self.tensors.values().filter(|t| t.file == i).map(|t| t.placed.at.start).min();
            (file.as_ref(), header.unwrap_or(file.len()))
        })
    }

    /// Number of files that the model consists of.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// Decodes one tensor into numbers of type `kind`, on the CPU. Then releases most of the file's
    /// pages that were read, to save memory.
    ///
    /// # Errors
    /// Fails if the tensor does not exist, or if memory runs out.
    pub fn read(&self, name: &str, kind: Kind) -> Result<Tensor> {
        let stored = self.find(name)?;
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

impl Gguf {
    fn find(&self, name: &str) -> Result<&StoredTensor> {
        self.tensors.get(name).ok_or_else(|| {
            Error::new(format!("no tensor `{name}` in `{}`", self.files[0].path().display()))
        })
    }

    /// Reads the blocks of a matrix without decoding them. Returns `None` for a tensor whose
    /// numbers must be decoded: one that is not a matrix, one whose numbers differ from Hugging
    /// Face's by an offset, and one whose blocks take as much memory as numbers of type `kind`.
    ///
    /// # Errors
    /// Fails if the tensor does not exist, or if memory runs out.
    pub fn read_stored(&self, name: &str, kind: Kind) -> Result<Option<Loaded>> {
        let StoredTensor { file, placed: TensorInfo { format, shape, at }, order, offset } =
            self.find(name)?;
        let &[rows, columns] = shape.as_slice() else { return Ok(None) };
        let numel = usize::try_from(rows * columns).unwrap_or(0);
        if *offset != 0.0 || at.len() >= numel * kind.elt_size_in_bytes() {
            return Ok(None);
        }
        let (file, rows) = (&self.files[*file], rows as usize);
        let row = at.len() / rows;
        // A quantised block lies within one row, so that rows can be moved as they are.
        let bytes = joined(file, at.clone(), row, |r| order.row_of(r, rows))?;
        let matrix = StoredMatrix::new(format, bytes, columns, kind);
        Ok(Some(Loaded::Stored { matrix, transposed: *order == Order::Transposed }))
    }
}

impl StoredTensor {
    /// Decodes a small tensor. Returns `None` if it has more than [`MAX_ROPE_FACTORS`] numbers.
    fn decode_small(&self, file: &Mapped) -> Option<Vec<f64>> {
        let numel: i64 = self.placed.shape.iter().product();
        let mut numbers =
            vec![0f32; usize::try_from(numel).ok().filter(|_| numel <= MAX_ROPE_FACTORS)?];
        decode::blocks(
            self.placed.format,
            &file[self.placed.at.clone()],
            &mut numbers,
            self.offset,
        );
        Some(numbers.into_iter().map(f64::from).collect())
    }

    fn decode<T: Element>(&self, file: &Mapped, out: &mut [T]) {
        let TensorInfo { format, shape, at } = &self.placed;
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
