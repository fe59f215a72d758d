//! The compute capability of a GPU, as reported by the NVIDIA driver.
//!
//! The driver's library is opened at run time, so that the program also starts on machines without
//! a driver.

use std::ffi::c_int;

use libloading::{Library, Symbol};
use tch::Device;

/// Values of the `CUdevice_attribute` enum for the major and minor version.
const MAJOR: c_int = 75;
const MINOR: c_int = 76;

/// Lowest compute capability with native bf16 arithmetic (Ampere).
const FIRST_WITH_BF16: (i32, i32) = (8, 0);

/// Returns false for a GPU that only emulates bf16. GPUs with unknown compute capability and all
/// other devices are assumed to support bf16.
pub fn bf16_supported(device: Device) -> bool {
    compute_capability(device).is_none_or(|capability| capability >= FIRST_WITH_BF16)
}

/// Returns the compute capability of a GPU, e.g. `(8, 0)`. Returns `None` if the device is not a
/// GPU, or if the driver does not report its capability.
pub fn compute_capability(device: Device) -> Option<(i32, i32)> {
    let Device::Cuda(index) = device else { return None };
    query_driver(c_int::try_from(index).ok()?)
}

/// Queries the driver for the compute capability of the GPU with this index. The driver and
/// libtorch use the same indices, because both respect `CUDA_VISIBLE_DEVICES`.
fn query_driver(index: c_int) -> Option<(i32, i32)> {
    type Init = unsafe extern "C" fn(flags: u32) -> c_int;
    type Get = unsafe extern "C" fn(device: *mut c_int, ordinal: c_int) -> c_int;
    type Attribute =
        unsafe extern "C" fn(value: *mut c_int, attribute: c_int, device: c_int) -> c_int;

    // SAFETY: the driver's library can safely be loaded at any time, even if libtorch has already
    // loaded it.
    let driver = unsafe { Library::new("libcuda.so.1") }.ok()?;
    // SAFETY: these types match the declarations in `cuda.h`.
    type Symbols<'a> = (Symbol<'a, Init>, Symbol<'a, Get>, Symbol<'a, Attribute>);
    let (init, get, attribute): Symbols<'_> = unsafe {
        (
            driver.get(b"cuInit\0").ok()?,
            driver.get(b"cuDeviceGet\0").ok()?,
            driver.get(b"cuDeviceGetAttribute\0").ok()?,
        )
    };
    let (mut device, mut major, mut minor) = (0, 0, 0);
    // SAFETY: each call writes at most one `c_int` through a valid pointer, and `cuInit` may be
    // called repeatedly.
    let states = unsafe {
        [
            init(0),
            get(&raw mut device, index),
            attribute(&raw mut major, MAJOR, device),
            attribute(&raw mut minor, MINOR, device),
        ]
    };
    // The library must stay loaded, because libtorch may be using it.
    std::mem::forget(driver);
    (states == [0; 4]).then_some((major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_card_has_a_compute_capability() {
        assert_eq!(compute_capability(Device::Cpu), None);
        assert!(bf16_supported(Device::Cpu));
        // No machine has 4001 GPUs.
        assert_eq!(compute_capability(Device::Cuda(4000)), None);
        if tch::Cuda::is_available() {
            assert!(
                compute_capability(Device::Cuda(0)).is_some_and(|capability| capability >= (3, 5))
            );
        }
    }
}
