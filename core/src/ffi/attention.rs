//! Attention over a whole stream on the CPU, as one node of the autograd graph.

use std::ffi::c_char;
use std::ptr;

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use super::checked;
use super::fused::is_activation;
use crate::error::Result;

unsafe extern "C" {
    fn reprpo_attention(
        q: *mut C_tensor,
        k: *mut C_tensor,
        v: *mut C_tensor,
        segments: *const i64,
        count: usize,
        scale: f64,
        window: i64,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// The segments of a stream, in order: for each segment its length, the number of its ancestors,
/// and their indices, beginning with the root.
#[derive(Clone, Debug, Default)]
pub struct Segments {
    numbers: Vec<i64>,
    tokens: i64,
    count: i64,
}

impl Segments {
    /// Appends a segment of `len` tokens.
    ///
    /// # Panics
    /// Panics if an ancestor is not an earlier segment.
    pub fn push(&mut self, len: usize, ancestors: &[usize]) {
        assert!(ancestors.iter().all(|a| (*a as i64) < self.count), "ancestors come first");
        self.numbers.extend([len as i64, ancestors.len() as i64]);
        self.numbers.extend(ancestors.iter().map(|a| *a as i64));
        self.tokens += len as i64;
        self.count += 1;
    }
}

/// Computes softmax(scale·qkᵀ)v for each segment. A token sees the ancestors of its segment, the
/// earlier tokens of its segment and itself, but only the last `window` of these. q is `[n heads
/// d]`, k and v are `[n key_heads d]`, where key_heads divides heads. Returns `[n heads d]`.
///
/// Scores and weights are computed in float32, and the weights are rounded to the dtype of v. The
/// backward pass computes them again. The result has no second derivative.
///
/// Returns `None` for unsupported inputs, for which the caller must use libtorch. Supported are
/// contiguous float32 or bfloat16 tensors on the CPU, on a processor with AVX-512, or with AVX2 and
/// FMA.
///
/// # Errors
/// Fails if memory runs out.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    segments: &Segments,
    scale: f64,
    window: i64,
) -> Result<Option<Tensor>> {
    let kind = q.kind();
    let fits = [q, k, v].iter().all(|t| is_activation(t) && t.kind() == kind)
        && matches!((&q.size()[..], &k.size()[..]), ([n, heads, d], [m, key_heads, e])
            if n == m && d == e && *n == segments.tokens && heads % key_heads == 0)
        && k.size() == v.size()
        && window >= 1
        && (kind == Kind::BFloat16 || kind == Kind::Float);
    if !fits {
        return Ok(None);
    }
    let mut out = ptr::null_mut();
    // SAFETY: all tensors and `segments` live until the call returns. The dtypes and shapes were
    // checked, and `Segments` only contains indices of earlier segments.
    checked(unsafe {
        let [q, k, v] = [q, k, v].map(|t| t.as_ptr().cast_mut());
        let numbers = &segments.numbers;
        reprpo_attention(q, k, v, numbers.as_ptr(), numbers.len(), scale, window, &mut out)
    })?;
    // SAFETY: the shim has written a pointer to a new tensor, which nothing else owns.
    Ok(Some(unsafe { Tensor::from_ptr(out) }))
}
