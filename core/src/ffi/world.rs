//! The key-value store and the collective operations of c10d.
//!
//! The process groups of gloo and NCCL are libraries of their own, because libtorch lacks the
//! headers that they need. If the build finds these headers, it compiles the library and embeds it
//! in this crate. A library is opened when its first group is created.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io::Write;
use std::ptr;
use std::sync::OnceLock;
use std::time::Duration;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use tch::Tensor;
use torch_sys::C_tensor;

use super::checked;
use super::cuda::{CudaLibrary, load_cuda};
use crate::error::{Error, Result};

/// The library of gloo's process group; empty if the build did not find gloo's headers.
const GLOO: &[u8] = include_bytes!(env!("REPRPO_GLOO"));
/// The library of NCCL's process group; empty if the build did not find the headers, or if they
/// have another version than libtorch.
const NCCL: &[u8] = include_bytes!(env!("REPRPO_NCCL"));
/// Why the library of NCCL is empty.
const NCCL_MISSING: &str = env!("REPRPO_NCCL_MISSING");

unsafe extern "C" {
    fn reprpo_free(data: *mut c_char);
    fn reprpo_store_open(
        host: *const c_char,
        port: u16,
        serves: bool,
        timeout_ms: i64,
        prefix: *const c_char,
        out: *mut *mut c_void,
        bound: *mut u16,
    ) -> *mut c_char;
    fn reprpo_store_clone(store: *const c_void, out: *mut *mut c_void) -> *mut c_char;
    fn reprpo_store_drop(store: *mut c_void);
    fn reprpo_store_set(
        store: *mut c_void,
        key: *const c_char,
        data: *const u8,
        size: usize,
    ) -> *mut c_char;
    fn reprpo_store_get(
        store: *mut c_void,
        key: *const c_char,
        timeout_ms: i64,
        data: *mut *mut c_char,
        size: *mut usize,
    ) -> *mut c_char;
    fn reprpo_store_has(store: *mut c_void, key: *const c_char, out: *mut bool) -> *mut c_char;
    fn reprpo_group_finish(group: *mut c_void) -> *mut c_char;
    fn reprpo_group_drop(group: *mut c_void);
    fn reprpo_group_sum(group: *mut c_void, tensor: *mut C_tensor) -> *mut c_char;
    fn reprpo_group_gather(
        group: *mut c_void,
        tensor: *mut C_tensor,
        out: *mut C_tensor,
        work: *mut *mut c_void,
    ) -> *mut c_char;
    fn reprpo_work_wait(work: *mut c_void) -> *mut c_char;
    fn reprpo_work_drop(work: *mut c_void);
    fn reprpo_end_process(code: c_int) -> !;
}

/// A connection to a key-value store that all ranks share.
pub struct Store(*mut c_void);

// SAFETY: the store locks each operation, and the pointer has one owner.
unsafe impl Send for Store {}

impl Store {
    /// Connects to the store at `host:port`. If `serves` is true, this process hosts the store
    /// until it is dropped; with port 0, on a free port. All keys get `prefix`. Also returns the
    /// port.
    ///
    /// # Errors
    /// Fails if the port is in use, or if nothing answers within `timeout`.
    pub fn open(
        host: &str,
        port: u16,
        serves: bool,
        prefix: &str,
        timeout: Duration,
    ) -> Result<(Self, u16)> {
        let (host, prefix) = (text(host)?, text(prefix)?);
        let (mut out, mut bound) = (ptr::null_mut(), 0);
        // SAFETY: the texts live during the call, which writes to `out` and `bound`.
        checked(unsafe {
            reprpo_store_open(
                host.as_ptr(),
                port,
                serves,
                milliseconds(timeout),
                prefix.as_ptr(),
                &raw mut out,
                &raw mut bound,
            )
        })?;
        Ok((Self(out), bound))
    }

    /// Opens a second connection, for another thread.
    ///
    /// # Errors
    /// Fails if the store does not answer.
    pub fn second(&self) -> Result<Self> {
        let mut out = ptr::null_mut();
        // SAFETY: `self.0` is a valid store.
        checked(unsafe { reprpo_store_clone(self.0, &raw mut out) })?;
        Ok(Self(out))
    }

    /// Sets the value of a key.
    ///
    /// # Errors
    /// Fails if the store does not answer.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let key = text(key)?;
        // SAFETY: the key and the value live during the call.
        checked(unsafe { reprpo_store_set(self.0, key.as_ptr(), value.as_ptr(), value.len()) })
    }

    /// Waits until a key has a value, and returns the value.
    ///
    /// # Errors
    /// Fails if the store does not answer, or if the key has no value within `timeout`.
    pub fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>> {
        let key = text(key)?;
        let (mut data, mut size) = (ptr::null_mut::<c_char>(), 0);
        // SAFETY: the key lives during the call, which writes to `data` and `size`.
        checked(unsafe {
            reprpo_store_get(
                self.0,
                key.as_ptr(),
                milliseconds(timeout),
                &raw mut data,
                &raw mut size,
            )
        })?;
        // SAFETY: the call has allocated `size` bytes for the caller, who frees them.
        let value = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), size) }.to_vec();
        unsafe { reprpo_free(data) };
        Ok(value)
    }

    /// True if the key has a value.
    ///
    /// # Errors
    /// Fails if the store does not answer.
    pub fn has(&self, key: &str) -> Result<bool> {
        let key = text(key)?;
        let mut out = false;
        // SAFETY: the key lives during the call, which writes one boolean.
        checked(unsafe { reprpo_store_has(self.0, key.as_ptr(), &raw mut out) })?;
        Ok(out)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: the pointer is valid and is not used again.
        unsafe { reprpo_store_drop(self.0) }
    }
}

/// The ranks that compute together. All ranks must call the same operations in the same order.
pub struct Group(*mut c_void);

// SAFETY: the pointer has one owner, and a group may be used by one thread after another.
unsafe impl Send for Group {}

impl Group {
    /// Creates a group of gloo, which connects the CPUs of `size` ranks. `interface` is the network
    /// interface to use, and `host` the name or address of this machine in the network; by default,
    /// gloo takes the address that belongs to the machine's name.
    ///
    /// # Errors
    /// Fails if gloo's headers were missing when this program was built, or if the ranks cannot
    /// connect to each other within `timeout`.
    pub fn gloo(
        store: &Store,
        rank: usize,
        size: usize,
        timeout: Duration,
        interface: Option<&str>,
        host: Option<&str>,
    ) -> Result<Self> {
        type Open = unsafe extern "C" fn(
            *const c_void,
            c_int,
            c_int,
            i64,
            *const c_char,
            *const c_char,
            *mut *mut c_void,
        ) -> *mut c_char;
        // SAFETY: the library defines the function with this signature.
        let open = unsafe { function::<Open>(gloo()?, "reprpo_gloo_open") }?;
        let (interface, host) = (text(interface.unwrap_or(""))?, text(host.unwrap_or(""))?);
        let mut out = ptr::null_mut();
        // SAFETY: the store and the texts live during the call, which writes to `out`.
        checked(unsafe {
            open(
                store.0,
                wide(rank),
                wide(size),
                milliseconds(timeout),
                interface.as_ptr(),
                host.as_ptr(),
                &raw mut out,
            )
        })?;
        Ok(Self(out))
    }

    /// Creates a group of NCCL, which connects the cards of `size` ranks. Each rank must use a card
    /// of its own. The cards connect in the first operation.
    ///
    /// # Errors
    /// Fails in the same cases as [`nccl_card`], or if the store does not answer.
    pub fn nccl(store: &Store, rank: usize, size: usize, timeout: Duration) -> Result<Self> {
        type Open =
            unsafe extern "C" fn(*const c_void, c_int, c_int, i64, *mut *mut c_void) -> *mut c_char;
        // SAFETY: the library defines the function with this signature.
        let open = unsafe { function::<Open>(nccl()?, "reprpo_nccl_open") }?;
        let mut out = ptr::null_mut();
        // SAFETY: the store lives during the call, which writes to `out`.
        checked(unsafe {
            open(store.0, wide(rank), wide(size), milliseconds(timeout), &raw mut out)
        })?;
        Ok(Self(out))
    }

    /// Replaces a tensor by its sum over all ranks, which has the same bytes on each of them. If it
    /// is on a card, the sum may not have finished when this returns, but operations that follow
    /// wait for it.
    ///
    /// # Errors
    /// Fails if a rank has ended, or does not take part within the group's timeout.
    pub fn sum(&self, tensor: &Tensor) -> Result<()> {
        // SAFETY: the group and the tensor are valid.
        checked(unsafe { reprpo_group_sum(self.0, tensor.as_ptr().cast_mut()) })
    }

    /// Starts to write the tensors of all ranks, which have the same shape, to the rows of `out`.
    ///
    /// # Errors
    /// Fails in the same cases as [`sum`](Self::sum).
    pub fn gather(&self, tensor: &Tensor, out: &Tensor) -> Result<Work> {
        let mut work = ptr::null_mut();
        // SAFETY: the group and the tensors are valid. The work keeps the tensors.
        checked(unsafe {
            reprpo_group_gather(
                self.0,
                tensor.as_ptr().cast_mut(),
                out.as_ptr().cast_mut(),
                &raw mut work,
            )
        })?;
        Ok(Work(work))
    }

    /// Finishes all operations, and ends the group. All ranks must call this at the same time.
    ///
    /// # Errors
    /// Fails if an operation has failed.
    pub fn finish(self) -> Result<()> {
        // SAFETY: the group is valid.
        checked(unsafe { reprpo_group_finish(self.0) })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: the pointer is valid and is not used again.
        unsafe { reprpo_group_drop(self.0) }
    }
}

/// An operation of a group that may not have finished.
pub struct Work(*mut c_void);

// SAFETY: the pointer has one owner.
unsafe impl Send for Work {}

impl Work {
    /// Waits until the operation has finished. If it is an operation of cards, only the operations
    /// that follow on the card wait for it.
    ///
    /// # Errors
    /// Fails if a rank has ended, or does not take part within the group's timeout.
    pub fn wait(self) -> Result<()> {
        // SAFETY: the pointer is valid.
        checked(unsafe { reprpo_work_wait(self.0) })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: the pointer is valid and is not used again.
        unsafe { reprpo_work_drop(self.0) }
    }
}

/// Checks that a group of gloo can be created.
///
/// # Errors
/// Fails if gloo's headers were missing when this program was built, or if the library cannot be
/// opened.
pub fn has_gloo() -> Result<()> {
    gloo().map(drop)
}

/// Returns the address of a card, which is unique on the machine. NCCL cannot connect ranks that
/// use the same card.
///
/// # Errors
/// Fails if the headers of NCCL were missing when this program was built, if libtorch's CUDA
/// library is not loaded, or if libtorch was built with another version of NCCL.
pub fn nccl_card(index: usize) -> Result<String> {
    type Card = unsafe extern "C" fn(c_int, *mut c_char) -> *mut c_char;
    // SAFETY: the library defines the function with this signature.
    let card = unsafe { function::<Card>(nccl()?, "reprpo_nccl_card") }?;
    let mut out = [0; 32];
    // SAFETY: the call writes at most 32 bytes, which end with NUL.
    checked(unsafe { card(wide(index), out.as_mut_ptr().cast()) })?;
    let text = CStr::from_bytes_until_nul(&out)
        .map_err(|e| Error::internal("the address of a card is damaged").because(e))?;
    Ok(text.to_string_lossy().into_owned())
}

/// Ends this process without the exit handlers of libraries. These may wait for operations of a
/// card, which never finish if they need a rank that is lost.
pub fn end_process(code: u8) -> ! {
    let _ = std::io::stdout().flush();
    // SAFETY: the function does not return.
    unsafe { reprpo_end_process(c_int::from(code)) }
}

/// Opens the embedded library of gloo.
fn gloo() -> Result<&'static Library> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    if GLOO.is_empty() {
        return Err(Error::new(
            "this program was built without gloo, which connects several ranks",
        )
        .hint(
            "install gloo's headers (the package `libgloo-dev` of Debian and Ubuntu), and \
                    build again",
        ));
    }
    let opened = LIBRARY.get_or_init(|| open(GLOO));
    opened.as_ref().map_err(|why| {
        Error::new("the library of gloo cannot be opened").because(Error::new(why.clone()))
    })
}

/// Checks that this program contains the library of NCCL.
///
/// # Errors
/// Fails if the headers of NCCL or CUDA were missing, or had another version than libtorch, when
/// this program was built.
pub fn built_with_nccl() -> Result<()> {
    if NCCL.is_empty() {
        return Err(Error::new(format!("this program was built without NCCL: {NCCL_MISSING}"))
            .hint(
                "install the headers with `pip install nvidia-nccl-cu13==2.28.9 \
                    'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-crt==13.0.*' \
                    'nvidia-cuda-cccl==13.0.*'`",
            )
            .hint(
                "then set `NCCL_INCLUDE` to `nvidia/nccl/include` and `CUDA_HOME` to \
                    `nvidia/cu13` in the `site-packages` of that Python, and build again",
            ));
    }
    Ok(())
}

/// Opens the embedded library of NCCL, which uses functions of libtorch's CUDA library.
fn nccl() -> Result<&'static Library> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    built_with_nccl()?;
    if !matches!(load_cuda(), CudaLibrary::Loaded(_)) {
        return Err(Error::new("NCCL connects cards, but libtorch's CUDA library is not loaded"));
    }
    let opened = LIBRARY.get_or_init(|| open(NCCL));
    opened.as_ref().map_err(|why| {
        Error::new("the library of NCCL cannot be opened").because(Error::new(why.clone()))
    })
}

/// Opens an embedded library. On failure, returns the loader's message.
fn open(library: &[u8]) -> Result<Library, String> {
    // The file is deleted as soon as the library is open.
    let mut file = tempfile::NamedTempFile::new().map_err(|e| e.to_string())?;
    file.write_all(library).map_err(|e| e.to_string())?;
    // SAFETY: the initialisers of the library only create constants, and its symbols stay local.
    unsafe { Library::open(Some(file.path()), RTLD_NOW | RTLD_LOCAL) }.map_err(|e| {
        std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string)
    })
}

/// A function of an embedded library.
///
/// # Safety
/// `T` must be the type of the function.
unsafe fn function<T>(
    library: &'static Library,
    name: &str,
) -> Result<libloading::os::unix::Symbol<T>> {
    // SAFETY: the caller guarantees the type.
    unsafe { library.get::<T>(name.as_bytes()) }
        .map_err(|e| Error::internal("an embedded library is damaged").because(e))
}

fn wide(number: usize) -> c_int {
    c_int::try_from(number).unwrap_or(c_int::MAX)
}

fn text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|e| Error::internal("a text contains NUL").because(e))
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nccl_needs_headers_and_the_library_of_cuda() {
        let e = match nccl_card(0) {
            // This machine has a card.
            Ok(card) => return assert!(card.contains(':'), "{card}"),
            Err(e) => e,
        };
        if NCCL.is_empty() {
            assert!(!NCCL_MISSING.is_empty());
            assert_eq!(
                e.to_string().lines().next(),
                Some(&*format!("this program was built without NCCL: {NCCL_MISSING}"))
            );
            assert!(e.hints().iter().any(|hint| hint.contains("nvidia-nccl-cu13==2.28.9")));
        } else if !matches!(load_cuda(), CudaLibrary::Loaded(_)) {
            assert!(e.to_string().contains("CUDA library is not loaded"), "{e}");
            // Without the check, the loader would name a missing symbol.
            let why = open(NCCL).unwrap_err();
            assert!(why.contains("undefined symbol"), "{why}");
        }
    }
}
