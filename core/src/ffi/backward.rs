//! The backward pass from tensors whose gradients are given.

use std::ffi::c_char;

use tch::Tensor;
use torch_sys::C_tensor;

use super::checked;
use crate::error::Result;

unsafe extern "C" {
    fn reprpo_backward(
        tensors: *const *mut C_tensor,
        gradients: *const *mut C_tensor,
        count: usize,
    ) -> *mut c_char;
}

/// Adds the gradients of all leaves to the leaves, given the gradients of some tensors that were
/// computed from them. Each root is a tensor and its gradient. Frees the graph.
///
/// # Errors
/// Fails if a root does not require a gradient, if a gradient does not have the shape of its
/// tensor, or if memory runs out.
pub fn backward(roots: &[(Tensor, Tensor)]) -> Result<()> {
    let (tensors, gradients): (Vec<_>, Vec<_>) = roots
        .iter()
        .map(|(tensor, gradient)| (tensor.as_ptr().cast_mut(), gradient.as_ptr().cast_mut()))
        .unzip();
    // SAFETY: both arrays contain `count` tensors, which are borrowed for the whole call.
    checked(unsafe { reprpo_backward(tensors.as_ptr(), gradients.as_ptr(), roots.len()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradients_of_all_roots_are_added() {
        let x = Tensor::from_slice(&[1f32, 2.0]).set_requires_grad(true);
        let (y, z) = (&x * 3.0, &x * &x);
        let one = Tensor::from_slice(&[1f32, 1.0]);
        backward(&[(y, one.shallow_clone()), (z, &one * 10.0), (x.shallow_clone(), &one * 100.0)])
            .unwrap();
        assert_eq!(x.grad(), Tensor::from_slice(&[123f32, 143.0]));
    }

    #[test]
    fn a_root_without_a_graph_and_a_wrong_shape_are_errors() {
        let x = Tensor::from_slice(&[1f32, 2.0]);
        assert!(backward(&[(x.shallow_clone(), x.shallow_clone())]).is_err());
        let y = x.set_requires_grad(true) * 2.0;
        let e = backward(&[(y, Tensor::from_slice(&[1f32]))]).unwrap_err();
        assert!(format!("{e:?}").contains("shape"), "{e:?}");
    }
}
