//! The compute capability of a card, as reported by the NVIDIA driver.
//!
//! The driver's library is only opened when the capability is needed, so that the program does not
//! link it.

use std::ffi::c_int;

use libloading::{Library, Symbol};
use tch::Device;

/// Numbers of `CUdevice_attribute`.
const MAJOR: c_int = 75;
const MINOR: c_int = 76;

/// The first generation of cards that computes in bf16.
const FIRST_WITH_BF16: (i32, i32) = (8, 0);

/// True unless the device is a card that only emulates bf16. A card with unknown compute capability
/// is assumed to support bf16.
pub fn bf16_supported(device: Device) -> bool {
    compute_capability(device).is_none_or(|capability| capability >= FIRST_WITH_BF16)
}

/// The compute capability of a card, e.g. `(8, 0)`. `None` for other devices, and if the driver
/// does not report it.
pub fn compute_capability(device: Device) -> Option<(i32, i32)> {
    let Device::Cuda(index) = device else { return None };
    query_driver(c_int::try_from(index).ok()?)
}

/// Queries the driver for the capability of the card with this number. Driver and libtorch use the
/// same numbers: both only count the cards in `CUDA_VISIBLE_DEVICES`, if it is set.
fn query_driver(index: c_int) -> Option<(i32, i32)> {
    type Init = unsafe extern "C" fn(flags: u32) -> c_int;
    type Get = unsafe extern "C" fn(device: *mut c_int, ordinal: c_int) -> c_int;
    type Attribute =
        unsafe extern "C" fn(value: *mut c_int, attribute: c_int, device: c_int) -> c_int;

    // SAFETY: the driver's library may be loaded at any time. It is already loaded if libtorch uses
    // a card.
    let driver = unsafe { Library::new("libcuda.so.1") }.ok()?;
    // SAFETY: these are the types of the functions in `cuda.h`.
    type Symbols<'a> = (Symbol<'a, Init>, Symbol<'a, Get>, Symbol<'a, Attribute>);
    let (init, get, attribute): Symbols<'_> = unsafe {
        (
            driver.get(b"cuInit\0").ok()?,
            driver.get(b"cuDeviceGet\0").ok()?,
            driver.get(b"cuDeviceGetAttribute\0").ok()?,
        )
    };
    let (mut device, mut major, mut minor) = (0, 0, 0);
    // SAFETY: each call writes one number. Calling `cuInit` again is allowed.
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
        // No machine has 4001 cards.
        assert_eq!(compute_capability(Device::Cuda(4000)), None);
        if tch::Cuda::is_available() {
            assert!(
                compute_capability(Device::Cuda(0)).is_some_and(|capability| capability >= (3, 5))
            );
        }
    }
}
