//! Loads libtorch's CUDA library at run time.
//!
//! The program only links libtorch's CPU library. The same binary therefore works with and without
//! a GPU. The CUDA library registers its kernels and hooks when it is loaded. libtorch looks up the
//! hooks once, at the first check whether CUDA is available, and caches the result. The CUDA
//! library must be loaded before that check.

use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW};

use super::checked;
use crate::error::Result;

unsafe extern "C" {
    fn reprpo_libtorch_file(out: *mut *const c_char) -> *mut c_char;
    fn reprpo_cuda_version(out: *mut i64) -> *mut c_char;
}

/// Library of the NVIDIA driver. Without it, no GPU can be used.
const DRIVER: &str = "libcuda.so.1";

/// Name of libtorch's CUDA library.
const LIBRARY: &str = "libtorch_cuda.so";

/// The result of loading libtorch's CUDA library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CudaLibrary {
    /// The library of the NVIDIA driver cannot be loaded.
    NoDriver,
    /// There is a driver, but this libtorch was built without CUDA.
    NotInLibtorch,
    /// The library could not be loaded, for the given reason.
    Failed(String),
    /// The library is loaded. The string is the version of its CUDA runtime, e.g. `13.0`.
    Loaded(String),
}

impl CudaLibrary {
    /// Returns a warning if there is an NVIDIA driver, but libtorch cannot use CUDA.
    pub fn warning(&self) -> Option<String> {
        let hint = libtorch_hint(true);
        match self {
            Self::NoDriver | Self::Loaded(_) => None,
            Self::NotInLibtorch => Some(format!(
                "this machine has an NVIDIA driver, but the libtorch in `{}` was built without \
                    CUDA, so everything runs on the CPU; {hint}, or set `--device cpu`",
                libtorch_folder().display()
            )),
            Self::Failed(why) => Some(format!(
                "libtorch's CUDA library cannot be loaded, so everything runs on the CPU: {why}; \
                    {hint}"
            )),
        }
    }
}

/// Loads libtorch's CUDA library if there is an NVIDIA driver. The first call takes about 0.15 s;
/// later calls return the same result.
///
/// Must be called before the first libtorch operation.
pub fn load_cuda() -> &'static CudaLibrary {
    static STATE: OnceLock<CudaLibrary> = OnceLock::new();
    STATE.get_or_init(load)
}

fn load() -> CudaLibrary {
    // SAFETY: this only runs the initialisers of the driver's library, as every CUDA program does.
    match unsafe { Library::open(Some(DRIVER), RTLD_NOW | RTLD_LOCAL) } {
        Ok(driver) => std::mem::forget(driver),
        Err(_) => return CudaLibrary::NoDriver,
    }
    let file = libtorch_folder().join(LIBRARY);
    if !file.exists() {
        return CudaLibrary::NotInLibtorch;
    }
    // The symbols must be global, because libtorch's other CUDA libraries need them. SAFETY: this
    // runs the initialisers of a library that belongs to the libtorch in use.
    match unsafe { Library::open(Some(&file), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => std::mem::forget(library),
        Err(e) => {
            return CudaLibrary::Failed(
                std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string),
            );
        }
    }
    match cuda_version() {
        Ok(version) => CudaLibrary::Loaded(version),
        Err(e) => CudaLibrary::Failed(format!(
            "it was loaded after libtorch had checked whether CUDA is available ({})",
            e.in_a_line()
        )),
    }
}

/// The version of the CUDA runtime that the loaded library was built for.
fn cuda_version() -> Result<String> {
    let mut version = 0;
    // SAFETY: the shim writes one integer.
    checked(unsafe { reprpo_cuda_version(&raw mut version) })?;
    Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
}

/// Returns the folder that contains the libtorch in use. Returns an empty path if the folder cannot
/// be determined.
pub fn libtorch_folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let mut file = std::ptr::null();
        // SAFETY: the shim writes a pointer to a string that the dynamic loader owns and keeps for
        // the lifetime of the process.
        if let Err(e) = checked(unsafe { reprpo_libtorch_file(&raw mut file) }) {
            tracing::warn!("cannot determine the folder of libtorch: {e}");
            return PathBuf::new();
        }
        // SAFETY: the string is NUL-terminated and lives as long as the process.
        let file = PathBuf::from(unsafe { CStr::from_ptr(file) }.to_string_lossy().into_owned());
        // The loader returns the path that it opened, e.g.
        // `reprpo/bin/../../torch/lib/libtorch_cpu.so`. Canonicalise the folder but not the file.
        // The file may be a link into a package manager's cache, where libtorch's other libraries
        // are missing.
        let folder = file.parent().unwrap_or(Path::new(""));
        folder.canonicalize().unwrap_or_else(|_| folder.to_owned())
    })
}

/// Returns a hint on how to install a suitable libtorch, with CUDA if `cuda` is true. The hint
/// names cargo if this program is in a Cargo target folder, and pip otherwise.
pub fn libtorch_hint(cuda: bool) -> String {
    let built = std::env::current_exe().is_ok_and(|exe| is_in_cargo_target(&exe));
    let version = super::LIBTORCH_VERSION;
    match (built, cuda) {
        (true, true) => "run `cargo xtask setup --cuda` and build again".to_owned(),
        (true, false) => "run `cargo xtask setup` and build again".to_owned(),
        (false, true) => format!(
            "install PyTorch {version} with CUDA, `pip install torch=={version}`, in the \
                environment of reprpo"
        ),
        (false, false) => format!(
            "install PyTorch {version} again, `pip install --force-reinstall torch=={version}`, \
                in the environment of reprpo"
        ),
    }
}

/// True if the file is in a Cargo target folder. Checks the content of `CACHEDIR.TAG`, because uv's
/// virtual environments also have such a file.
fn is_in_cargo_target(file: &Path) -> bool {
    let tag =
        |folder: &Path| std::fs::read_to_string(folder.join("CACHEDIR.TAG")).unwrap_or_default();
    file.ancestors().any(|folder| tag(folder).contains("created by cargo"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_in_cargos_target_folder_count_as_built() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bin/reprpo");
        assert!(!is_in_cargo_target(&file));
        let tag = |creator: &str| {
            format!("Signature: 8a477f\n# This is a cache directory tag created by {creator}.\n")
        };
        std::fs::write(folder.path().join("CACHEDIR.TAG"), tag("uv")).unwrap();
        assert!(!is_in_cargo_target(&file));
        std::fs::write(folder.path().join("CACHEDIR.TAG"), tag("cargo")).unwrap();
        assert!(is_in_cargo_target(&file));
    }

    #[test]
    fn the_folder_of_libtorch_has_its_libraries() {
        assert!(libtorch_folder().join("libc10.so").is_file(), "{}", libtorch_folder().display());
    }

    #[test]
    fn without_a_driver_nothing_is_loaded() {
        // SAFETY: as in `load`, this only runs the initialisers of the driver's library.
        let driver = unsafe { Library::open(Some(DRIVER), RTLD_NOW | RTLD_LOCAL) }.is_ok();
        assert_eq!(*load_cuda() == CudaLibrary::NoDriver, !driver);
        assert!(driver || !tch::Cuda::is_available());
    }
}
