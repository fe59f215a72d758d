//! The product of a matrix with one vector in float32, which is what a model that speaks token by
//! token does all day.

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

/// What a core is given to read at least, in bytes: a third of a millisecond's work. Smaller pieces
/// would be done sooner, and on a machine that does other things as well each of them waits for the
/// slowest core.
const PIECE: usize = 8 << 20;

/// xWᵀ `[1 out]` of x `[1 in]` and W `[out in]`; none where this is not the way to compute it:
/// several rows, another kind than float32, another device than the CPU, a gradient to be kept, or
/// a processor that it is not made for.
///
/// # Errors
/// Where memory runs out.
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
    // What does not fit is libtorch's to refuse, and nothing at all has no address.
    if n != 1 || inputs as usize != columns || rows * columns == 0 {
        return Ok(None);
    }
    let y = Tensor::f_zeros([1, rows as i64], (Kind::Float, Device::Cpu))?;
    // SAFETY: contiguous float32 tensors of these sizes on the CPU, which live until the end of
    // this function; nobody else knows `y`, and the frozen weights are written to by nobody.
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

/// y = Wx, a thread for each of so many pieces of W's rows; false where the processor cannot.
fn in_pieces(w: &[f32], x: &[f32], y: &mut [f32], pieces: usize) -> bool {
    let (columns, each) = (x.len(), y.len().div_ceil(pieces));
    let product = |w: &[f32], y: &mut [f32]| {
        // SAFETY: W holds `columns` numbers for each of `y`, and x holds `columns`.
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
    let mut shares = w.chunks(each * columns).zip(y.chunks_mut(each));
    let Some((first, first_y)) = shares.next() else { return false };
    std::thread::scope(|scope| {
        // If one can, all can.
        shares.for_each(|(w, y)| drop(scope.spawn(move || product(w, y))));
        product(first, first_y)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    /// The largest difference from the product in float64.
    fn error(x: &Tensor, weight: &Tensor, y: &Tensor) -> f64 {
        let expected =
            x.to_kind(Kind::Double).linear(&weight.to_kind(Kind::Double), None::<&Tensor>);
        assert_eq!(y.size(), expected.size());
        (y.to_kind(Kind::Double) - expected).abs().max().double_value(&[])
    }

    #[test]
    fn it_is_the_product_whatever_the_sizes_leave_over() {
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
    fn in_pieces_it_gives_the_same_bytes() {
        let numbers = |n: usize| (0..n).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<f32>>();
        let (w, x) = (numbers(37 * 50), numbers(50));
        let of = |pieces: usize| {
            let mut y = vec![f32::NAN; 37];
            in_pieces(&w, &x, &mut y, pieces).then_some(y)
        };
        let Some(whole) = of(1) else { return eprintln!("skipped: no AVX2") };
        assert!(whole.iter().all(|y| y.is_finite()));
        // 37 rows are no multiple of any of these, nor do 37 pieces leave a row for a 38th.
        assert!([2, 5, 16, 37, 40].into_iter().all(|pieces| of(pieces).as_ref() == Some(&whole)));
    }

    #[test]
    fn what_it_is_not_made_for_is_left_to_libtorch() {
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
