//! Memory-mapped files and direct access to the memory of tensors. This module contains all
//! `unsafe` code for loading weights.

use std::fs::File;
use std::mem::MaybeUninit;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::error::{Context, Error, Result};
use crate::files::{is_lfs_pointer, lfs_pointer};

/// Number of bytes to read from a mapped file before releasing the pages.
pub const SLAB: usize = 8 << 20;

/// A memory-mapped file, which the operating system reads page by page on access.
#[derive(Debug)]
pub struct Mapped {
    path: PathBuf,
    bytes: Mmap,
}

impl Mapped {
    /// Maps a file.
    ///
    /// # Errors
    /// Fails if the path cannot be opened, is not a regular file, is empty, or is a Git LFS
    /// pointer.
    pub fn open(path: &Path) -> Result<Self> {
        let opening = || format!("cannot open `{}`", path.display());
        // The path is checked first, because opening a named pipe would block.
        let about = std::fs::metadata(path).within(opening)?;
        if !about.is_file() {
            return Err(Error::new(format!("`{}` is not a file", path.display())));
        }
        if about.len() == 0 {
            return Err(Error::new(format!("`{}` is empty", path.display()))
                .hint("download it again; the last download may have been incomplete"));
        }
        let file = File::open(path).within(opening)?;
        // SAFETY: the map is read-only and lives as long as the slices borrowed from it. Another
        // process may truncate the mapped file. The operating system then kills this process with
        // SIGBUS. The same is true of every library that maps weights.
        let bytes =
            unsafe { Mmap::map(&file) }.within(|| format!("cannot map `{}`", path.display()))?;
        if is_lfs_pointer(&bytes) {
            return Err(lfs_pointer(path));
        }
        Ok(Self { path: path.to_owned(), bytes })
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Releases the memory of a part of the file. If the part is accessed later, the system reads
    /// it from the file again.
    pub fn release(&self, at: Range<usize>) {
        #[cfg(unix)]
        {
            // SAFETY: the map is read-only and backed by a file, so the next access to a released
            // page reads the same bytes again.
            let released = unsafe {
                self.bytes.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    at.start,
                    at.len(),
                )
            };
            // If releasing the pages fails, the only effect is that more memory is used.
            if let Err(e) = released {
                tracing::debug!("cannot release the pages of `{}`: {e}", self.path.display());
            }
        }
        #[cfg(not(unix))]
        let _ = at;
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// An element type of the tensors that [`filled`] creates.
pub trait Element: Copy + Send + Default {
    /// The corresponding libtorch type. `tch::kind::Element` cannot provide it, because it maps
    /// `bf16` to `f16`.
    const KIND: Kind;
    /// Converts a number to the nearest value of this type.
    fn of(x: f32) -> Self;
}

impl Element for f32 {
    const KIND: Kind = Kind::Float;
    fn of(x: f32) -> Self {
        x
    }
}

impl Element for half::bf16 {
    const KIND: Kind = Kind::BFloat16;
    /// Rounds to the nearest value, with ties to even, as libtorch does. The code has no branches,
    /// so that the compiler can vectorise it.
    fn of(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        Self::from_bits(if x.is_nan() { 0x7fc0 } else { rounded as u16 })
    }
}

impl Element for half::f16 {
    const KIND: Kind = Kind::Half;
    fn of(x: f32) -> Self {
        Self::from_f32(x)
    }
}

/// Creates a tensor on the CPU. `fill` writes the numbers directly into the tensor's memory, in
/// row-major order, without a copy.
///
/// # Errors
/// Fails if memory runs out.
pub fn filled<T: Element>(shape: &[i64], fill: impl FnOnce(&mut [T])) -> Result<Tensor> {
    // `zeros` would start libtorch's thread pool, which busy-waits and slows down rayon's threads.
    let tensor = Tensor::f_empty(shape, (T::KIND, Device::Cpu))?;
    // SAFETY: the tensor is new and contiguous, is on the CPU, has `numel` elements of T's size,
    // and is not shared.
    let unset: &mut [MaybeUninit<T>] = unsafe {
        let at = tensor.data_ptr().cast::<MaybeUninit<T>>();
        if at.is_null() { &mut [] } else { std::slice::from_raw_parts_mut(at, tensor.numel()) }
    };
    unset.par_chunks_mut(1 << 18).for_each(|chunk| chunk.fill(MaybeUninit::new(T::default())));
    // SAFETY: all elements were initialised above.
    let slice = unsafe { unset.assume_init_mut() };
    fill(slice);
    Ok(tensor)
}

/// Copies the byte range `at` of the file into a new tensor on the CPU. The bytes are copied in
/// slabs, and the pages of the file are released after each slab.
///
/// # Errors
/// Fails if the number of bytes does not match the shape, or if memory runs out.
pub fn copied(file: &Mapped, at: Range<usize>, shape: &[i64], kind: Kind) -> Result<Tensor> {
    let tensor = Tensor::f_empty(shape, (kind, Device::Cpu))?;
    if tensor.numel() * kind.elt_size_in_bytes() != at.len() {
        return Err(Error::internal(format!(
            "{} bytes do not match a tensor of shape {shape:?} and type {kind:?}",
            at.len()
        )));
    }
    let to = tensor.data_ptr().cast::<u8>();
    for from in at.clone().step_by(SLAB) {
        let range = from..at.end.min(from + SLAB);
        let bytes = &file[range.clone()];
        // SAFETY: the tensor is new and contiguous, is on the CPU, has as many bytes as `at`, and
        // is not shared. Every bit pattern is valid for the supported number types, and libtorch
        // accepts any byte as a boolean.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.add(from - at.start), bytes.len())
        };
        file.release(range);
    }
    Ok(tensor)
}

/// Copies the rows in the byte range `at` of the file into a new uint8 tensor `[rows row]` on the
/// CPU. Row r of the tensor is row `from(r)` of the range.
///
/// # Errors
/// Fails if memory runs out.
pub fn joined(
    file: &Mapped,
    at: Range<usize>,
    row: usize,
    from: impl Fn(usize) -> usize,
) -> Result<Tensor> {
    let rows = at.len() / row;
    let tensor = Tensor::f_empty([rows as i64, row as i64], (Kind::Uint8, Device::Cpu))?;
    let to = tensor.data_ptr().cast::<u8>();
    // Rows move within a head or within the whole matrix, so pages are released at the end.
    for r in 0..rows {
        let start = at.start + from(r) * row;
        let bytes = &file[at.clone()][start - at.start..][..row];
        // SAFETY: the tensor is new and contiguous, is on the CPU, has `rows` rows of `row` bytes,
        // and is not shared.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.add(r * row), row) };
    }
    file.release(at);
    Ok(tensor)
}

/// The content of a uint8 tensor.
///
/// # Errors
/// Fails if the tensor has another dtype, is not contiguous or is not on the CPU.
pub fn bytes_of(tensor: &Tensor) -> Result<&[u8]> {
    if tensor.kind() != Kind::Uint8 || tensor.device() != Device::Cpu || !tensor.is_contiguous() {
        return Err(Error::internal(format!("{tensor:?} is not a list of bytes")));
    }
    let at = tensor.data_ptr().cast::<u8>();
    // SAFETY: the tensor has `numel` contiguous bytes on the CPU, and lives as long as the slice.
    // Nothing writes to the blocks of a model after they were read.
    Ok(if at.is_null() { &[] } else { unsafe { std::slice::from_raw_parts(at, tensor.numel()) } })
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn a_bfloat16_is_rounded_as_in_libtorch() {
        let mut bits: Vec<u32> = (0..200_000u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
        bits.extend([
            0,
            0x8000_0000,
            0x3f80_8000,
            0x3f81_8000,
            0x3f80_8001,
            0x7f7f_ffff,
            0x7f80_0000,
            0xff80_0000,
            0x7f80_0001,
            0xffff_ffff,
        ]);
        let numbers: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        let ours = filled::<bf16>(&[numbers.len() as i64], |out| {
            out.iter_mut().zip(&numbers).for_each(|(y, x)| *y = bf16::of(*x))
        })
        .unwrap();
        let theirs = Tensor::from_slice(&numbers).to_kind(Kind::BFloat16);
        // NaNs are not equal to each other, so check separately whether both are NaN.
        let same = ours.eq_tensor(&theirs).logical_or(&ours.isnan().logical_and(&theirs.isnan()));
        assert!(bool::try_from(same.all()).unwrap());
    }

    #[test]
    fn folders_and_empty_files_are_not_mapped() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("empty"), "").unwrap();
        assert!(Mapped::open(dir.path()).unwrap_err().message().contains("is not a file"));
        assert!(
            Mapped::open(&dir.path().join("empty")).unwrap_err().message().contains("is empty")
        );
        assert!(
            Mapped::open(&dir.path().join("nothing"))
                .unwrap_err()
                .message()
                .contains("cannot open")
        );
    }
}
