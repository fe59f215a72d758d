//! Maximum norms of tensors and of differences between tensors.

use tch::Tensor;

/// The largest absolute entry of a tensor. NaN if any entry is NaN.
pub fn largest(t: &Tensor) -> f64 {
    if t.numel() == 0 { 0.0 } else { t.detach().abs().max().double_value(&[]) }
}

/// The largest absolute difference between corresponding entries of two lists of tensors. NaN if
/// any difference is NaN.
pub fn difference(a: &[Tensor], b: &[Tensor]) -> f64 {
    // `f64::max` would ignore a NaN.
    a.iter()
        .zip(b)
        .map(|(a, b)| largest(&(a.detach() - b.detach())))
        .fold(0.0, |x, y| if y > x || y.is_nan() { y } else { x })
}

pub fn copies(tensors: &[Tensor]) -> Vec<Tensor> {
    tensors.iter().map(|t| t.detach().copy()).collect()
}
