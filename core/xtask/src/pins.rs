//! Versions and hashes of the Python wheels that xtask downloads: zig, and the wheels that contain
//! libtorch and its dependencies.

use reprpo_downloads::Wheel;

use crate::platform::{Platform, Variant};

/// Returns the wheels that libtorch is assembled from.
pub fn libtorch(platform: Platform, variant: Variant) -> Vec<Wheel> {
    match (platform, variant) {
        (Platform::LinuxX86, Variant::Cpu) => LINUX_X86.to_vec(),
        (Platform::LinuxX86, Variant::Cuda) => [&LINUX_X86[..], &CUDA_X86].concat(),
        (Platform::LinuxArm, _) => LINUX_ARM.to_vec(),
        (Platform::MacArm, _) => MAC_ARM.to_vec(),
    }
}

/// The zig wheel. zig links the packaged binary against an older glibc.
pub const ZIG: Wheel = Wheel {
    file: "ziglang-0.17.1-py3-none-manylinux_2_12_x86_64.manylinux2010_x86_64.musllinux_1_1_x86_64.whl",
    size: 101_083_562,
    sha256: "ea6cc5d87b033cf0aedfbc8f9549a908cae6c50ac31f1698188fa48a74524b54",
};

/// The torch wheel and two CUDA wheels: even without a GPU, `libtorch_cpu.so` needs libcudart and
/// libcupti.
const LINUX_X86: [Wheel; 3] = [
    Wheel {
        file: "torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        size: 530_604_548,
        sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
    },
    Wheel {
        file: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        size: 2_243_632,
        sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
    },
    Wheel {
        file: "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
        size: 10_715_597,
        sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
    },
];

/// Additional wheels for CUDA support. They contain the other native libraries that torch depends
/// on. The wheels of crt and cccl only have headers, which the process group of NCCL is compiled
/// with.
const CUDA_X86: [Wheel; 15] = [
    Wheel {
        file: "nvidia_cublas-13.1.0.3-py3-none-manylinux_2_27_x86_64.whl",
        size: 423_133_236,
        sha256: "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171",
    },
    Wheel {
        file: "nvidia_cuda_cccl-13.0.85-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        size: 3_120_526,
        sha256: "e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649",
    },
    Wheel {
        file: "nvidia_cuda_crt-13.0.88-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        size: 134_086,
        sha256: "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4",
    },
    Wheel {
        file: "nvidia_cuda_nvrtc-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
        size: 90_215_200,
        sha256: "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
    },
    Wheel {
        file: "nvidia_cudnn_cu13-9.19.0.56-py3-none-manylinux_2_27_x86_64.whl",
        size: 366_066_321,
        sha256: "d20e1734305e9d68889a96e3f35094d733ff1f83932ebe462753973e53a572bf",
    },
    Wheel {
        file: "nvidia_cufft-12.0.0.61-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        size: 214_085_489,
        sha256: "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3",
    },
    Wheel {
        file: "nvidia_cufile-1.15.1.6-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        size: 1_223_672,
        sha256: "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44",
    },
    Wheel {
        file: "nvidia_curand-10.4.0.35-py3-none-manylinux_2_27_x86_64.whl",
        size: 59_544_258,
        sha256: "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc",
    },
    Wheel {
        file: "nvidia_cusolver-12.0.4.66-py3-none-manylinux_2_27_x86_64.whl",
        size: 200_941_980,
        sha256: "0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112",
    },
    Wheel {
        file: "nvidia_cusparse-12.6.3.3-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        size: 145_942_937,
        sha256: "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b",
    },
    Wheel {
        file: "nvidia_cusparselt_cu13-0.8.0-py3-none-manylinux2014_x86_64.whl",
        size: 169_884_119,
        sha256: "25e30a8a7323935d4ad0340b95a0b69926eee755767e8e0b1cf8dd85b197d3fd",
    },
    Wheel {
        file: "nvidia_nccl_cu13-2.28.9-py3-none-manylinux_2_18_x86_64.whl",
        size: 196_493_177,
        sha256: "e4553a30f34195f3fa1da02a6da3d6337d28f2003943aa0a3d247bbc25fefc42",
    },
    Wheel {
        file: "nvidia_nvjitlink-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
        size: 40_713_933,
        sha256: "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b",
    },
    Wheel {
        file: "nvidia_nvshmem_cu13-3.4.5-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        size: 60_412_546,
        sha256: "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80",
    },
    Wheel {
        file: "nvidia_nvtx-13.0.85-py3-none-manylinux1_x86_64.manylinux_2_5_x86_64.whl",
        size: 148_047,
        sha256: "4936d1d6780fbe68db454f5e72a42ff64d1fd6397df9f363ae786930fd5c1cd4",
    },
];

const LINUX_ARM: [Wheel; 3] = [
    Wheel {
        file: "torch-2.11.0-cp311-cp311-manylinux_2_28_aarch64.whl",
        size: 419_718_178,
        sha256: "d91aac77f24082809d2c5a93f52a5f085032740a1ebc9252a7b052ef5a4fddc6",
    },
    Wheel {
        file: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
        size: 2_261_060,
        sha256: "ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55",
    },
    Wheel {
        file: "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_aarch64.whl",
        size: 10_310_827,
        sha256: "796bd679890ee55fb14a94629b698b6db54bcfd833d391d5e94017dd9d7d3151",
    },
];

const MAC_ARM: [Wheel; 1] = [Wheel {
    file: "torch-2.11.0-cp311-cp311-macosx_11_0_arm64.whl",
    size: 80_529_712,
    sha256: "7b6a60d48062809f58595509c524b88e6ddec3ebe25833d6462eeab81e5f2ce4",
}];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::version::LIBTORCH_VERSION;

    #[test]
    fn the_first_wheel_is_the_right_version_of_torch() {
        for platform in [Platform::LinuxX86, Platform::LinuxArm, Platform::MacArm] {
            assert_eq!(
                libtorch(platform, Variant::Cpu)[0].requirement(),
                format!("torch=={LIBTORCH_VERSION}")
            );
        }
    }

    #[test]
    fn every_wheel_is_pinned_once() {
        let all: Vec<Wheel> = [&LINUX_X86[..], &CUDA_X86, &LINUX_ARM, &MAC_ARM, &[ZIG]].concat();
        assert_eq!(all.iter().map(|wheel| wheel.file).collect::<HashSet<_>>().len(), all.len());
        assert_eq!(all.iter().map(|wheel| wheel.sha256).collect::<HashSet<_>>().len(), all.len());
        assert!(all.iter().all(|wheel| wheel.sha256.len() == 64 && wheel.file.ends_with(".whl")));
    }
}
