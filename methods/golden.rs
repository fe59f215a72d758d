//! The folders of reference values, and the distance of a tensor from its reference.

use reprpo_plugin::tch::Tensor;

pub use folders::{own, roots, shared};

#[path = "../tests/golden.rs"]
mod folders;

/// The largest difference, in units of max(1, largest absolute value of the reference).
pub fn error(ours: &Tensor, reference: &Tensor) -> f64 {
    assert_eq!(ours.size(), reference.size());
    let scale = reference.abs().max().double_value(&[]).max(1.0);
    (ours - reference).abs().max().double_value(&[]) / scale
}
