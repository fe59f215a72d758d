//! xWᵀ for a model's frozen weights.

use tch::Tensor;

use crate::error::Result;
use crate::ffi::row_product;

/// y `[n out]` of x `[n in]` and W `[out in]`, with b `[out]` where there is one.
///
/// # Errors
/// Fails if shapes or kinds do not fit.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    Ok(match (row_product(x, weight)?, bias) {
        (Some(y), Some(bias)) => y.f_add(bias)?,
        (Some(y), None) => y,
        (None, bias) => x.f_linear(weight, bias)?,
    })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn one_row_and_many_give_the_same() {
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
