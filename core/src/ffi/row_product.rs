//! A fast float32 matrix-vector product on the CPU. Generating text token by token spends most of
//! its time here.

use std::slice;

use tch::{Device, Kind, Tensor};

use crate::error::Result;

unsafe extern "C" {
    fn reprpo_row_product(
        weight: *const f32,
        x: *const f32,
        y: *mut f32,
        rows: i64,
        columns: i64,
    ) -> bool;
}

/// Minimum number of bytes of W per thread. One thread takes about a third of a millisecond for
/// this many bytes. Smaller pieces would be slower on a busy machine, because the product waits for
/// the slowest thread.
const PIECE: usize = 8 << 20;

/// Computes xWᵀ. `x` has the shape `[1 in]`, `weight` has the shape `[out in]`, and the result has
/// the shape `[1 out]`.
///
/// Returns `None` for unsupported inputs. The caller must then use libtorch. Both tensors must be
/// contiguous float32 matrices on the CPU that do not require a gradient. x must have a single
/// row, and the processor must support AVX-512, or AVX2 with FMA.
///
/// # Errors
/// Fails if memory runs out.
pub fn row_product(x: &Tensor, weight: &Tensor) -> Result<Option<Tensor>> {
    let plain = |t: &Tensor| {
        t.device() == Device::Cpu
            && t.kind() == Kind::Float
            && t.dim() == 2
            && !t.requires_grad()
            && !t.is_sparse()
            && t.is_contiguous()
    };
    if !plain(x) || !plain(weight) {
        return Ok(None);
    }
    let ((n, inputs), (rows, columns)) = (x.size2()?, weight.size2()?);
    let (Ok(rows), Ok(columns)) = (usize::try_from(rows), usize::try_from(columns)) else {
        return Ok(None);
    };
    // Leave two cases to libtorch: mismatched shapes are an error, and empty tensors have no data
    // pointer.
    if n != 1 || inputs as usize != columns || rows * columns == 0 {
        return Ok(None);
    }
    let y = Tensor::f_zeros([1, rows as i64], (Kind::Float, Device::Cpu))?;
    // SAFETY: the tensors are contiguous, float32, on the CPU and have these sizes. They live until
    // the end of this function. Nothing else refers to `y`, and nothing writes to `x` or `weight`
    // meanwhile.
    let (w, v, out) = unsafe {
        (
            slice::from_raw_parts(weight.data_ptr().cast::<f32>(), rows * columns),
            slice::from_raw_parts(x.data_ptr().cast::<f32>(), columns),
            slice::from_raw_parts_mut(y.data_ptr().cast::<f32>(), rows),
        )
    };
    let cores = usize::try_from(tch::get_num_threads()).unwrap_or(1);
    let pieces = (size_of_val(w) / PIECE).clamp(1, cores.max(1));
    Ok(in_pieces(w, v, out, pieces).then_some(y))
}

/// Computes y = Wx, with the rows of W divided among `pieces` threads. Returns false if the
/// processor lacks the required vector instructions.
fn in_pieces(w: &[f32], x: &[f32], y: &mut [f32], pieces: usize) -> bool {
    let (columns, each) = (x.len(), y.len().div_ceil(pieces));
    let product = |w: &[f32], y: &mut [f32]| {
        // SAFETY: `w` contains `columns` numbers for each entry of `y`, and `x` contains `columns`
        // numbers.
        unsafe {
            reprpo_row_product(
                w.as_ptr(),
                x.as_ptr(),
                y.as_mut_ptr(),
                y.len() as i64,
                columns as i64,
            )
        }
    };
    let mut chunks = w.chunks(each * columns).zip(y.chunks_mut(each));
    let Some((first, first_y)) = chunks.next() else { return false };
    std::thread::scope(|scope| {
        // Ignore the results of these threads. `product` returns the same value in every thread,
        // because the value only depends on the processor.
        chunks.for_each(|(w, y)| drop(scope.spawn(move || product(w, y))));
        product(first, first_y)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    /// Returns the largest difference between `y` and the product computed in float64.
    fn error(x: &Tensor, weight: &Tensor, y: &Tensor) -> f64 {
        let expected =
            x.to_kind(Kind::Double).linear(&weight.to_kind(Kind::Double), None::<&Tensor>);
        assert_eq!(y.size(), expected.size());
        (y.to_kind(Kind::Double) - expected).abs().max().double_value(&[])
    }

    #[test]
    fn the_product_is_right_for_sizes_that_do_not_fill_vectors() {
        tch::manual_seed(0);
        for rows in [1, 3, 4, 7, 64] {
            for columns in [1, 15, 16, 17, 48, 100, 576] {
                let (x, weight) = (random(&[1, columns]), random(&[rows, columns]));
                let Some(y) = row_product(&x, &weight).unwrap() else {
                    return eprintln!("skipped: no AVX2");
                };
                let bound = 1e-6 * columns as f64;
                assert!(
                    error(&x, &weight, &y) < bound,
                    "{rows} × {columns}: {}",
                    error(&x, &weight, &y)
                );
            }
        }
    }

    #[test]
    fn the_number_of_pieces_does_not_change_the_bytes() {
        let numbers = |n: usize| (0..n).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<f32>>();
        let (w, x) = (numbers(37 * 50), numbers(50));
        let of = |pieces: usize| {
            let mut y = vec![f32::NAN; 37];
            in_pieces(&w, &x, &mut y, pieces).then_some(y)
        };
        let Some(whole) = of(1) else { return eprintln!("skipped: no AVX2") };
        assert!(whole.iter().all(|y| y.is_finite()));
        // Most of these piece counts do not divide the 37 rows evenly.
        assert!([2, 5, 16, 37, 40].into_iter().all(|pieces| of(pieces).as_ref() == Some(&whole)));
    }

    #[test]
    fn unsupported_cases_are_left_to_libtorch() {
        let (x, weight) = (random(&[1, 8]), random(&[4, 8]));
        let wide = |t: &Tensor| t.to_kind(Kind::Double);
        for (x, weight) in [
            (random(&[2, 8]), weight.copy()),
            (random(&[1, 7]), weight.copy()),
            (random(&[8]), weight.copy()),
            (wide(&x), wide(&weight)),
            (x.to_kind(Kind::BFloat16), weight.to_kind(Kind::BFloat16)),
            (x.copy(), random(&[8, 4]).transpose(0, 1)),
            (x.copy().set_requires_grad(true), weight.copy()),
            (x.copy(), random(&[0, 8])),
        ] {
            assert!(row_product(&x, &weight).unwrap().is_none(), "{x:?} {weight:?}");
        }
    }
}
