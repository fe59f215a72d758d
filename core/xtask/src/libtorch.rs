//! Sets up libtorch. If the user exported `LIBTORCH`, that copy is used. Otherwise, the copy from
//! an earlier setup is reused, or a new one is assembled from wheels.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};

use reprpo_downloads::{clear, fetch, lock, unpack};

use crate::config::Config;
use crate::failure::{at, failure};
use crate::platform::{Platform, Variant};
use crate::version::{LIBTORCH_VERSION, libtorch_version};
use crate::{Options, compiler, paths, pins, platform, progress};

/// Name of the file that marks a cache folder as complete. It is written last.
const STAMP: &str = ".complete";

/// Sets up the required version of libtorch for `cargo build`. Returns the folder, and records it
/// as the value of `LIBTORCH` for all builds.
pub fn set_up(options: &Options) -> Result<PathBuf> {
    let compiler = compiler::find()?;
    let config = Config::of(&paths::checkout());
    let exported = config.exported(std::env::var_os("LIBTORCH").map(PathBuf::from));
    let root = match (exported, options.variant()) {
        (Some(root), None) => {
            check_exported(&root)?;
            progress::line(&format!(
                "libtorch {LIBTORCH_VERSION}: using `LIBTORCH`, which is exported as `{}`",
                root.display()
            ));
            std::path::absolute(root)?
        }
        (Some(root), Some(_)) => {
            let what = format!(
                "cannot choose a libtorch variant, because `LIBTORCH` is exported as `{}`",
                root.display()
            );
            return Err(failure(what, "run `unset LIBTORCH`, or omit `--cpu` and `--cuda`"));
        }
        // Keep the variant from an earlier setup, even if a driver has been installed since.
        (None, None) => match config.read().filter(|root| is_usable(root)) {
            Some(root) => {
                progress::line(&format!(
                    "libtorch {LIBTORCH_VERSION}: ready in `{}`",
                    root.display()
                ));
                root
            }
            None => install(options, &compiler)?,
        },
        (None, Some(_)) => install(options, &compiler)?,
    };
    config.write(&root)?;
    Ok(root)
}

/// Returns true if `root` contains the required libtorch version with its libraries.
fn is_usable(root: &Path) -> bool {
    let has = |name: &str| {
        ["so", "dylib"].iter().any(|end| root.join(format!("lib/lib{name}.{end}")).exists())
    };
    libtorch_version(root).as_deref() == Some(LIBTORCH_VERSION)
        && ["torch", "torch_cpu", "c10"].into_iter().all(has)
}

fn check_exported(root: &Path) -> Result<()> {
    let place = format!("`LIBTORCH` is exported as `{}`", root.display());
    let hint = format!(
        "run `unset LIBTORCH` to download libtorch {LIBTORCH_VERSION}, or export the folder of a \
            libtorch {LIBTORCH_VERSION}, which contains `lib` and `include`"
    );
    match libtorch_version(root) {
        Some(version) if version != LIBTORCH_VERSION => Err(failure(
            format!("{place}, which contains libtorch {version} instead of {LIBTORCH_VERSION}"),
            hint,
        )),
        Some(_) if is_usable(root) => Ok(()),
        Some(_) => Err(failure(
            format!("{place}, but its `lib` folder does not contain the libtorch libraries"),
            hint,
        )),
        None => Err(failure(format!("{place}, but that folder does not contain libtorch"), hint)),
    }
}

/// The layout of a libtorch folder in the cache.
struct Layout {
    platform: Platform,
    variant: Variant,
}

impl Layout {
    /// Name of the folder in the cache.
    fn folder(&self) -> String {
        let end = match self.variant {
            Variant::Cpu => "cpu",
            Variant::Cuda => "cu130",
        };
        format!("libtorch-{LIBTORCH_VERSION}-{end}")
    }

    /// Returns the folder that contains `lib` and `include`. With CUDA, it is `site/torch`, because
    /// the libraries in `torch/lib` load the NVIDIA libraries from `../../nvidia`.
    fn root(&self, folder: &Path) -> PathBuf {
        match self.variant {
            Variant::Cpu => folder.to_owned(),
            Variant::Cuda => folder.join("site/torch"),
        }
    }

    /// Maps the path of a file in a wheel to its path in the cache folder. Returns `None` if the
    /// file is not needed.
    fn place(&self, name: &str) -> Option<PathBuf> {
        if self.variant == Variant::Cuda {
            let wanted = ["torch/lib/", "torch/include/", "nvidia/"]
                .iter()
                .any(|start| name.starts_with(start))
                || name == "torch/version.py";
            return wanted.then(|| Path::new("site").join(name));
        }
        if let Some(library) = name.strip_prefix("torch/lib/") {
            // Skip the CUDA and Python libraries, and `libtorch.so`, which depends on CUDA.
            const SKIPPED: [&str; 8] = [
                "libtorch.so",
                "libtorch_cuda",
                "libc10_cuda",
                "libcaffe2_nvrtc",
                "libtorch_nvshmem",
                "libtorch_python",
                "libshm",
                "libtorch_global_deps",
            ];
            let is_library =
                !library.contains('/') && (library.contains(".so") || library.ends_with(".dylib"));
            return (is_library && !SKIPPED.iter().any(|start| library.starts_with(start)))
                .then(|| Path::new("lib").join(library));
        }
        if name.starts_with("nvidia/") {
            let library = name.rsplit('/').next()?;
            return ["libcudart.so.13", "libcupti.so.13"]
                .contains(&library)
                .then(|| Path::new("lib").join(library));
        }
        let inner = name.strip_prefix("torch/")?;
        (inner.starts_with("include/") || inner == "version.py").then(|| inner.into())
    }

    /// The files that a complete folder must contain.
    fn needed(&self) -> Vec<PathBuf> {
        let root = self.root(Path::new(""));
        let mut files: Vec<PathBuf> = ["c10", "torch_cpu", "torch"]
            .iter()
            .map(|name| root.join("lib").join(self.platform.library(name)))
            .collect();
        files.push(root.join("include/torch/csrc/api/include/torch/torch.h"));
        files.push(root.join("version.py"));
        match self.variant {
            Variant::Cpu if self.platform == Platform::MacArm => {}
            Variant::Cpu => files.extend(
                ["lib/libgomp.so.1", "lib/libcudart.so.13", "lib/libcupti.so.13"]
                    .map(PathBuf::from),
            ),
            Variant::Cuda => {
                files.extend(
                    ["libtorch_cuda.so", "libc10_cuda.so"].map(|name| root.join("lib").join(name)),
                );
                files.extend(
                    [
                        "cu13/lib/libcudart.so.13",
                        "cudnn/lib/libcudnn.so.9",
                        "nccl/lib/libnccl.so.2",
                    ]
                    .map(|name| Path::new("site/nvidia").join(name)),
                );
            }
        }
        files
    }

    fn stamp(&self) -> String {
        format!("libtorch {LIBTORCH_VERSION} {}\n", self.variant)
    }

    /// Returns true if `folder` contains a complete libtorch with this layout. The stamp is not
    /// enough, because files may have been deleted since it was written.
    fn is_whole(&self, folder: &Path) -> bool {
        let filled =
            |file: &PathBuf| fs::metadata(folder.join(file)).is_ok_and(|data| data.len() > 0);
        let stamped_otherwise =
            fs::read_to_string(folder.join(STAMP)).is_ok_and(|stamp| stamp != self.stamp());
        !stamped_otherwise
            && self.needed().iter().all(filled)
            && libtorch_version(&self.root(folder)).as_deref() == Some(LIBTORCH_VERSION)
    }
}

/// Assembles libtorch in the cache, unless the cache already contains it. Returns the root.
fn install(options: &Options, compiler: &std::ffi::OsString) -> Result<PathBuf> {
    let platform = Platform::here()?;
    let driver = platform::nvidia_driver();
    let (variant, remark) = platform::choose(platform, options.variant(), driver.as_deref())?;
    if let Some(remark) = remark {
        progress::line(&format!("note: {remark}"));
    }
    let layout = Layout { platform, variant };
    let cache = paths::cache()?;
    let folder = cache.join(layout.folder());
    let mut report = progress::Terminal::default();
    let _lock = lock(&cache, &mut report)?;
    if layout.is_whole(&folder) {
        stamp(&layout, &folder)?;
        progress::line(&format!(
            "libtorch {LIBTORCH_VERSION} ({variant}): ready in `{}`",
            folder.display()
        ));
        return Ok(layout.root(&folder));
    }

    progress::line(&format!(
        "libtorch {LIBTORCH_VERSION} ({variant}): setting up in `{}`",
        folder.display()
    ));
    let wheels = fetch(&pins::libtorch(platform, variant), &cache.join("downloads"), &mut report)?;
    let partial = cache.join(format!("{}.partial", layout.folder()));
    clear(&partial)?;
    for wheel in &wheels {
        if unpack(wheel, &partial, |name| layout.place(name), &mut report)? == 0 {
            bail!("`{}` contains none of the expected files", wheel.display());
        }
    }
    if platform != Platform::MacArm && variant == Variant::Cpu {
        compiler::link_libtorch(compiler, &partial.join("lib"))?;
    }
    if !layout.is_whole(&partial) {
        let missing = layout.needed().into_iter().find(|file| !partial.join(file).exists());
        return Err(anyhow!(
            "libtorch is incomplete after unpacking the wheels: `{}` is missing",
            missing.unwrap_or_else(|| "the version".into()).display()
        ));
    }
    stamp(&layout, &partial)?;
    clear(&folder)?;
    fs::rename(&partial, &folder).map_err(|e| at(&folder, "create", e))?;
    if !options.keep_downloads {
        wheels.iter().try_for_each(|wheel| clear(wheel))?;
    }
    progress::line(&format!("libtorch {LIBTORCH_VERSION} ({variant}): ready"));
    Ok(layout.root(&folder))
}

/// Marks `folder` as complete.
fn stamp(layout: &Layout, folder: &Path) -> Result<()> {
    let path = folder.join(STAMP);
    if path.exists() {
        return Ok(());
    }
    fs::write(&path, layout.stamp()).map_err(|e| at(&path, "write", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: Layout = Layout { platform: Platform::LinuxX86, variant: Variant::Cpu };
    const CUDA: Layout = Layout { platform: Platform::LinuxX86, variant: Variant::Cuda };
    const HEADER: &str = "#pragma once\n#define TORCH_VERSION_MAJOR 2\n#define \
        TORCH_VERSION_MINOR 11\n\n#define TORCH_VERSION_PATCH 0\n";

    /// Creates a folder with placeholders for all files that a complete libtorch needs.
    fn libtorch_folder(layout: &Layout) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let header = layout.root(Path::new("")).join("include/torch/headeronly/version.h");
        for file in layout.needed().iter().chain([&header]) {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, HEADER).unwrap();
        }
        folder
    }

    fn placed(layout: &Layout, name: &str) -> Option<String> {
        layout.place(name).map(|path| path.to_str().unwrap().to_owned())
    }

    #[test]
    fn the_version_is_read_from_the_header_or_from_build_version() {
        let folder = libtorch_folder(&CPU);
        assert_eq!(libtorch_version(folder.path()).as_deref(), Some("2.11.0"));
        let other = tempfile::tempdir().unwrap();
        assert_eq!(libtorch_version(other.path()), None);
        fs::write(other.path().join("build-version"), "2.5.1+cu124\n").unwrap();
        assert_eq!(libtorch_version(other.path()).as_deref(), Some("2.5.1"));
    }

    #[test]
    fn a_complete_folder_is_accepted_with_and_without_a_stamp() {
        for layout in [CPU, CUDA] {
            let folder = libtorch_folder(&layout);
            assert!(layout.is_whole(folder.path()));
            stamp(&layout, folder.path()).unwrap();
            assert!(layout.is_whole(folder.path()));
            assert!(is_usable(&layout.root(folder.path())));
        }
    }

    #[test]
    fn a_folder_with_a_missing_or_empty_file_is_incomplete() {
        for file in CPU.needed() {
            let folder = libtorch_folder(&CPU);
            stamp(&CPU, folder.path()).unwrap();
            fs::write(folder.path().join(&file), "").unwrap();
            assert!(!CPU.is_whole(folder.path()), "{}", file.display());
            fs::remove_file(folder.path().join(&file)).unwrap();
            assert!(!CPU.is_whole(folder.path()), "{}", file.display());
        }
    }

    #[test]
    fn the_error_for_another_version_names_both_versions() {
        let folder = libtorch_folder(&CPU);
        fs::write(
            folder.path().join("include/torch/headeronly/version.h"),
            HEADER.replace("MINOR 11", "MINOR 9"),
        )
        .unwrap();
        assert!(!CPU.is_whole(folder.path()));
        let error = check_exported(folder.path()).unwrap_err().to_string();
        assert!(error.contains("2.9.0") && error.contains("2.11.0"), "{error}");
    }

    #[test]
    fn a_folder_with_the_stamp_of_another_version_is_incomplete() {
        let folder = libtorch_folder(&CPU);
        fs::write(folder.path().join(STAMP), "libtorch 2.10.0 CPU\n").unwrap();
        assert!(!CPU.is_whole(folder.path()));
    }

    #[test]
    fn the_cpu_variant_has_no_libraries_for_cuda_and_python() {
        for name in
            ["libc10.so", "libtorch_cpu.so", "libgomp.so.1", "libarm_compute.so", "libtorch.dylib"]
        {
            assert_eq!(placed(&CPU, &format!("torch/lib/{name}")), Some(format!("lib/{name}")));
        }
        for name in [
            "libtorch.so",
            "libtorch_cuda.so",
            "libtorch_cuda_linalg.so",
            "libc10_cuda.so",
            "libtorch_python.so",
            "libshm.so",
        ] {
            assert_eq!(placed(&CPU, &format!("torch/lib/{name}")), None);
        }
        assert_eq!(
            placed(&CPU, "torch/include/ATen/ATen.h").as_deref(),
            Some("include/ATen/ATen.h")
        );
        assert_eq!(
            placed(&CPU, "nvidia/cu13/lib/libcupti.so.13").as_deref(),
            Some("lib/libcupti.so.13")
        );
        assert_eq!(placed(&CPU, "nvidia/cu13/lib/libnvperf_host.so"), None);
        assert_eq!(placed(&CPU, "torch/nn/__init__.py"), None);
        assert_eq!(placed(&CPU, "torch-2.11.0.dist-info/METADATA"), None);
    }

    #[test]
    fn in_the_cuda_variant_torch_and_nvidia_have_the_same_parent() {
        assert_eq!(
            placed(&CUDA, "torch/lib/libtorch_cuda.so").as_deref(),
            Some("site/torch/lib/libtorch_cuda.so")
        );
        assert_eq!(
            placed(&CUDA, "nvidia/cudnn/lib/libcudnn.so.9").as_deref(),
            Some("site/nvidia/cudnn/lib/libcudnn.so.9")
        );
        assert_eq!(placed(&CUDA, "torch/nn/__init__.py"), None);
    }
}
