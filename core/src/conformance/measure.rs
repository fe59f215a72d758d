//! Maximum norms of tensors and of differences between tensors.

use tch::Tensor;

/// Returns the largest absolute entry of a tensor, or NaN if an entry is NaN.
pub fn largest(t: &Tensor) -> f64 {
    if t.numel() == 0 { 0.0 } else { t.detach().abs().max().double_value(&[]) }
}

/// Returns the largest absolute difference between corresponding entries of two lists of tensors,
/// or NaN if a difference is NaN.
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
