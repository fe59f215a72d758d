//! The side of the interface that a host offers to a plugin.

use std::ffi::c_void;

use crate::registry::{Entry, RecipeText};

/// What a host hands to [`PluginDecl::register`](super::PluginDecl).
#[repr(C)]
pub(super) struct Host {
    /// The library's path, for its errors: UTF-8, `label_len` bytes, alive as long as the process.
    pub label: *const u8,
    pub label_len: usize,
    /// The plugin's name, for its log: as above.
    pub name: *const u8,
    pub name_len: usize,
    /// The most detailed level that the host's log takes: 0 off, 1 error … 5 trace.
    pub level: u32,
    /// Takes a log record: level, text.
    pub log: extern "C" fn(level: u32, text: *const u8, len: usize),
    /// Takes a fault that no error could tell of: message, cause.
    pub fault: extern "C" fn(message: *const u8, len: usize, cause: *const u8, cause_len: usize),
    /// Whether nothing is to be fetched from the hub: 0 or 1.
    pub offline: u32,
    /// Is shown a file that comes from the hub: its name, bytes that are there, bytes in all; 0: go
    /// no further.
    pub fetched: extern "C" fn(file: *const u8, len: usize, done: u64, size: u64) -> u32,
    /// Where the two below put what they are given.
    pub sink: *mut c_void,
    /// Takes an entry that lives as long as the library.
    pub entry: unsafe extern "C" fn(sink: *mut c_void, entry: *const Entry),
    /// Takes a recipe that lives as long as the library.
    pub recipe: unsafe extern "C" fn(sink: *mut c_void, recipe: *const RecipeText),
}
