//! Mapped files and the memory of tensors: the places where loading weights needs `unsafe`.

use std::fs::File;
use std::mem::MaybeUninit;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::error::{Context, Error, Result};
use crate::files::{is_lfs_pointer, lfs_pointer};

/// How much of a file is read before its pages are let go of.
pub const SLAB: usize = 8 << 20;

/// A file's bytes, read by the system as they are touched.
#[derive(Debug)]
pub struct Mapped {
    path: PathBuf,
    bytes: Mmap,
}

impl Mapped {
    /// Maps a file.
    ///
    /// # Errors
    /// Where it cannot be opened, is no plain file, or is empty.
    pub fn open(path: &Path) -> Result<Self> {
        let opening = || format!("cannot open `{}`", path.display());
        // Asked before it is opened: opening a named pipe would wait for somebody to write into it.
        let about = std::fs::metadata(path).within(opening)?;
        if !about.is_file() {
            return Err(Error::new(format!("`{}` is not a file", path.display())));
        }
        if about.len() == 0 {
            return Err(Error::new(format!("`{}` is empty", path.display()))
                .hint("fetch it again: the download may have been cut off"));
        }
        let file = File::open(path).within(opening)?;
        // SAFETY: the map is read-only and lives as long as the slices taken from it. Another
        // process that cuts the file short meanwhile would end this one with SIGBUS; every reader
        // that maps weights accepts that.
        let bytes =
            unsafe { Mmap::map(&file) }.within(|| format!("cannot map `{}`", path.display()))?;
        if is_lfs_pointer(&bytes) {
            return Err(lfs_pointer(path));
        }
        Ok(Self { path: path.to_owned(), bytes })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes a part of the file out of this process's memory; whoever reads it again has it read
    /// from the file again.
    pub fn release(&self, at: Range<usize>) {
        #[cfg(unix)]
        {
            // SAFETY: the map is read-only and of a file, so a page that is dropped comes back with
            // the same bytes.
            let released = unsafe {
                self.bytes.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    at.start,
                    at.len(),
                )
            };
            // It is a wish: where the system does not grant it, more memory is used and nothing is
            // wrong.
            if let Err(e) = released {
                tracing::debug!("the pages of `{}` stay: {e}", self.path.display());
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

/// A number that can be the element of a tensor that [`filled`] makes.
pub trait Element: Copy + Send + Default {
    /// libtorch's name of it. Not `tch::kind::Element`, whose `bf16` claims to be `f16`.
    const KIND: Kind;
    /// The nearest value.
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
    /// To the nearest, ties to even, as libtorch does; without branches, so that it is done for
    /// many numbers at once.
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

/// A new tensor on the CPU whose memory `fill` writes, row by row of the last axis or however it
/// likes: no copy is made.
///
/// # Errors
/// Where there is not enough memory.
pub fn filled<T: Element>(shape: &[i64], fill: impl FnOnce(&mut [T])) -> Result<Tensor> {
    // Not `zeros`: that wakes libtorch's own threads, which then spin beside ours for as long as
    // the work takes.
    let tensor = Tensor::f_empty(shape, (T::KIND, Device::Cpu))?;
    // SAFETY: a new contiguous CPU tensor of `numel` elements of T's size, which nobody else has
    // seen.
    let unset: &mut [MaybeUninit<T>] = unsafe {
        let at = tensor.data_ptr().cast::<MaybeUninit<T>>();
        if at.is_null() { &mut [] } else { std::slice::from_raw_parts_mut(at, tensor.numel()) }
    };
    unset.par_chunks_mut(1 << 18).for_each(|chunk| chunk.fill(MaybeUninit::new(T::default())));
    // SAFETY: every element has just been set.
    let slice = unsafe { unset.assume_init_mut() };
    fill(slice);
    Ok(tensor)
}

/// A new tensor on the CPU of the bytes at `at`, which are as many as the shape needs. Copied slab
/// after slab, so that the pages of the file can be let go of on the way.
///
/// # Errors
/// Where there is not enough memory.
pub fn copied(file: &Mapped, at: Range<usize>, shape: &[i64], kind: Kind) -> Result<Tensor> {
    let tensor = Tensor::f_empty(shape, (kind, Device::Cpu))?;
    if tensor.numel() * kind.elt_size_in_bytes() != at.len() {
        return Err(Error::internal(format!(
            "{} bytes are no tensor {shape:?} of {kind:?}",
            at.len()
        )));
    }
    let to = tensor.data_ptr().cast::<u8>();
    for from in at.clone().step_by(SLAB) {
        let range = from..at.end.min(from + SLAB);
        let bytes = &file[range.clone()];
        // SAFETY: a new contiguous CPU tensor of as many bytes as `at` has, which nobody else has
        // seen; every bit pattern that the kinds that are read can have is a number, and of a truth
        // value libtorch asks no more.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.add(from - at.start), bytes.len())
        };
        file.release(range);
    }
    Ok(tensor)
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn a_bfloat16_is_rounded_as_libtorch_rounds_it() {
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
        // A NaN equals nothing; that it is one has to agree.
        let same = ours.eq_tensor(&theirs).logical_or(&ours.isnan().logical_and(&theirs.isnan()));
        assert!(bool::try_from(same.all()).unwrap());
    }

    #[test]
    fn what_is_no_file_or_empty_is_not_mapped() {
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
