//! Chooses the precision in which a model computes.

use tch::{Device, Kind};

use crate::config::Dtype;
use crate::ffi;

/// Returns the precision that `dtype` selects on a device. Also returns a message for the user if
/// the device does not support bf16.
pub fn precision(dtype: Dtype, device: Device) -> (Kind, Option<String>) {
    choose(dtype, device, ffi::bf16_supported(device), ffi::compute_capability(device))
}

fn choose(
    dtype: Dtype,
    device: Device,
    computes_in_bf16: bool,
    capability: Option<(i32, i32)>,
) -> (Kind, Option<String>) {
    let gpu = || {
        capability.map_or_else(
            || "the GPU".to_owned(),
            |(major, minor)| format!("the GPU (compute capability {major}.{minor})"),
        )
    };
    match dtype {
        Dtype::F32 => (Kind::Float, None),
        Dtype::Bf16 if computes_in_bf16 => (Kind::BFloat16, None),
        Dtype::Bf16 => (
            Kind::BFloat16,
            Some(format!(
                "warning: {} emulates bf16, which is slow; `--dtype f32` is faster",
                gpu()
            )),
        ),
        Dtype::Auto if device.is_cuda() && computes_in_bf16 => (Kind::BFloat16, None),
        Dtype::Auto if device.is_cuda() => {
            (Kind::Float, Some(format!("{} does not support bf16, so float32 is used", gpu())))
        }
        Dtype::Auto => (Kind::Float, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_chosen_on_gpus_that_support_it() {
        let of = |dtype, device, capability: Option<(i32, i32)>| {
            choose(dtype, device, capability.is_none_or(|c| c >= (8, 0)), capability)
        };
        let gpu = Device::Cuda(0);
        assert_eq!(of(Dtype::Auto, Device::Cpu, None), (Kind::Float, None));
        assert_eq!(of(Dtype::Bf16, Device::Cpu, None), (Kind::BFloat16, None));
        for capability in [Some((8, 0)), Some((9, 0)), None] {
            assert_eq!(of(Dtype::Auto, gpu, capability), (Kind::BFloat16, None));
            assert_eq!(of(Dtype::Bf16, gpu, capability), (Kind::BFloat16, None));
        }
        let (kind, remark) = of(Dtype::Auto, gpu, Some((7, 5)));
        let remark = remark.unwrap();
        assert!(
            kind == Kind::Float
                && remark
                    == "the GPU (compute capability 7.5) does not support bf16, so float32 \
                        is used",
            "{remark}"
        );
        let (kind, remark) = of(Dtype::Bf16, gpu, Some((7, 0)));
        let remark = remark.unwrap();
        assert!(
            kind == Kind::BFloat16
                && remark.starts_with("warning: the GPU (compute capability 7.0) emulates bf16"),
            "{remark}"
        );
        assert_eq!(of(Dtype::F32, gpu, Some((7, 0))), (Kind::Float, None));
    }
}
