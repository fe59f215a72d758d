//! Decodes tensors from a memory-mapped file, on several threads. The file is read in slabs, and
//! the pages of each slab are released afterwards to save memory.

use std::ops::Range;

use rayon::prelude::*;

use super::order::Order;
use super::types::Format;
use crate::weights::memory::{Element, Mapped, SLAB};

/// Number of values that a thread decodes at a time.
const RUN: usize = 1 << 15;

/// Decodes the blocks in the byte range `at` without changing their order, and subtracts `offset`
/// from each number. `out` must have one element for each number in the blocks.
pub fn in_order<T: Element>(
    format: &Format,
    file: &Mapped,
    at: Range<usize>,
    out: &mut [T],
    offset: f32,
) {
    let run = RUN.next_multiple_of(format.block);
    slabs(format, file, at, out, format.block, |bytes, out| {
        out.par_chunks_mut(run)
            .zip(bytes.par_chunks(run / format.block * format.bytes))
            .for_each(|(out, bytes)| blocks(format, bytes, out, offset));
    });
}

/// Decodes like [`in_order`], but puts the rows into Hugging Face's order. `rows` is the number of
/// rows.
pub fn by_rows<T: Element>(
    format: &Format,
    file: &Mapped,
    at: Range<usize>,
    out: &mut [T],
    offset: f32,
    (rows, order): (usize, Order),
) {
    // A bias is treated as a matrix with one column.
    let (row, row_bytes) = (out.len() / rows, at.len() / rows);
    // Rows that are permuted among themselves must be in the same slab.
    slabs(format, file, at, out, order.together(rows).unwrap_or(1) * row, |bytes, out| {
        out.par_chunks_mut(row).enumerate().for_each(|(r, out)| {
            let from = order.row_of(r, rows) * row_bytes;
            blocks(format, &bytes[from..from + row_bytes], out, offset);
        });
    });
}

/// Decodes like [`in_order`], but transposes the matrix. `rows` is its number of rows in the file.
pub fn transposed<T: Element>(
    format: &Format,
    file: &Mapped,
    at: Range<usize>,
    out: &mut [T],
    offset: f32,
    rows: usize,
) {
    let (row, row_bytes) = (out.len() / rows, at.len() / rows);
    let slab = (SLAB / (row * size_of::<f32>())).clamp(1, rows);
    let mut numbers = vec![0f32; slab * row];
    for first in (0..rows).step_by(slab) {
        let end = rows.min(first + slab);
        let range = at.start + first * row_bytes..at.start + end * row_bytes;
        let numbers = &mut numbers[..(end - first) * row];
        numbers
            .par_chunks_mut(row)
            .zip(file[range.clone()].par_chunks(row_bytes))
            .for_each(|(out, bytes)| blocks(format, bytes, out, offset));
        out.par_chunks_mut(rows).enumerate().for_each(|(column, out)| {
            out[first..end]
                .iter_mut()
                .zip(numbers.chunks(row))
                .for_each(|(to, from)| *to = T::of(from[column]));
        });
        file.release(range);
    }
}

/// Calls `read` for each slab in turn, and releases the slab's pages after each call. The size of a
/// slab is a multiple of `unit` numbers.
fn slabs<T: Element>(
    format: &Format,
    file: &Mapped,
    at: Range<usize>,
    out: &mut [T],
    unit: usize,
    read: impl Fn(&[u8], &mut [T]),
) {
    let slab = (SLAB / (unit / format.block * format.bytes).max(1)).max(1) * unit;
    let mut from = at.start;
    for out in out.chunks_mut(slab) {
        let range = from..from + out.len() / format.block * format.bytes;
        read(&file[range.clone()], out);
        from = range.end;
        file.release(range);
    }
}

/// Decodes blocks on the current thread and subtracts `offset` from each number.
pub fn blocks<T: Element>(format: &Format, bytes: &[u8], out: &mut [T], offset: f32) {
    // The buffer fits into the L1 cache, and its length is a multiple of the largest block.
    let mut numbers = [0f32; 1024];
    for (out, bytes) in
        out.chunks_mut(numbers.len()).zip(bytes.chunks(numbers.len() / format.block * format.bytes))
    {
        let numbers = &mut numbers[..out.len()];
        (format.decode)(bytes, numbers);
        for (to, from) in out.iter_mut().zip(numbers) {
            *to = T::of(*from - offset);
        }
    }
}
