//! Locates reference values for tests and compares results with them.

use reprpo_plugin::tch::Tensor;

pub use folders::{own, roots, shared};

#[path = "../tests/golden.rs"]
mod folders;

/// Returns the largest absolute difference between `ours` and `reference`, divided by max(1,
/// largest absolute reference value).
pub fn error(ours: &Tensor, reference: &Tensor) -> f64 {
    assert_eq!(ours.size(), reference.size());
    let scale = reference.abs().max().double_value(&[]).max(1.0);
    (ours - reference).abs().max().double_value(&[]) / scale
}
