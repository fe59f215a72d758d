//! Sizes of tensors and of what lies between them.

use tch::Tensor;

/// The largest absolute entry; NaN where there is one.
pub fn largest(t: &Tensor) -> f64 {
    if t.numel() == 0 { 0.0 } else { t.detach().abs().max().double_value(&[]) }
}

/// The largest entry of all differences; NaN where there is one.
pub fn difference(a: &[Tensor], b: &[Tensor]) -> f64 {
    // f64::max would lose a NaN.
    a.iter()
        .zip(b)
        .map(|(a, b)| largest(&(a.detach() - b.detach())))
        .fold(0.0, |x, y| if y > x || y.is_nan() { y } else { x })
}

pub fn copies(tensors: &[Tensor]) -> Vec<Tensor> {
    tensors.iter().map(|t| t.detach().copy()).collect()
}
