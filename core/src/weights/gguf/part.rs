//! One GGUF file: its header, checked, and where its tensors lie. A model that was split is several
//! of these.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::metadata::{Cursor, Metadata};
use super::types::{self, Format};
use crate::error::{Error, Result};
use crate::weights::memory::Mapped;

const MOST_TENSORS: u64 = 1 << 16;
const LONGEST_NAME: u64 = 1 << 10;
/// ggml's own limit.
const MOST_AXES: u32 = 4;

/// A file, mapped.
#[derive(Debug)]
pub struct Part {
    pub file: Arc<Mapped>,
    pub metadata: Metadata,
    /// The tensors with llama.cpp's names, in the file's order.
    pub tensors: Vec<(String, Placed)>,
}

/// Where a tensor lies and how it is to be read.
#[derive(Debug)]
pub struct Placed {
    pub format: &'static Format,
    /// Outermost axis first, as PyTorch counts them.
    pub shape: Vec<i64>,
    /// Its bytes in the file, all of them there.
    pub at: Range<usize>,
}

impl Part {
    /// Maps a file and checks its header, and that every tensor is inside the file and in a place
    /// of its own.
    ///
    /// # Errors
    /// A file that cannot be read, is cut off or no GGUF, or has a number type that is not read.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Arc::new(Mapped::open(path)?);
        if file.get(..4) != Some(b"GGUF") {
            return Err(Error::new(format!("`{}` is no GGUF file", path.display()))
                .hint("a GGUF file begins with the letters GGUF; fetch it again"));
        }
        let mut cursor = Cursor::new(&file, 4);
        match cursor.u32()? {
            2 | 3 => {}
            v if v.swap_bytes() <= 3 => {
                return Err(Error::new(format!(
                    "`{}` is a big-endian GGUF file, which is not read",
                    path.display()
                )));
            }
            v => {
                return Err(Error::new(format!(
                    "`{}` is a GGUF file of version {v}",
                    path.display()
                ))
                .hint("read: versions 2 and 3"));
            }
        }
        let (tensor_count, entry_count) = (cursor.u64()?, cursor.u64()?);
        let metadata = Metadata::read(&mut cursor, &file, entry_count)?;
        let infos = infos(&mut cursor, tensor_count)?;
        let tensors = place(&mut cursor, &metadata, infos, file.len())?;
        Ok(Self { file, metadata, tensors })
    }
}

/// A tensor as the header tells of it.
struct Info {
    name: String,
    format: &'static Format,
    shape: Vec<i64>,
    offset: u64,
    bytes: u64,
}

fn infos(cursor: &mut Cursor, count: u64) -> Result<Vec<Info>> {
    if count > MOST_TENSORS {
        return Err(cursor
            .wrong(format!("claims {count} tensors"))
            .hint(format!("valid: up to {MOST_TENSORS}")));
    }
    let mut infos = Vec::new();
    for _ in 0..count {
        let name = cursor.text("a tensor's name", LONGEST_NAME)?;
        let axes = cursor.u32()?;
        if !(1..=MOST_AXES).contains(&axes) {
            return Err(cursor
                .wrong(format!("has a tensor `{name}` with {axes} axes"))
                .hint(format!("valid: 1 to {MOST_AXES}")));
        }
        let mut shape = Vec::new();
        let mut numel = 1u64;
        for _ in 0..axes {
            let len = cursor.u64()?;
            let product = numel.checked_mul(len).filter(|n| (1..=1 << 48).contains(n));
            numel = product.ok_or_else(|| {
                cursor.wrong(format!("has a tensor `{name}` with an axis of length {len}"))
            })?;
            shape.push(len as i64);
        }
        // ggml counts axes from the innermost.
        shape.reverse();
        let id = cursor.u32()?;
        let format = types::format(id).ok_or_else(|| {
            Error::new(format!(
                "tensor `{name}` in `{}` has the type {}, which is not read",
                cursor.path().display(),
                types::unread_name(id)
            ))
            .hint(format!("read: {}", types::read_names()))
        })?;
        let inner = shape.last().copied().unwrap_or(0) as u64;
        if !inner.is_multiple_of(format.block as u64) {
            return Err(cursor.wrong(format!(
                "has a tensor `{name}` of type {} with rows of {inner}, not a multiple of {}",
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

/// Finds the tensors' bytes, which begin behind the header, and checks that they are there and do
/// not overlap.
fn place(
    cursor: &mut Cursor,
    metadata: &Metadata,
    infos: Vec<Info>,
    end: usize,
) -> Result<Vec<(String, Placed)>> {
    let alignment = metadata.unsigned("general.alignment")?.unwrap_or(32);
    if !alignment.is_power_of_two() || alignment > 1 << 20 {
        return Err(cursor
            .wrong(format!("has the alignment {alignment}"))
            .hint("valid: a power of two up to 2^20; 32 is usual"));
    }
    let start = (cursor.at() as u64).next_multiple_of(alignment);
    let mut placed: Vec<(String, Placed)> = Vec::with_capacity(infos.len());
    for info in infos {
        let range = start
            .checked_add(info.offset)
            .and_then(|from| Some((from, from.checked_add(info.bytes)?)))
            .filter(|(_, to)| *to <= end as u64);
        let (from, to) = range.ok_or_else(|| {
            cursor
                .wrong(format!("ends before tensor `{}` does", info.name))
                .hint("fetch it again: the download may have been cut off")
        })?;
        if info.offset % alignment != 0 {
            return Err(cursor.wrong(format!(
                "has tensor `{}` at the offset {}, not a multiple of {alignment}",
                info.name, info.offset
            )));
        }
        // `to` is within the file, which is in the address space.
        placed.push((
            info.name,
            Placed { format: info.format, shape: info.shape, at: from as usize..to as usize },
        ));
    }
    let mut order: Vec<&(String, Placed)> = placed.iter().collect();
    order.sort_by_key(|(_, t)| t.at.start);
    match order.windows(2).find(|w| w[0].1.at.end > w[1].1.at.start) {
        Some(w) => {
            Err(cursor
                .wrong(format!("has tensors `{}` and `{}` in the same place", w[0].0, w[1].0)))
        }
        None => Ok(placed),
    }
}
