//! Fused elementwise kernels on the CPU, which read and write each value once. A chain of libtorch
//! operations would write every intermediate result to memory, and keep most of them for the
//! backward pass.
//!
//! All functions return `None` for unsupported inputs, for which the caller must use libtorch's
//! operations. Supported are contiguous tensors on the CPU in float32 or bfloat16, on a processor
//! with AVX-512, or with AVX2 and FMA. The results have a first derivative. A backward pass that
//! would need the second one fails.

use std::ffi::c_char;

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use super::created;
use crate::error::Result;

unsafe extern "C" {
    fn reprpo_fused() -> bool;
    fn reprpo_fused_norm(
        x: *mut C_tensor,
        weight: *mut C_tensor,
        eps: f64,
        twice: bool,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn reprpo_fused_gate(
        gate: *mut C_tensor,
        up: *mut C_tensor,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn reprpo_fused_rotation(
        x: *mut C_tensor,
        cos: *mut C_tensor,
        sin: *mut C_tensor,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// True if the kernels support a tensor of this kind.
fn supported(x: &Tensor, kinds: &[Kind]) -> bool {
    // SAFETY: the function has no arguments and only reads the features of the processor.
    x.device() == Device::Cpu
        && kinds.contains(&x.kind())
        && !x.is_sparse()
        && x.is_contiguous()
        && x.numel() > 0
        && unsafe { reprpo_fused() }
}

/// True if the kernels support x as an activation.
pub(super) fn is_activation(x: &Tensor) -> bool {
    supported(x, &[Kind::Float, Kind::BFloat16])
}

/// Computes w ⊙ x / √(mean(x²) + ε) over the last axis of x `[... width]`, with float32 statistics.
/// `weight` has the shape `[width]`.
///
/// If `weight` has the dtype of x and `round_twice` is true, the quotient is rounded to this dtype
/// before the product. If `weight` is float32 and `round_twice` is false, only the result is
/// rounded.
///
/// # Errors
/// Fails if memory runs out.
pub fn fused_norm(
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
    round_twice: bool,
) -> Result<Option<Tensor>> {
    let kind = if round_twice { x.kind() } else { Kind::Float };
    let fits = is_activation(x)
        && supported(weight, &[kind])
        && !weight.requires_grad()
        && weight.dim() == 1
        && x.size().last() == weight.size().last();
    if !fits {
        return Ok(None);
    }
    // SAFETY: both tensors live until the call returns. Their dtypes and shapes were checked.
    created(|out| unsafe {
        let (x, weight) = (x.as_ptr().cast_mut(), weight.as_ptr().cast_mut());
        reprpo_fused_norm(x, weight, eps, round_twice, out)
    })
    .map(Some)
}

/// Computes silu(gate) ⊙ up. Both have the same shape and dtype, and silu(gate) is rounded to this
/// dtype before the product.
///
/// # Errors
/// Fails if memory runs out.
pub fn fused_gate(gate: &Tensor, up: &Tensor) -> Result<Option<Tensor>> {
    let fits = is_activation(gate) && supported(up, &[gate.kind()]) && gate.size() == up.size();
    if !fits {
        return Ok(None);
    }
    // SAFETY: both tensors live until the call returns. Their dtypes and shapes were checked.
    created(|out| unsafe {
        reprpo_fused_gate(gate.as_ptr().cast_mut(), up.as_ptr().cast_mut(), out)
    })
    .map(Some)
}

/// Rotates x `[n heads d]`: x ⊙ cos + (−x₂, x₁) ⊙ sin, where x₁ and x₂ are the halves of each head.
/// `cos` and `sin` have the shape `[n 1 d]` and the dtype of x, to which both products are rounded.
///
/// # Errors
/// Fails if memory runs out.
pub fn fused_rotation(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Option<Tensor>> {
    let is_table = |table: &Tensor| {
        supported(table, &[x.kind()])
            && !table.requires_grad()
            && matches!((&table.size()[..], &x.size()[..]),
                ([rows, 1, width], [n, _, d]) if rows == n && width == d && d % 2 == 0)
    };
    if !is_activation(x) || !is_table(cos) || !is_table(sin) {
        return Ok(None);
    }
    // SAFETY: all tensors live until the call returns. Their dtypes and shapes were checked.
    created(|out| unsafe {
        let (x, cos, sin) =
            (x.as_ptr().cast_mut(), cos.as_ptr().cast_mut(), sin.as_ptr().cast_mut());
        reprpo_fused_rotation(x, cos, sin, out)
    })
    .map(Some)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const BOTH: [Kind; 2] = [Kind::Float, Kind::BFloat16];

    thread_local! {
        /// libtorch's generator is shared with the tests of other threads, so its numbers differ
        /// from run to run.
        static GENERATOR: RefCell<ChaCha8Rng> = RefCell::new(ChaCha8Rng::seed_from_u64(1));
    }

    /// Values with the mean 0 and the variance 1, which are the same in every run.
    fn random(shape: &[i64], kind: Kind) -> Tensor {
        let mut values = vec![0f32; shape.iter().product::<i64>() as usize];
        GENERATOR.with_borrow_mut(|generator| {
            for value in &mut values {
                *value = (0..3).map(|_| generator.random_range(-1f32..1.0)).sum();
            }
        });
        Tensor::from_slice(&values).reshape(shape).to_kind(kind)
    }

    /// Checks a fused function against the chain of operations that it replaces: the result, and
    /// the gradients of all `inputs` at a random gradient of the result. In bfloat16, almost all
    /// values must be equal, because both round at the same places. The others, at most 2 % or a
    /// single one, may differ by the rounding of one value.
    fn check(
        what: &str,
        inputs: &[Tensor],
        fused: impl Fn(&[Tensor]) -> Option<Tensor>,
        plain: impl Fn(&[Tensor]) -> Tensor,
    ) {
        let kind = inputs[0].kind();
        let run = |f: &dyn Fn(&[Tensor]) -> Tensor, dy: Option<&Tensor>| {
            let leaves: Vec<Tensor> =
                inputs.iter().map(|t| t.copy().set_requires_grad(true)).collect();
            let y = f(&leaves);
            let dy = dy.map_or_else(|| random(&y.size(), kind), Tensor::shallow_clone);
            let sum = (&y * &dy).sum(Kind::Float);
            let gradients = Tensor::run_backward(&[sum], &leaves, false, false);
            let results: Vec<Tensor> = std::iter::once(y.detach()).chain(gradients).collect();
            (results, dy)
        };
        let (theirs, dy) = run(&plain, None);
        let (ours, _) = run(&|leaves| fused(leaves).expect("the input is supported"), Some(&dy));
        for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
            assert_eq!((a.kind(), a.size()), (b.kind(), b.size()), "{what}: result {i}");
            let [a, b] = [a, b].map(|t| t.to_kind(Kind::Double));
            let off = (&a - &b).abs();
            let worst = (&off / (b.abs() + 0.1)).max().double_value(&[]);
            let unequal = a.not_equal_tensor(&b).sum(Kind::Int64).int64_value(&[]);
            let bound = if kind == Kind::Float { 2e-6 } else { 1.0 / 64.0 };
            assert!(worst <= bound, "{what}, {kind:?}: result {i} is off by {worst:e}");
            if kind == Kind::BFloat16 {
                let most = (a.numel() as i64 / 50).max(1);
                assert!(unequal <= most, "{what}: {unequal} values of result {i} are not equal");
            }
        }
    }

    #[test]
    fn norms_equal_the_plain_chain() {
        let scaled = |x: &Tensor| {
            let wide = x.to_kind(Kind::Float);
            &wide * (wide.square().mean_dim(-1, true, None::<Kind>) + 1e-5).rsqrt()
        };
        // One row, a width that is not a multiple of 16, several heads, and several threads.
        for shape in [&[1, 16][..], &[7, 37], &[5, 3, 64], &[700, 576]] {
            for kind in BOTH {
                let (x, w) = (random(shape, kind), random(&shape[shape.len() - 1..], kind));
                check(
                    &format!("norm of {shape:?} that rounds twice"),
                    std::slice::from_ref(&x),
                    |x| fused_norm(&x[0], &w, 1e-5, true).unwrap(),
                    |x| scaled(&x[0]).to_kind(kind) * &w,
                );
                let gain = w.to_kind(Kind::Float) + 1.0;
                check(
                    &format!("norm of {shape:?} that rounds once"),
                    std::slice::from_ref(&x),
                    |x| fused_norm(&x[0], &gain, 1e-5, false).unwrap(),
                    |x| (scaled(&x[0]) * &gain).to_kind(kind),
                );
            }
        }
    }

    #[test]
    fn a_norm_whose_squares_overflow_has_no_gradient() {
        let weight = Tensor::ones([32], (Kind::Float, Device::Cpu));
        let x = (random(&[2, 32], Kind::Float) * 1e30).set_requires_grad(true);
        let y = fused_norm(&x, &weight, 1e-5, true).unwrap().unwrap();
        assert_eq!(y.abs().max().double_value(&[]), 0.0, "as with libtorch's operations");
        y.sum(Kind::Float).backward();
        assert!(bool::try_from(x.grad().isnan().all()).unwrap());
    }

    #[test]
    fn gates_equal_the_plain_chain() {
        for shape in [[1, 5], [33, 48], [600, 1536]] {
            for kind in BOTH {
                let inputs = [random(&shape, kind) * 4.0, random(&shape, kind)];
                check(
                    &format!("gate of {shape:?}"),
                    &inputs,
                    |x| fused_gate(&x[0], &x[1]).unwrap(),
                    |x| x[0].silu() * &x[1],
                );
            }
        }
    }

    #[test]
    fn gates_of_extreme_values_are_finite_or_nan() {
        for kind in BOTH {
            let gate = Tensor::from_slice(&[-1e4f32, -90.0, -0.0, 0.0, 90.0, 1e4, f32::NAN]);
            let gate = gate.to_kind(kind);
            let up = gate.ones_like();
            let y = fused_gate(&gate, &up).unwrap().unwrap().to_kind(Kind::Double);
            let y = Vec::<f64>::try_from(y).unwrap();
            let expected = Vec::<f64>::try_from(gate.to_kind(Kind::Double)).unwrap();
            assert!(y[..4].iter().all(|y| y.abs() < 1e-30), "{y:?}");
            assert!(y[4] == expected[4] && y[5] == expected[5] && y[6].is_nan(), "{y:?}");
        }
    }

    #[test]
    fn rotations_equal_the_plain_chain() {
        for [n, heads, d] in [[1, 1, 2], [9, 3, 20], [500, 9, 64]] {
            for kind in BOTH {
                let angles = random(&[n, 1, d / 2], Kind::Float) * 3.0;
                let angles = Tensor::cat(&[&angles, &angles], -1);
                let (cos, sin) = (angles.cos().to_kind(kind), angles.sin().to_kind(kind));
                check(
                    &format!("rotation of {n}, {heads}, {d}"),
                    &[random(&[n, heads, d], kind)],
                    |x| fused_rotation(&x[0], &cos, &sin).unwrap(),
                    |x| {
                        let [a, b] = [0, d / 2].map(|start| x[0].narrow(2, start, d / 2));
                        &x[0] * &cos + Tensor::cat(&[-b, a], -1) * &sin
                    },
                );
            }
        }
    }

    #[test]
    fn unsupported_inputs_are_left_to_libtorch() {
        let x = random(&[4, 32], Kind::Float);
        let w = random(&[32], Kind::Float);
        let norm = |x: &Tensor, w: &Tensor| fused_norm(x, w, 1e-5, true).unwrap();
        assert!(norm(&x, &w).is_some());
        assert!(norm(&x.to_kind(Kind::Double), &w.to_kind(Kind::Double)).is_none());
        assert!(norm(&x.to_kind(Kind::BFloat16), &w).is_none(), "the dtypes differ");
        assert!(norm(&random(&[32, 4], Kind::Float).tr(), &w).is_none(), "not contiguous");
        assert!(norm(&x, &random(&[16], Kind::Float)).is_none(), "the widths differ");
        assert!(norm(&x, &w.set_requires_grad(true)).is_none(), "the weight is trained");
        assert!(fused_gate(&x, &x.narrow(0, 0, 2)).unwrap().is_none(), "the shapes differ");
        let x = random(&[4, 1, 32], Kind::Float);
        let wide = random(&[4, 2, 32], Kind::Float);
        assert!(fused_rotation(&x, &wide, &wide).unwrap().is_none(), "tables for each head");
    }

    #[test]
    fn second_derivatives_are_an_error() {
        let x = random(&[4, 32], Kind::Float).set_requires_grad(true);
        let y = fused_gate(&x, &x).unwrap().unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            Tensor::run_backward(&[y.sum(Kind::Float)], &[&x], false, true)
        }));
        assert!(result.is_err());
    }
}
