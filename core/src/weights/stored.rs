//! Matrices that stay in memory as a GGUF file stores them, in blocks of a few bits per number.
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use super::gguf::Format;
use super::memory::{Element, bytes_of, filled};
use super::sharded::ShardedMatrix;
use crate::api::{Encoded, Rows};
use crate::error::Result;

/// Number of values that a thread decodes at a time.
const RUN: usize = 1 << 15;

/// A matrix on the CPU whose numbers are decoded when they are needed. Its values are those that
/// [`ModelFiles::load`](super::ModelFiles::load) returns for the same tensor.
#[derive(Debug)]
pub struct StoredMatrix {
    format: &'static Format,
    /// The blocks of each row, uint8 `[rows bytes]`. Blocks never cross rows.
    bytes: Tensor,
    columns: i64,
    kind: Kind,
}

impl StoredMatrix {
    /// Creates a matrix from the blocks of its rows, which are uint8 `[rows bytes]` on the CPU.
    /// `kind` is the dtype into which numbers are decoded.
    pub(crate) fn new(format: &'static Format, bytes: Tensor, columns: i64, kind: Kind) -> Self {
        Self { format, bytes, columns, kind }
    }

    fn decode<T: Element>(&self, bytes: &[u8], out: &mut [T]) {
        let run = RUN.next_multiple_of(self.format.block);
        out.par_chunks_mut(run)
            .zip(bytes.par_chunks(run / self.format.block * self.format.bytes))
            .for_each(|(out, bytes)| super::gguf::blocks(self.format, bytes, out, 0.0));
    }

    fn with_bytes(&self, bytes: Tensor) -> Self {
        Self { format: self.format, bytes, columns: self.columns, kind: self.kind }
    }
}

impl Encoded for StoredMatrix {
    fn size(&self) -> [i64; 2] {
        [self.bytes.size()[0], self.columns]
    }

    fn kind(&self) -> Kind {
        self.kind
    }

    fn device(&self) -> Device {
        Device::Cpu
    }

    fn kept(&self) -> usize {
        self.bytes.numel()
    }

    fn encoded(&self) -> Option<(&'static str, &Tensor)> {
        Some((self.format.name, &self.bytes))
    }

    fn dense(&self) -> Result<Tensor> {
        let (bytes, shape) = (self.bytes.f_contiguous()?, self.size());
        let bytes = bytes_of(&bytes)?;
        match self.kind {
            Kind::Float => filled::<f32>(&shape, |out| self.decode(bytes, out)),
            Kind::BFloat16 => filled::<half::bf16>(&shape, |out| self.decode(bytes, out)),
            Kind::Half => filled::<half::f16>(&shape, |out| self.decode(bytes, out)),
            kind => Ok(filled::<f32>(&shape, |out| self.decode(bytes, out))?.f_to_kind(kind)?),
        }
    }

    fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        self.with_bytes(self.bytes.f_index_select(0, ids)?).dense()
    }

    fn shared(&self) -> Box<dyn Encoded> {
        Box::new(self.with_bytes(self.bytes.shallow_clone()))
    }

    fn part(&self, rows: Rows) -> Result<Box<dyn Encoded>> {
        Ok(Box::new(self.with_bytes(rows.of(&self.bytes, 0)?)))
    }
}

/// A tensor of a checkpoint after loading.
#[derive(Debug)]
pub enum Loaded {
    /// Numbers in the dtype of the model.
    Dense(Tensor),
    /// Blocks as they are in the file.
    Stored {
        /// The matrix in the file.
        matrix: StoredMatrix,
        /// True if the checkpoint's tensor is the transpose of the matrix in the file.
        transposed: bool,
    },
    /// Rows of a matrix in the dtype of the model, which is divided among the ranks.
    Sharded(ShardedMatrix),
}

impl Loaded {
    /// The shape of the checkpoint's tensor.
    pub fn size(&self) -> Vec<i64> {
        match self {
            Self::Dense(t) => t.size(),
            Self::Sharded(matrix) => matrix.size().to_vec(),
            Self::Stored { matrix, transposed } => {
                let [rows, columns] = matrix.size();
                if *transposed { vec![columns, rows] } else { vec![rows, columns] }
            }
        }
    }

    /// The checkpoint's tensor in the dtype of the model.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn dense(self) -> Result<Tensor> {
        match self {
            Self::Dense(t) => Ok(t),
            Self::Sharded(matrix) => matrix.dense(),
            Self::Stored { matrix, transposed: false } => matrix.dense(),
            Self::Stored { matrix, transposed: true } => {
                Ok(matrix.dense()?.f_tr()?.f_contiguous()?)
            }
        }
    }
}
