//! The functions and values that the host, i.e. reprpo, passes to a plugin library.

use std::ffi::c_void;

use crate::registry::{Entry, RecipeText};

/// The argument of [`PluginDecl::register`](super::PluginDecl).
#[repr(C)]
pub(super) struct Host {
    /// Path of the library, used in error messages: `label_len` bytes of UTF-8 that live as long as
    /// the process.
    pub label: *const u8,
    pub label_len: usize,
    /// Name of the plugin, used in log records: `name_len` bytes of UTF-8 that live as long as the
    /// process.
    pub name: *const u8,
    pub name_len: usize,
    /// The most detailed level that the host logs, from 0 (off) and 1 (error) to 5 (trace).
    pub level: u32,
    /// Writes a log record with a level and a message.
    pub log: extern "C" fn(level: u32, text: *const u8, len: usize),
    /// Reports a fault, with its message and cause, from a function that cannot return an error.
    pub fault: extern "C" fn(message: *const u8, len: usize, cause: *const u8, cause_len: usize),
    /// 1 if the plugin must not download anything from the hub, else 0.
    pub offline: u32,
    /// Shows the progress of a download from the hub: name of the file, bytes received, and total
    /// size in bytes. Returns 0 to cancel the download.
    pub fetched: extern "C" fn(file: *const u8, len: usize, done: u64, size: u64) -> u32,
    /// The pointer that the plugin must pass to `entry` and `recipe` as the first argument.
    pub sink: *mut c_void,
    /// Registers an entry, which must live as long as the library.
    pub entry: unsafe extern "C" fn(sink: *mut c_void, entry: *const Entry),
    /// Registers a recipe, which must live as long as the library.
    pub recipe: unsafe extern "C" fn(sink: *mut c_void, recipe: *const RecipeText),
}
