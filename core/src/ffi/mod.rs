//! What is outside tch's reach. All `unsafe` of this crate that touches libtorch is here.

/// Refers into libtorch_cuda.so, so that the linker keeps it (see `build.rs`); never called.
#[cfg(cuda_linked)]
mod cuda_anchor {
    type CudaFn = unsafe extern "C" fn() -> core::ffi::c_int;
    unsafe extern "C" {
        static reprpo_cuda_anchor: CudaFn;
    }

    // SAFETY: only the address is taken.
    #[used]
    static CUDA_ANCHOR: &CudaFn = unsafe { &reprpo_cuda_anchor };
}

/// The libtorch release this crate was built against.
pub const LIBTORCH_VERSION: &str = env!("REPRPO_LIBTORCH_VERSION");

/// Where its libraries lay at build time.
pub const LIBTORCH_LIB: &str = env!("REPRPO_LIBTORCH_LIB");

/// Whether this program was built against a libtorch with CUDA.
pub const CUDA_LINKED: bool = cfg!(cuda_linked);
