//! Operations with a backward pass of their own.

use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::Tensor;
use torch_sys::C_tensor;

use super::checked;
use crate::error::{Error, Result};

unsafe extern "C" {
    fn reprpo_attach(
        output: *mut C_tensor,
        inputs: *const *mut C_tensor,
        count: usize,
        context: *mut c_void,
        gradient: extern "C" fn(
            *mut c_void,
            usize,
            *mut C_tensor,
            *mut c_char,
            usize,
        ) -> *mut C_tensor,
        drop: extern "C" fn(*mut c_void),
    ) -> *mut c_char;
}

/// A function from the index of an input and the gradient of the output to the gradient of the
/// input.
type Gradient = Box<dyn Fn(usize, &Tensor) -> Result<Tensor> + Send>;

/// Makes `output` a function of `inputs` in the autograd graph. In the backward pass,
/// `gradient(i, g)` computes the gradient of input i from the gradient g of the output. It is only
/// called for inputs that need a gradient, and may run on another thread. If it fails or panics,
/// the backward pass fails.
///
/// `output` must be a new tensor that was computed without gradients. Nothing happens if no input
/// requires a gradient, or if gradients are disabled.
///
/// # Errors
/// Fails if libtorch cannot create the node.
pub fn attach_backward(output: &Tensor, inputs: &[&Tensor], gradient: Gradient) -> Result<()> {
    let pointers: Vec<*mut C_tensor> = inputs.iter().map(|t| t.as_ptr().cast_mut()).collect();
    let context = Box::into_raw(Box::new(gradient));
    // SAFETY: all tensors are borrowed for the whole call, and the shim takes ownership of the
    // context.
    checked(unsafe {
        reprpo_attach(
            output.as_ptr().cast_mut(),
            pointers.as_ptr(),
            pointers.len(),
            context.cast(),
            call,
            drop_context,
        )
    })
}

extern "C" fn call(
    context: *mut c_void,
    input: usize,
    grad: *mut C_tensor,
    error: *mut c_char,
    capacity: usize,
) -> *mut C_tensor {
    // SAFETY: the shim passes the context from `attach_backward`, and holds the lock of the node.
    let gradient = unsafe { &*context.cast::<Gradient>() };
    // SAFETY: the shim passes a new tensor on the heap, which this function owns.
    let grad = unsafe { Tensor::from_ptr(grad) };
    let computed = catch_unwind(AssertUnwindSafe(|| gradient(input, &grad)))
        .unwrap_or_else(|panic| Err(Error::panicked("a backward pass", panic.as_ref())));
    match computed {
        Ok(t) => {
            let pointer = t.as_ptr().cast_mut();
            // The shim owns the tensor from here on.
            std::mem::forget(t);
            pointer
        }
        Err(e) => {
            let text = format!("{e:?}");
            let len = text.len().min(capacity - 1);
            // SAFETY: `error` has `capacity` bytes, and `len + 1` is at most `capacity`.
            unsafe {
                std::ptr::copy_nonoverlapping(text.as_ptr().cast(), error, len);
                *error.add(len) = 0;
            }
            std::ptr::null_mut()
        }
    }
}

extern "C" fn drop_context(context: *mut c_void) {
    // SAFETY: the pointer comes from `Box::into_raw` in `attach_backward`. The shim calls this
    // function once.
    let gradient = unsafe { Box::from_raw(context.cast::<Gradient>()) };
    // The destructors of captured values may panic, and a panic must not unwind into C++.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(gradient)));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tch::{Device, Kind};

    use super::*;

    fn leaf() -> Tensor {
        Tensor::ones([3], (Kind::Float, Device::Cpu)).set_requires_grad(true)
    }

    /// Returns x·y, whose gradient function is `gradient`.
    fn product(x: &Tensor, y: &Tensor, gradient: Gradient) -> Tensor {
        let output = {
            let _guard = tch::no_grad_guard();
            x * y
        };
        attach_backward(&output, &[x, y], gradient).unwrap();
        output
    }

    #[test]
    fn the_gradients_of_all_inputs_are_those_of_the_function() {
        let (x, y) = (leaf(), leaf());
        let z = product(&x, &y, Box::new(|i, g| Ok(g * (i as f64 + 5.0))));
        (&z * 2.0).sum(Kind::Float).backward();
        assert_eq!(x.grad(), Tensor::from_slice(&[10f32; 3]));
        assert_eq!(y.grad(), Tensor::from_slice(&[12f32; 3]));
    }

    #[test]
    fn a_constant_input_gets_no_gradient() {
        let (x, y) = (leaf(), Tensor::ones([3], (Kind::Float, Device::Cpu)));
        let gradient: Gradient = Box::new(|i, g| {
            assert_eq!(i, 0);
            Ok(g * 3.0)
        });
        product(&x, &y, gradient).sum(Kind::Float).backward();
        assert_eq!(x.grad(), Tensor::from_slice(&[3f32; 3]));
        assert!(!y.grad().defined());
    }

    #[test]
    fn an_error_and_a_panic_fail_the_backward_pass() {
        for (gradient, expected) in [
            (Box::new(|_, _: &Tensor| Err(Error::new("no direction"))) as Gradient, "no direction"),
            (Box::new(|_, _: &Tensor| panic!("out of luck")), "out of luck"),
            (Box::new(|_, g: &Tensor| Ok(g.narrow(0, 0, 2))), "shape"),
        ] {
            let (x, y) = (leaf(), leaf());
            let z = product(&x, &y, gradient).sum(Kind::Float);
            let e = Tensor::f_run_backward(&[z], &[&x], false, false).unwrap_err();
            assert!(format!("{e:?}").contains(expected), "{e:?}");
        }
    }

    #[test]
    fn captured_values_are_dropped_with_the_graph_or_without_a_graph() {
        let alive = Arc::new(());
        let capturing = || -> Gradient {
            let captured = Arc::clone(&alive);
            Box::new(move |_, g| {
                let _ = &captured;
                Ok(g.shallow_clone())
            })
        };
        let (x, y) = (leaf(), leaf());
        let z = product(&x, &y, capturing()).sum(Kind::Float);
        assert_eq!(Arc::strong_count(&alive), 2);
        z.backward();
        assert_eq!(Arc::strong_count(&alive), 1);
        assert!(z.f_backward().is_err());
        let z = {
            let _guard = tch::no_grad_guard();
            product(&x, &y, capturing())
        };
        assert!(!z.requires_grad() && Arc::strong_count(&alive) == 1);
        drop(product(&x, &y, capturing()));
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
