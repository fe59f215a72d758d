//! Products of activations with frozen weights.

use tch::Tensor;

use crate::error::Result;
use crate::ffi::{float_product, row_product};

/// Computes y = xWᵀ + b `[n out]` from x `[n in]`, W `[out in]` and an optional bias b `[out]`.
///
/// # Errors
/// Fails if the shapes or dtypes do not match.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if let Some(y) = row_product(x, weight)? {
        return Ok(match bias {
            Some(bias) => y.f_add(bias)?,
            None => y,
        });
    }
    Ok(match float_product(x, weight, bias)? {
        Some(y) => y,
        None => x.f_linear(weight, bias)?,
    })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn a_single_row_gives_the_same_result_as_many_rows() {
        tch::manual_seed(0);
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let (x, weight, bias) = (random(&[3, 40]), random(&[8, 40]), random(&[8]));
        for bias in [None, Some(&bias)] {
            let all = linear(&x, &weight, bias).unwrap();
            let rows: Vec<Tensor> =
                (0..3).map(|i| linear(&x.narrow(0, i, 1), &weight, bias).unwrap()).collect();
            assert!((Tensor::cat(&rows, 0) - all).abs().max().double_value(&[]) < 1e-4);
        }
    }
}
