//! Loads libtorch's CUDA library when the program runs.
//!
//! The program links only libtorch's CPU library, so that one binary serves machines with and
//! without a card. The CUDA library registers its kernels and hooks when it is opened. libtorch
//! asks for the hooks once and remembers the answer, so the library has to be opened before
//! anything else asks libtorch for CUDA.

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

/// The driver's own library. Without it there is no card to use.
const DRIVER: &str = "libcuda.so.1";

/// Name of libtorch's CUDA library.
const LIBRARY: &str = "libtorch_cuda.so";

/// The state of libtorch's CUDA library in this process.
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
    /// A warning for someone who might expect the card to be used; `None` if there is nothing to
    /// expect or to warn of.
    pub fn warning(&self) -> Option<String> {
        let hint = libtorch_hint(true);
        match self {
            Self::NoDriver | Self::Loaded(_) => None,
            Self::NotInLibtorch => Some(format!(
                "this machine has an NVIDIA driver, but the libtorch in `{}` was built without \
                    CUDA, so everything runs on the CPU; {hint}, or give \
                 `--device cpu`",
                libtorch_folder().display()
            )),
            Self::Failed(why) => Some(format!(
                "libtorch's CUDA library cannot be loaded, so everything runs on the CPU: {why}; \
                    {hint}"
            )),
        }
    }
}

/// Loads libtorch's CUDA library if there is an NVIDIA driver. Only the first call loads, which
/// takes about 0.15 s.
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
    // SAFETY: the initialisers of the library that belongs to the libtorch of this process run. Its
    // symbols have to be global, because libtorch's other CUDA libraries look for them.
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
            "it was opened after libtorch had been asked for CUDA ({})",
            e.in_a_line()
        )),
    }
}

/// The version of the CUDA runtime for which the loaded library was built.
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
        // SAFETY: the shim writes a pointer to the loader's own text, which lasts as long as the
        // process.
        if let Err(e) = checked(unsafe { reprpo_libtorch_file(&raw mut file) }) {
            tracing::warn!("the folder of libtorch is not known: {e}");
            return PathBuf::new();
        }
        // SAFETY: as above, and the text ends with a NUL.
        let file = PathBuf::from(unsafe { CStr::from_ptr(file) }.to_string_lossy().into_owned());
        // The loader gives the path by which it found the file.
        let file = std::path::absolute(&file).unwrap_or(file);
        file.parent().unwrap_or(Path::new("")).to_owned()
    })
}

/// The way to get a suitable libtorch, as a hint. It depends on how this program was installed:
/// cargo is only named to someone who built it.
pub fn libtorch_hint(cuda: bool) -> String {
    let built = std::env::current_exe()
        .is_ok_and(|exe| exe.ancestors().any(|folder| folder.join("CACHEDIR.TAG").is_file()));
    let version = super::LIBTORCH_VERSION;
    match (built, cuda) {
        (true, true) => "run `cargo xtask setup --cuda` and build again".to_owned(),
        (true, false) => "run `cargo xtask setup` and build again".to_owned(),
        (false, true) => format!(
            "install the PyTorch {version} that has CUDA, `pip install torch=={version}`, in the \
                environment of reprpo"
        ),
        (false, false) => format!(
            "install PyTorch {version} again, `pip install --force-reinstall torch=={version}`, \
                in the environment of reprpo"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_libtorch_holds_its_libraries() {
        assert!(libtorch_folder().join("libc10.so").is_file(), "{}", libtorch_folder().display());
    }

    #[test]
    fn without_a_driver_nothing_is_loaded() {
        // SAFETY: as in `load`.
        let driver = unsafe { Library::open(Some(DRIVER), RTLD_NOW | RTLD_LOCAL) }.is_ok();
        assert_eq!(*load_cuda() == CudaLibrary::NoDriver, !driver);
        assert!(driver || !tch::Cuda::is_available());
    }
}
