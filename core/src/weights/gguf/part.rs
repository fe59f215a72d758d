//! Opens one GGUF file, validates its header and locates its tensors. The file may be a part of a
//! split model.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::metadata::{Cursor, Metadata};
use super::types::{self, Format};
use crate::error::{Error, Result};
use crate::weights::memory::Mapped;

const MAX_TENSORS: u64 = 1 << 16;
/// Maximum length of a tensor name in bytes.
const MAX_NAME_BYTES: u64 = 1 << 10;
/// Maximum number of tensor dimensions, as in ggml.
const MAX_AXES: u32 = 4;

/// A memory-mapped GGUF file.
#[derive(Debug)]
pub struct Part {
    pub file: Arc<Mapped>,
    pub metadata: Metadata,
    /// The tensors by their names in llama.cpp, in the order in which the file lists them.
    pub tensors: Vec<(String, TensorInfo)>,
}

/// The number type, shape and location of a tensor.
#[derive(Debug)]
pub struct TensorInfo {
    pub format: &'static Format,
    /// Sizes of the dimensions. As in PyTorch, the outermost dimension comes first.
    pub shape: Vec<i64>,
    /// Byte range of the data in the file.
    pub at: Range<usize>,
}

impl Part {
    /// Maps a file into memory and validates its header. The data of all tensors must be within the
    /// file and must not overlap.
    ///
    /// # Errors
    /// Fails if the file cannot be read, is incomplete, is not a GGUF file, or contains an
    /// unsupported number type.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Arc::new(Mapped::open(path)?);
        if file.get(..4) != Some(b"GGUF") {
            return Err(Error::new(format!("`{}` is not a GGUF file", path.display()))
                .hint("download it again; a GGUF file starts with the letters `GGUF`"));
        }
        let mut cursor = Cursor::new(&file, 4);
        match cursor.u32()? {
            2 | 3 => {}
            v if v.swap_bytes() <= 3 => {
                return Err(Error::new(format!(
                    "`{}` is a big-endian GGUF file, which is not supported",
                    path.display()
                )));
            }
            v => {
                return Err(Error::new(format!(
                    "`{}` is a GGUF file of version {v}, which is not supported",
                    path.display()
                ))
                .hint("valid: versions 2 and 3"));
            }
        }
        let (tensor_count, entry_count) = (cursor.u64()?, cursor.u64()?);
        let metadata = Metadata::read(&mut cursor, &file, entry_count)?;
        let infos = infos(&mut cursor, tensor_count)?;
        let tensors = place(&mut cursor, &metadata, infos, file.len())?;
        Ok(Self { file, metadata, tensors })
    }
}

/// A tensor's entry in the header.
struct Info {
    name: String,
    format: &'static Format,
    shape: Vec<i64>,
    offset: u64,
    bytes: u64,
}

fn infos(cursor: &mut Cursor, count: u64) -> Result<Vec<Info>> {
    if count > MAX_TENSORS {
        return Err(cursor
            .wrong(format!("has {count} tensors, which is too many"))
            .hint(format!("valid: up to {MAX_TENSORS}")));
    }
    let mut infos = Vec::new();
    for _ in 0..count {
        let name = cursor.text("a tensor's name", MAX_NAME_BYTES)?;
        let axes = cursor.u32()?;
        if !(1..=MAX_AXES).contains(&axes) {
            return Err(cursor
                .wrong(format!("has a tensor `{name}` with {axes} dimensions"))
                .hint(format!("valid: 1 to {MAX_AXES}")));
        }
        let mut shape = Vec::new();
        let mut numel = 1u64;
        for _ in 0..axes {
            let len = cursor.u64()?;
            let product = numel.checked_mul(len).filter(|n| (1..=1 << 48).contains(n));
            numel = product.ok_or_else(|| {
                cursor.wrong(format!("has a tensor `{name}` with a dimension of size {len}"))
            })?;
            shape.push(len as i64);
        }
        // ggml stores the innermost dimension first.
        shape.reverse();
        let id = cursor.u32()?;
        let format = types::format(id).ok_or_else(|| {
            Error::new(format!(
                "tensor `{name}` in `{}` has the unsupported type {}",
                cursor.path().display(),
                types::unread_name(id)
            ))
            .hint(format!("valid: {}", types::read_names()))
        })?;
        let inner = shape.last().copied().unwrap_or(0) as u64;
        if !inner.is_multiple_of(format.block as u64) {
            return Err(cursor.wrong(format!(
                "has a tensor `{name}` of type {} whose rows have {inner} elements, which is not a \
                multiple of {}",
                format.name, format.block
            )));
        }
        let offset = cursor.u64()?;
        infos.push(Info {
            name,
            format,
            shape,
            offset,
            bytes: numel / format.block as u64 * format.bytes as u64,
        });
    }
    Ok(infos)
}

/// Computes the byte range of each tensor. The data is stored after the header. Checks that the
/// ranges are within the file and do not overlap.
fn place(
    cursor: &mut Cursor,
    metadata: &Metadata,
    infos: Vec<Info>,
    end: usize,
) -> Result<Vec<(String, TensorInfo)>> {
    let alignment = metadata.unsigned("general.alignment")?.unwrap_or(32);
    if !alignment.is_power_of_two() || alignment > 1 << 20 {
        return Err(cursor
            .wrong(format!("has the alignment {alignment}"))
            .hint("valid: a power of two up to 2^20"));
    }
    let start = (cursor.at() as u64).next_multiple_of(alignment);
    let mut placed: Vec<(String, TensorInfo)> = Vec::with_capacity(infos.len());
    for info in infos {
        let range = start
            .checked_add(info.offset)
            .and_then(|from| Some((from, from.checked_add(info.bytes)?)))
            .filter(|(_, to)| *to <= end as u64);
        let (from, to) = range.ok_or_else(|| {
            cursor
                .wrong(format!("ends before the end of tensor `{}`", info.name))
                .hint("download it again; the last download may have been incomplete")
        })?;
        if info.offset % alignment != 0 {
            return Err(cursor.wrong(format!(
                "has the tensor `{}` at offset {}, which is not a multiple of {alignment}",
                info.name, info.offset
            )));
        }
        // These casts cannot overflow, because `to` is within the mapped file.
        placed.push((
            info.name,
            TensorInfo { format: info.format, shape: info.shape, at: from as usize..to as usize },
        ));
    }
    let mut order: Vec<&(String, TensorInfo)> = placed.iter().collect();
    order.sort_by_key(|(_, t)| t.at.start);
    match order.windows(2).find(|w| w[0].1.at.end > w[1].1.at.start) {
        Some(w) => {
            Err(cursor.wrong(format!("has overlapping tensors `{}` and `{}`", w[0].0, w[1].0)))
        }
        None => Ok(placed),
    }
}
