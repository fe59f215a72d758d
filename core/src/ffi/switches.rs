//! Global settings of libtorch, the states of its random number generators, and the memory
//! statistics of the CUDA allocator.

use std::ffi::{c_char, c_int};

use tch::{Device, Tensor};
use torch_sys::C_tensor;

use super::checked;
use crate::error::{Error, Result};

unsafe extern "C" {
    fn reprpo_deterministic(out: *mut bool) -> *mut c_char;
    fn reprpo_cuda_memory(device: c_int, out: *mut i64) -> *mut c_char;
    fn reprpo_cuda_reset_peak(device: c_int) -> *mut c_char;
    fn reprpo_cuda_empty_cache() -> *mut c_char;
    fn reprpo_set_deterministic(on: bool) -> *mut c_char;
    fn reprpo_set_tf32(on: bool) -> *mut c_char;
    fn reprpo_set_sdp(flash: bool, memory_efficient: bool, cudnn: bool, math: bool) -> *mut c_char;
    fn reprpo_rng_state(device: c_int, out: *mut *mut C_tensor) -> *mut c_char;
    fn reprpo_set_rng_state(device: c_int, state: *mut C_tensor) -> *mut c_char;
}

/// Memory statistics of one GPU, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaMemory {
    /// Memory in use by tensors.
    pub allocated: i64,
    /// Maximum of `allocated` since the last reset.
    pub peak_allocated: i64,
    /// Memory that the allocator has reserved from the driver.
    pub reserved: i64,
    /// Maximum of `reserved` since the last reset.
    pub peak_reserved: i64,
}

fn cuda_index(device: Device) -> Result<c_int> {
    match device {
        Device::Cuda(i) => Ok(i as c_int),
        other => Err(Error::internal(format!("`{other:?}` is not a CUDA device"))),
    }
}

/// Returns the memory statistics of a GPU.
///
/// # Errors
/// Fails if `device` is not a CUDA device or does not exist.
pub fn cuda_memory(device: Device) -> Result<CudaMemory> {
    let mut out = [0i64; 4];
    // SAFETY: the shim writes four integers, and `out` has room for four.
    checked(unsafe { reprpo_cuda_memory(cuda_index(device)?, out.as_mut_ptr()) })?;
    let [allocated, peak_allocated, reserved, peak_reserved] = out;
    Ok(CudaMemory { allocated, peak_allocated, reserved, peak_reserved })
}

/// Resets the peak statistics of a GPU to the current values.
///
/// # Errors
/// Fails if `device` is not a CUDA device or does not exist.
pub fn cuda_reset_peak(device: Device) -> Result<()> {
    // SAFETY: the shim takes no pointers.
    checked(unsafe { reprpo_cuda_reset_peak(cuda_index(device)?) })
}

/// Releases the cached memory that no tensor uses, so that other programs can use it.
///
/// # Errors
/// Fails if CUDA is not available.
pub fn cuda_empty_cache() -> Result<()> {
    // SAFETY: the shim takes no pointers.
    checked(unsafe { reprpo_cuda_empty_cache() })
}

/// Restricts libtorch to deterministic kernels, or allows all kernels again. While the setting is
/// on, a CUDA operation without a deterministic kernel fails with an error that names the
/// operation. Must be called before the first matrix product on a GPU.
///
/// # Errors
/// Fails if libtorch cannot change the setting.
pub fn set_deterministic(on: bool) -> Result<()> {
    // SAFETY: the shim takes no pointers.
    checked(unsafe { reprpo_set_deterministic(on) })
}

/// True if libtorch only allows deterministic kernels, as set by [`set_deterministic`].
///
/// # Errors
/// Fails if libtorch cannot read the setting.
pub fn is_deterministic() -> Result<bool> {
    let mut on = false;
    // SAFETY: the shim writes a bool.
    checked(unsafe { reprpo_deterministic(&raw mut on) })?;
    Ok(on)
}

/// Allows or forbids TF32 for float32 matrix products.
///
/// # Errors
/// Fails if libtorch cannot change the setting.
pub fn set_tf32(on: bool) -> Result<()> {
    // SAFETY: the shim takes no pointers.
    checked(unsafe { reprpo_set_tf32(on) })
}

/// Selects the kernels that scaled-dot-product attention may use.
///
/// # Errors
/// Fails if libtorch cannot change the setting.
pub fn set_attention_kernels(
    flash: bool,
    memory_efficient: bool,
    cudnn: bool,
    math: bool,
) -> Result<()> {
    // SAFETY: the shim takes no pointers.
    checked(unsafe { reprpo_set_sdp(flash, memory_efficient, cudnn, math) })
}

/// The state of a device's random number generator.
#[derive(Debug)]
pub struct RngState {
    device: c_int,
    state: Tensor,
}

impl RngState {
    /// Reads the current state of the generator of `device`.
    ///
    /// # Errors
    /// Fails if the device does not exist.
    pub fn of(device: Device) -> Result<Self> {
        let device = if device.is_cuda() { cuda_index(device)? } else { -1 };
        let mut out = std::ptr::null_mut();
        // SAFETY: the shim writes a pointer to a new tensor.
        checked(unsafe { reprpo_rng_state(device, &raw mut out) })?;
        // SAFETY: the shim passes ownership of that tensor to the caller.
        Ok(Self { device, state: unsafe { Tensor::from_ptr(out) } })
    }

    /// Sets the device's generator to this state.
    ///
    /// # Errors
    /// Fails if the device does not exist.
    pub fn restore(&self) -> Result<()> {
        // SAFETY: `self.state` is borrowed for the whole call.
        checked(unsafe { reprpo_set_rng_state(self.device, self.state.as_ptr().cast_mut()) })
    }
}

#[cfg(test)]
mod tests {
    use tch::{Cuda, Kind};

    use super::*;

    #[test]
    fn a_restored_generator_draws_the_same_numbers() {
        let draw = || Tensor::rand([4], (Kind::Float, Device::Cpu));
        // All threads share one generator, and tests in other threads may draw from it at the same
        // time. The test therefore passes if one of many attempts succeeds.
        let repeats = || {
            let state = RngState::of(Device::Cpu).unwrap();
            let first = draw();
            let second = draw();
            state.restore().unwrap();
            first != second && draw() == first
        };
        assert!((0..100).any(|_| repeats()));
    }

    #[test]
    fn the_allocator_counts_the_memory_of_tensors() {
        if !Cuda::is_available() {
            eprintln!("skipped: no GPU");
            assert!(cuda_memory(Device::Cuda(0)).is_err());
            return;
        }
        let device = Device::Cuda(0);
        cuda_reset_peak(device).unwrap();
        let before = cuda_memory(device).unwrap();
        let held = Tensor::zeros([1 << 20], (Kind::Float, device));
        assert!(cuda_memory(device).unwrap().allocated >= before.allocated + (4 << 20));
        drop(held);
        cuda_empty_cache().unwrap();
        assert!(cuda_memory(device).unwrap().peak_allocated >= before.allocated + (4 << 20));
    }

    #[test]
    fn the_settings_can_be_changed() {
        set_tf32(false).unwrap();
        set_attention_kernels(true, true, true, true).unwrap();
        for on in [true, false] {
            set_deterministic(on).unwrap();
            assert_eq!(is_deterministic().unwrap(), on);
        }
    }
}
