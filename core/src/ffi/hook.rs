//! Hooks that replace the gradient of a tensor during the backward pass.

use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use tch::Tensor;
use torch_sys::C_tensor;

use super::checked;
use crate::error::{Error, Result};

unsafe extern "C" {
    fn reprpo_register_hook(
        tensor: *mut C_tensor,
        context: *mut c_void,
        call: extern "C" fn(*mut c_void, *mut C_tensor) -> *mut C_tensor,
        drop: extern "C" fn(*mut c_void),
    ) -> *mut c_char;
}

/// Stores the first error that occurs in a hook. A hook cannot stop the backward pass, so all hooks
/// leave the gradients unchanged after the first error. The caller of `backward` must call
/// [`check`](Self::check) afterwards.
#[derive(Clone, Debug, Default)]
pub struct HookErrors(Arc<Mutex<Option<Error>>>);

impl HookErrors {
    fn put(&self, error: Error) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Returns the first error that occurred in a hook, and clears it.
    ///
    /// # Errors
    /// Fails if a hook has failed since the last call.
    pub fn check(&self) -> Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }
}

/// A function from the old gradient to the new one.
type GradMap = Box<dyn FnMut(&Tensor) -> Result<Tensor> + Send>;

struct Context {
    map: GradMap,
    errors: HookErrors,
}

impl Context {
    fn call(&mut self, grad: &Tensor) -> Option<Tensor> {
        if !self.errors.is_empty() {
            return None;
        }
        let mapped = catch_unwind(AssertUnwindSafe(|| {
            let _guard = tch::no_grad_guard();
            let mapped = (self.map)(grad)?;
            if mapped.size() != grad.size() || mapped.kind() != grad.kind() {
                let (old, new) = ((grad.size(), grad.kind()), (mapped.size(), mapped.kind()));
                return Err(Error::new(format!(
                    "a gradient hook must return a tensor of shape and dtype {old:?}, \
                    but returned {new:?}"
                )));
            }
            Ok(mapped)
        }));
        match mapped {
            Ok(Ok(mapped)) => Some(mapped),
            Ok(Err(e)) => {
                self.errors.put(e);
                None
            }
            Err(panic) => {
                self.errors.put(Error::panicked("a gradient hook", panic.as_ref()));
                None
            }
        }
    }
}

extern "C" fn call(context: *mut c_void, grad: *mut C_tensor) -> *mut C_tensor {
    // SAFETY: the shim passes the context from `register_hook`. The context is not aliased, because
    // the hooks of a tensor do not run concurrently.
    let context = unsafe { &mut *context.cast::<Context>() };
    // SAFETY: the shim passes a new tensor on the heap. This function owns the tensor.
    let grad = unsafe { Tensor::from_ptr(grad) };
    // The gradient is undefined if the loss does not depend on the hooked tensor.
    let mapped = if grad.defined() { context.call(&grad) } else { None };
    mapped.map_or(std::ptr::null_mut(), |t| {
        let pointer = t.as_ptr().cast_mut();
        // The shim owns the tensor from here on.
        std::mem::forget(t);
        pointer
    })
}

extern "C" fn drop_context(context: *mut c_void) {
    // SAFETY: the pointer comes from `Box::into_raw` in `register_hook`. The shim calls this
    // function once, when the last copy of the hook is destroyed.
    let context = unsafe { Box::from_raw(context.cast::<Context>()) };
    // Values that the map captured may panic when they are dropped. A panic must not unwind into
    // C++.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(context)));
}

/// Replaces the gradient of `tensor` with `map(gradient)` in every backward pass. `map` may run on
/// another thread. If `map` fails or panics, the error is stored in `errors`.
///
/// # Errors
/// Fails if `tensor` does not require a gradient.
pub fn register_hook(tensor: &Tensor, map: GradMap, errors: &HookErrors) -> Result<()> {
    let context = Box::into_raw(Box::new(Context { map, errors: errors.clone() }));
    // SAFETY: `tensor` is borrowed for the whole call, and the shim takes ownership of the context.
    checked(unsafe {
        reprpo_register_hook(tensor.as_ptr().cast_mut(), context.cast(), call, drop_context)
    })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn leaf() -> Tensor {
        Tensor::ones([3], (Kind::Float, Device::Cpu)).set_requires_grad(true)
    }

    fn backward(map: GradMap) -> (Tensor, Result<()>) {
        let (x, errors) = (leaf(), HookErrors::default());
        let y = &x * 2.0;
        register_hook(&y, map, &errors).expect("y needs a gradient");
        y.sum(Kind::Float).backward();
        (x.grad(), errors.check())
    }

    #[test]
    fn a_hook_replaces_the_gradient() {
        let (grad, outcome) = backward(Box::new(|g| Ok(g * 10.0)));
        outcome.unwrap();
        assert_eq!(grad, Tensor::from_slice(&[20.0f32; 3]));
    }

    #[test]
    fn an_error_is_reported_after_the_backward_pass() {
        let (grad, outcome) = backward(Box::new(|_| Err(Error::new("no direction"))));
        assert_eq!(format!("{:?}", outcome.unwrap_err()), "no direction");
        assert_eq!(grad, Tensor::from_slice(&[2.0f32; 3]));
    }

    #[test]
    fn a_panic_and_a_wrong_shape_are_errors() {
        let (_, outcome) = backward(Box::new(|_| panic!("out of luck")));
        assert!(format!("{:?}", outcome.unwrap_err()).contains("out of luck"));
        let (_, outcome) = backward(Box::new(|g| Ok(g.sum(Kind::Float))));
        assert!(outcome.is_err());
    }

    #[test]
    fn captured_values_are_dropped_with_the_graph() {
        let alive = Arc::new(());
        let captured = Arc::clone(&alive);
        let _ = backward(Box::new(move |g| {
            let _ = &captured;
            Ok(g.shallow_clone())
        }));
        assert_eq!(Arc::strong_count(&alive), 1);
    }

    #[test]
    fn a_hook_on_a_tensor_without_a_gradient_is_an_error() {
        let constant = Tensor::ones([1], (Kind::Float, Device::Cpu));
        assert!(
            register_hook(&constant, Box::new(|g| Ok(g.shallow_clone())), &HookErrors::default())
                .is_err()
        );
    }
}
