//! From the bytes of a mapped file to the numbers of a tensor: several threads, straight into the
//! tensor's memory, and slab after slab, so that the pages of the file that were read can be let go
//! of on the way.

use std::ops::Range;

use rayon::prelude::*;

use super::order::Order;
use super::types::Format;
use crate::weights::memory::{Element, Mapped, SLAB};

/// How many numbers one thread takes at once.
const RUN: usize = 1 << 15;

/// The numbers of the blocks at `at`, less `offset` each, in the file's order; `out` is as long as
/// they are many.
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

/// As [`in_order`], with so many rows brought into Hugging Face's order.
pub fn by_rows<T: Element>(
    format: &Format,
    file: &Mapped,
    at: Range<usize>,
    out: &mut [T],
    offset: f32,
    (rows, order): (usize, Order),
) {
    // A bias is a column of rows that are one number long.
    let (row, row_bytes) = (out.len() / rows, at.len() / rows);
    // Rows that change places with each other are not taken apart.
    slabs(format, file, at, out, order.together(rows).unwrap_or(1) * row, |bytes, out| {
        out.par_chunks_mut(row).enumerate().for_each(|(r, out)| {
            let from = order.row_of(r, rows) * row_bytes;
            blocks(format, &bytes[from..from + row_bytes], out, offset);
        });
    });
}

/// As [`in_order`], of a matrix of so many rows, which become the columns of `out`.
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

/// Has `read` read a whole number of units of `unit` numbers at once, and then lets go of the
/// pages.
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

/// The numbers of a few blocks, less `offset` each.
pub fn blocks<T: Element>(format: &Format, bytes: &[u8], out: &mut [T], offset: f32) {
    // Small enough to stay in the first-level cache on its way, and a whole number of the largest
    // blocks.
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
