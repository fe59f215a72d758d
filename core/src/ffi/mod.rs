//! What is outside tch's reach. All `unsafe` of this crate that touches libtorch is here.

mod compute_capability;
mod cuda;
mod hook;
mod row_product;
mod switches;

use std::ffi::{CStr, c_char};

pub use compute_capability::{bf16_supported, compute_capability};
pub use cuda::{CudaLibrary, libtorch_folder, libtorch_hint, load_cuda};
pub use hook::{HookErrors, register_hook};
pub use row_product::row_product;
pub use switches::{
    CudaMemory, RngState, cuda_empty_cache, cuda_memory, cuda_reset_peak, is_deterministic,
    set_attention_kernels, set_deterministic, set_tf32,
};

use crate::error::{Error, Result};

/// The libtorch release this crate was built against.
pub const LIBTORCH_VERSION: &str = env!("REPRPO_LIBTORCH_VERSION");

unsafe extern "C" {
    fn reprpo_free(text: *mut c_char);
}

/// What the shim says of a call: null, or the text of an error, which is freed here.
///
/// The text is a message of one line and then a C++ stack, of which a user reads the first line.
fn checked(text: *mut c_char) -> Result<()> {
    if text.is_null() {
        return Ok(());
    }
    // SAFETY: the shim gives a NUL-terminated string that it leaves to the caller.
    let message = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: as above; nothing refers to it any more.
    unsafe { reprpo_free(text) };
    Err(Error::new(message.lines().next().unwrap_or("libtorch failed without a word").to_owned()))
}
