//! Loads libtorch's CUDA library when the program runs.
//!
//! The program only links libtorch's CPU library, so that one binary works on machines with and
//! without a card. The CUDA library registers its kernels and hooks when it is opened. libtorch
//! looks up the hooks once and stores the result, so the library must be opened before the first
//! call that checks whether CUDA is available.

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

/// The driver's own library. Without it, no card can be used.
const DRIVER: &str = "libcuda.so.1";

/// Name of libtorch's CUDA library.
const LIBRARY: &str = "libtorch_cuda.so";

/// The result of loading libtorch's CUDA library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CudaLibrary {
    /// The driver's library cannot be opened.
    NoDriver,
    /// There is a driver, but this libtorch was built without CUDA.
    NotInLibtorch,
    /// The library could not be loaded, with the reason.
    Failed(String),
    /// The library is loaded, with the version of its CUDA runtime, such as `13.0`.
    Loaded(String),
}

impl CudaLibrary {
    /// A warning for users of a machine with a card that cannot be used. `None` if there is no
    /// card, or if it can be used.
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
/// Call it before the first operation of libtorch.
pub fn load_cuda() -> &'static CudaLibrary {
    static STATE: OnceLock<CudaLibrary> = OnceLock::new();
    STATE.get_or_init(load)
}

fn load() -> CudaLibrary {
    // SAFETY: the driver's initialisers run, as they would in any program that uses a card.
    match unsafe { Library::open(Some(DRIVER), RTLD_NOW | RTLD_LOCAL) } {
        Ok(driver) => std::mem::forget(driver),
        Err(_) => return CudaLibrary::NoDriver,
    }
    let file = libtorch_folder().join(LIBRARY);
    if !file.exists() {
        return CudaLibrary::NotInLibtorch;
    }
    // The symbols must be global, because libtorch's other CUDA libraries need them. SAFETY: this
    // runs the initialisers of a library that belongs to this process's libtorch.
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
            "it was opened after libtorch had looked for CUDA ({})",
            e.in_a_line()
        )),
    }
}

/// The version of the CUDA runtime that the loaded library was built for.
fn cuda_version() -> Result<String> {
    let mut version = 0;
    // SAFETY: the shim writes a number.
    checked(unsafe { reprpo_cuda_version(&raw mut version) })?;
    Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
}

/// The folder of the libtorch that this process uses.
pub fn libtorch_folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let mut file = std::ptr::null();
        // SAFETY: the shim writes a pointer to a text of the dynamic loader, which lives as long as
        // the process.
        if let Err(e) = checked(unsafe { reprpo_libtorch_file(&raw mut file) }) {
            tracing::warn!("the folder of libtorch is not known: {e}");
            return PathBuf::new();
        }
        // SAFETY: the text is still alive, and ends with a NUL.
        let file = PathBuf::from(unsafe { CStr::from_ptr(file) }.to_string_lossy().into_owned());
        // The loader returns the path that it used to open the file, such as
        // `reprpo/bin/../../torch/lib/libtorch_cpu.so`. Only the folder is resolved: the file
        // itself may be a link into a package manager's cache, away from libtorch's other
        // libraries.
        let folder = file.parent().unwrap_or(Path::new(""));
        folder.canonicalize().unwrap_or_else(|_| folder.to_owned())
    })
}

/// A hint that says how to install a suitable libtorch, with CUDA if `cuda` is true. It suggests
/// cargo if this program was built here, and pip otherwise.
pub fn libtorch_hint(cuda: bool) -> String {
    let built = std::env::current_exe().is_ok_and(|exe| is_cargos(&exe));
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

/// True for a file in the target folder of cargo. Virtual environments of uv also have a
/// `CACHEDIR.TAG`, so its text decides.
fn is_cargos(file: &Path) -> bool {
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
        assert!(!is_cargos(&file));
        let tag = |creator: &str| {
            format!("Signature: 8a477f\n# This is a cache directory tag created by {creator}.\n")
        };
        std::fs::write(folder.path().join("CACHEDIR.TAG"), tag("uv")).unwrap();
        assert!(!is_cargos(&file));
        std::fs::write(folder.path().join("CACHEDIR.TAG"), tag("cargo")).unwrap();
        assert!(is_cargos(&file));
    }

    #[test]
    fn the_folder_of_libtorch_has_its_libraries() {
        assert!(libtorch_folder().join("libc10.so").is_file(), "{}", libtorch_folder().display());
    }

    #[test]
    fn without_a_driver_nothing_is_loaded() {
        // SAFETY: this runs the driver's initialisers, as in `load`.
        let driver = unsafe { Library::open(Some(DRIVER), RTLD_NOW | RTLD_LOCAL) }.is_ok();
        assert_eq!(*load_cuda() == CudaLibrary::NoDriver, !driver);
        assert!(driver || !tch::Cuda::is_available());
    }
}
