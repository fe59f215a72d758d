//! The key-value store and the collective operations of c10d.
//!
//! The process group of gloo is a library of its own, because libtorch lacks the headers that it
//! needs. If the build finds these headers, it compiles the library and embeds it in this crate.
//! The library is opened when the first group is created.

use std::ffi::{CString, c_char, c_int, c_void};
use std::io::Write;
use std::ptr;
use std::sync::OnceLock;
use std::time::Duration;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use tch::Tensor;
use torch_sys::C_tensor;

use super::checked;
use crate::error::{Error, Result};

/// The library of gloo's process group; empty if the build did not find gloo's headers.
const GLOO: &[u8] = include_bytes!(env!("REPRPO_GLOO"));

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
        let library = gloo()?;
        // SAFETY: the library defines the function with this signature.
        let open = unsafe { library.get::<Open>(b"reprpo_gloo_open\0") }
            .map_err(|e| Error::internal("the library of gloo is damaged").because(e))?;
        let (interface, host) = (text(interface.unwrap_or(""))?, text(host.unwrap_or(""))?);
        let wide = |number: usize| c_int::try_from(number).unwrap_or(c_int::MAX);
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

    /// Replaces a tensor by its sum over all ranks, which has the same bytes on each of them.
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
    /// Waits until the operation has finished.
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

/// Opens the embedded library.
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
    let opened = LIBRARY.get_or_init(|| {
        // The file is deleted as soon as the library is open.
        let mut file = tempfile::NamedTempFile::new().map_err(|e| e.to_string())?;
        file.write_all(GLOO).map_err(|e| e.to_string())?;
        // SAFETY: the library has no initialisers of its own, and its symbols stay local.
        unsafe { Library::open(Some(file.path()), RTLD_NOW | RTLD_LOCAL) }.map_err(|e| {
            std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string)
        })
    });
    opened.as_ref().map_err(|why| {
        Error::new("the library of gloo cannot be opened").because(Error::new(why.clone()))
    })
}

fn text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|e| Error::internal("a text contains NUL").because(e))
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
