//! Wrappers for libtorch functions that tch does not expose. All `unsafe` code in this crate that
//! calls libtorch is in this module.

mod attention;
mod backward;
mod compute_capability;
mod cuda;
mod float_product;
mod fused;
mod hook;
mod node;
mod row_product;
mod switches;
mod world;

/// A module of the build script, for its tests.
#[cfg(test)]
#[path = "../../nccl_headers.rs"]
#[expect(dead_code, reason = "only the build script reads the environment")]
mod nccl_headers;

use std::ffi::{CStr, c_char};
use std::ptr;

pub use attention::{Segments, attention};
pub use backward::backward;
pub use compute_capability::{bf16_supported, compute_capability};
pub use cuda::{CudaLibrary, libtorch_folder, libtorch_hint, load_cuda};
pub use float_product::float_product;
pub use fused::{fused_gate, fused_norm, fused_rotation};
pub use hook::{HookErrors, register_hook};
pub use node::attach_backward;
pub use row_product::row_product;
pub use switches::{
    CudaMemory, RngState, cuda_empty_cache, cuda_memory, cuda_reset_peak, is_deterministic,
    set_attention_kernels, set_deterministic, set_tf32,
};
pub use world::{Group, Store, Work, built_with_nccl, end_process, has_gloo, nccl_card};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::{Error, Result};

/// The libtorch release this crate was built against.
pub const LIBTORCH_VERSION: &str = env!("REPRPO_LIBTORCH_VERSION");

unsafe extern "C" {
    fn reprpo_free(text: *mut c_char);
}

/// Calls a function of the shim that creates a tensor.
///
/// # Errors
/// Fails with the first line of the function's message.
fn created(create: impl FnOnce(*mut *mut C_tensor) -> *mut c_char) -> Result<Tensor> {
    let mut out = ptr::null_mut();
    checked(create(&mut out))?;
    // SAFETY: the shim has written a pointer to a new tensor, which nothing else owns.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// Converts the return value of a shim function to a `Result`. The value is null on success.
/// Otherwise, it is an error message, and this function frees it.
///
/// # Errors
/// Fails with the first line of the message. The remaining lines are a C++ stack trace.
fn checked(text: *mut c_char) -> Result<()> {
    if text.is_null() {
        return Ok(());
    }
    // SAFETY: the shim returns a NUL-terminated string that the caller owns.
    let message = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: this function owns the string, and there are no references to it.
    unsafe { reprpo_free(text) };
    let first = message.lines().next().unwrap_or("libtorch failed without a message");
    Err(Error::new(first).of_libtorch(first))
}
