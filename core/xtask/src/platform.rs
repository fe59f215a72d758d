//! Detects the platform of this machine, and chooses a libtorch for it.

use std::fmt;
use std::process::Command;

use anyhow::Result;

use crate::failure::failure;
use crate::version::LIBTORCH_VERSION;

/// A supported platform. PyTorch publishes a wheel for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    LinuxX86,
    LinuxArm,
    MacArm,
}

impl Platform {
    /// Returns the platform of this machine.
    pub fn here() -> Result<Self> {
        Self::named(std::env::consts::OS, std::env::consts::ARCH).ok_or_else(|| {
            failure(
                format!(
                    "PyTorch publishes no torch wheel for `{} {}`",
                    std::env::consts::OS,
                    std::env::consts::ARCH
                ),
                format!(
                    "install libtorch {LIBTORCH_VERSION}, and set the environment variable \
                    `LIBTORCH` to its folder, which contains `lib` and `include`"
                ),
            )
        })
    }

    fn named(os: &str, arch: &str) -> Option<Self> {
        match (os, arch) {
            ("linux", "x86_64") => Some(Self::LinuxX86),
            ("linux", "aarch64") => Some(Self::LinuxArm),
            ("macos", "aarch64") => Some(Self::MacArm),
            _ => None,
        }
    }

    /// Returns the file name of a shared library, such as `libtorch_cpu.so` for `torch_cpu` on
    /// Linux.
    pub fn library(self, name: &str) -> String {
        format!("lib{name}.{}", if self == Self::MacArm { "dylib" } else { "so" })
    }
}

/// A build variant of libtorch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Cpu,
    Cuda,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "CPU",
            Self::Cuda => "CUDA 13.0",
        })
    }
}

/// Major version of the oldest NVIDIA driver that supports CUDA 13.0.
const OLDEST_DRIVER: u32 = 580;

/// Chooses the libtorch variant. `requested` is the variant from the command line, and `driver` is
/// the version of the installed NVIDIA driver. Also returns a note if the GPU will not be used.
pub fn choose(
    platform: Platform,
    requested: Option<Variant>,
    driver: Option<&str>,
) -> Result<(Variant, Option<String>)> {
    let major = driver.and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    match (requested, driver) {
        (Some(Variant::Cuda), _) if platform != Platform::LinuxX86 => Err(failure(
            "cannot set up libtorch with CUDA: only Linux on x86-64 is supported",
            format!(
                "run `python3 -m pip install torch=={LIBTORCH_VERSION}`, and set the environment \
                    variable `LIBTORCH` to the folder `torch` in its `site-packages`"
            ),
        )),
        (Some(variant), _) => Ok((variant, None)),
        (None, None) => Ok((Variant::Cpu, None)),
        (None, Some(_)) if platform != Platform::LinuxX86 => {
            Ok((Variant::Cpu, Some("the GPU is not used on this platform".to_owned())))
        }
        (None, Some(version)) => match major {
            Some(major) if major < OLDEST_DRIVER => Ok((
                Variant::Cpu,
                Some(format!(
                    "the NVIDIA driver {version} is too old for CUDA 13.0, which needs \
                        {OLDEST_DRIVER}: the GPU is not used"
                )),
            )),
            _ => Ok((Variant::Cuda, None)),
        },
    }
}

/// Returns the version of the NVIDIA driver, if one is installed.
pub fn nvidia_driver() -> Option<String> {
    let from_kernel = std::fs::read_to_string("/proc/driver/nvidia/version")
        .ok()
        .and_then(|text| driver_version(&text));
    // In containers and under WSL, the driver may be installed without an entry in /proc.
    from_kernel.or_else(|| {
        let output = Command::new("nvidia-smi")
            .args(["--query-gpu=driver_version", "--format=csv,noheader"])
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output
            .status
            .success()
            .then(|| text.lines().next().map(|line| line.trim().to_owned()))
            .flatten()
    })
}

/// Parses the driver version from the contents of `/proc/driver/nvidia/version`. The version is the
/// first word on line 1 that only contains digits and dots, such as `580.82.07`.
fn driver_version(text: &str) -> Option<String> {
    let is_version =
        |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.lines().next()?.split_whitespace().find(is_version).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(platform: Platform, requested: Option<Variant>, driver: Option<&str>) -> Variant {
        choose(platform, requested, driver).unwrap().0
    }

    #[test]
    fn cuda_is_chosen_if_there_is_a_driver_unless_a_flag_is_given() {
        assert_eq!(chosen(Platform::LinuxX86, None, None), Variant::Cpu);
        assert_eq!(chosen(Platform::LinuxX86, None, Some("580.82.07")), Variant::Cuda);
        assert_eq!(chosen(Platform::LinuxX86, Some(Variant::Cpu), Some("580.82.07")), Variant::Cpu);
        assert_eq!(chosen(Platform::LinuxX86, Some(Variant::Cuda), None), Variant::Cuda);
    }

    #[test]
    fn with_an_old_driver_the_cpu_is_chosen_and_a_remark_names_the_driver() {
        let (variant, remark) = choose(Platform::LinuxX86, None, Some("535.104.05")).unwrap();
        assert_eq!(variant, Variant::Cpu);
        assert!(remark.unwrap().contains("535.104.05"));
    }

    #[test]
    fn cuda_on_another_platform_is_an_error_only_if_it_is_requested() {
        assert!(choose(Platform::MacArm, Some(Variant::Cuda), None).is_err());
        assert_eq!(chosen(Platform::LinuxArm, None, Some("580.82.07")), Variant::Cpu);
    }

    #[test]
    fn the_driver_version_is_found_in_the_text_of_the_kernel_module() {
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 \
            01:15:15 UTC 2023\nGCC version:  gcc 12.2.0";
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release \
            Build  (dvs-builder@U22)";
        assert_eq!(driver_version(closed).as_deref(), Some("535.104.05"));
        assert_eq!(driver_version(open).as_deref(), Some("580.82.07"));
        assert_eq!(driver_version(""), None);
    }

    #[test]
    fn platforms_without_a_wheel_are_not_supported() {
        assert_eq!(Platform::named("linux", "x86_64"), Some(Platform::LinuxX86));
        assert_eq!(Platform::named("macos", "x86_64"), None);
        assert_eq!(Platform::named("windows", "x86_64"), None);
    }
}
