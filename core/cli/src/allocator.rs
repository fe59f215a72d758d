//! The allocator of the process.
//!
//! A training step allocates and frees the same large tensors again and again. glibc returns them
//! to the kernel each time, which then clears every page before its next use. jemalloc keeps them,
//! finds free blocks faster, and needs less memory in total. It also replaces `malloc` for
//! libtorch, because the program's own `malloc` takes precedence over the C library's.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod jemalloc {
    use std::ffi::c_char;

    #[global_allocator]
    static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

    /// A pointer to the text of [`SETTINGS`].
    #[repr(transparent)]
    pub struct Settings(*const c_char);

    // SAFETY: the text is constant.
    unsafe impl Sync for Settings {}

    /// Memory that was not used for a minute is returned to the kernel. The variable `MALLOC_CONF`
    /// takes precedence. jemalloc reads this symbol before the first allocation.
    #[used]
    #[unsafe(export_name = "malloc_conf")]
    pub static SETTINGS: Settings = Settings(c"dirty_decay_ms:60000".as_ptr());
}
