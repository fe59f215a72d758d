//! Products of activations with frozen float32 weights on the CPU.
//!
//! libtorch computes them with MKL, which does not use AVX-512 on processors that are not Intel's.
//! oneDNN, which is part of libtorch too, takes half the time on these.

use std::ffi::c_char;
use std::ptr;

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use super::created;
use crate::error::Result;

unsafe extern "C" {
    fn reprpo_has_float_product() -> bool;
    fn reprpo_float_product(
        x: *mut C_tensor,
        weight: *mut C_tensor,
        bias: *mut C_tensor,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// Computes y = xWᵀ + b `[n out]` from x `[n in]`, W `[out in]` and an optional bias b `[out]`. The
/// result can be differentiated any number of times.
///
/// Returns `None` for unsupported inputs, and if libtorch is as fast. The caller must then use
/// libtorch. All tensors must be float32 on the CPU, with W not requiring a gradient. W may be a
/// transposed view.
///
/// # Errors
/// Fails if the shapes do not match, or if memory runs out.
pub fn float_product(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Option<Tensor>> {
    let is_matrix = |t: &Tensor| {
        t.device() == Device::Cpu
            && t.kind() == Kind::Float
            && t.dim() == 2
            && !t.is_sparse()
            && t.numel() > 0
    };
    // SAFETY: the function has no arguments and only reads the features of the processor.
    let fits = is_matrix(x)
        && is_matrix(weight)
        && !weight.requires_grad()
        && bias.is_none_or(|b| b.kind() == Kind::Float && b.device() == Device::Cpu)
        && unsafe { reprpo_has_float_product() };
    if !fits {
        return Ok(None);
    }
    let bias = bias.map_or(ptr::null_mut(), |b| b.as_ptr().cast_mut());
    // SAFETY: all tensors live until the call returns. The shim checks their shapes.
    created(|out| unsafe {
        reprpo_float_product(x.as_ptr().cast_mut(), weight.as_ptr().cast_mut(), bias, out)
    })
    .map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// y, and the gradients of x and b of Σ sin(y)·y.
    fn computed(
        product: impl Fn(&Tensor, &Tensor, Option<&Tensor>) -> Tensor,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Vec<Tensor> {
        let leaf = |t: &Tensor| t.detach().set_requires_grad(true);
        let (x, bias) = (leaf(x), bias.map(leaf));
        let y = product(&x, weight, bias.as_ref());
        let inputs: Vec<&Tensor> = [Some(&x), bias.as_ref()].into_iter().flatten().collect();
        let loss = (y.sin() * &y).sum(Kind::Float);
        let first = Tensor::run_backward(&[loss], &inputs, true, true);
        // The gradient of the squared gradient is a second derivative.
        let squares =
            first.iter().map(|g| g.square().sum(Kind::Float)).reduce(|a, b| a + b).unwrap();
        let second = Tensor::run_backward(&[squares], &inputs, true, false);
        std::iter::once(y).chain(first).chain(second).collect()
    }

    #[test]
    fn products_and_both_derivatives_equal_those_of_libtorch() {
        tch::manual_seed(0);
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 0.1;
        let wide = random(&[7, 80]);
        let mut compared = false;
        for (x, weight) in [
            (random(&[7, 40]), random(&[24, 40])),
            (random(&[1, 40]), random(&[24, 40])),
            (random(&[40, 7]).tr(), random(&[40, 24]).tr()),
            (wide.narrow(1, 3, 40), random(&[24, 40])),
            (random(&[7, 40]), random(&[24, 80]).narrow(1, 5, 40)),
        ] {
            let bias = random(&[24]);
            for bias in [None, Some(&bias)] {
                if float_product(&x, &weight, bias).unwrap().is_none() {
                    continue;
                }
                let ours =
                    |x: &Tensor, w: &Tensor, b: Option<&Tensor>| float_product(x, w, b).unwrap();
                let ours = computed(|x, w, b| ours(x, w, b).unwrap(), &x, &weight, bias);
                let plain = computed(|x, w, b| x.linear(w, b), &x, &weight, bias);
                for (a, b) in ours.iter().zip(&plain) {
                    let scale = b.abs().max().double_value(&[]).max(1.0);
                    let off = (a - b).abs().max().double_value(&[]) / scale;
                    assert!(off < 3e-5, "{:?} × {:?}: {off}", x.size(), weight.size());
                }
                compared = true;
            }
        }
        if !compared {
            eprintln!("skipped: libtorch's own product is as fast on this processor");
        }
    }

    #[test]
    fn the_number_of_kept_kernels_is_limited_unless_the_user_sets_it() {
        let set = |name: &str| std::env::var_os(name).is_some();
        assert!(
            set("ONEDNN_PRIMITIVE_CACHE_CAPACITY") || set("DNNL_PRIMITIVE_CACHE_CAPACITY"),
            "the initialiser in product.cc did not run"
        );
    }

    #[test]
    fn unsupported_inputs_are_left_to_libtorch() {
        let zeros = |shape: &[i64], kind| Tensor::zeros(shape, (kind, Device::Cpu));
        let (x, weight) = (zeros(&[2, 3], Kind::Float), zeros(&[4, 3], Kind::Float));
        for (x, weight) in [
            (zeros(&[0, 3], Kind::Float), weight.shallow_clone()),
            (zeros(&[2, 2, 3], Kind::Float), weight.shallow_clone()),
            (x.to_kind(Kind::Double), weight.to_kind(Kind::Double)),
            (x.to_kind(Kind::BFloat16), weight.to_kind(Kind::BFloat16)),
            (x, weight.set_requires_grad(true)),
        ] {
            assert!(float_product(&x, &weight, None).unwrap().is_none());
        }
    }
}
