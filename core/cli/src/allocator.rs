//! Settings of the C allocator.

/// Keeps freed memory in the process instead of returning it to the kernel.
///
/// A training step allocates and frees the same large tensors again and again. By default, glibc
/// returns them to the kernel each time. The kernel then clears every page before its next use.
/// Variables such as `MALLOC_TRIM_THRESHOLD_` and `GLIBC_TUNABLES` take precedence. Has no effect
/// with other C libraries.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// Largest block that is taken from the heap, in bytes; glibc accepts at most 32 MiB.
        const LARGEST: i32 = 32 << 20;
        /// Number of bytes by which the heap grows at once.
        const GROWTH: i32 = 64 << 20;
        let is_set = |name: &str| {
            name == "GLIBC_TUNABLES" || (name.starts_with("MALLOC_") && name.ends_with('_'))
        };
        if std::env::vars_os().any(|(name, _)| name.to_str().is_some_and(is_set)) {
            return;
        }
        // SAFETY: `mallopt` has no preconditions. It returns 0 if it ignores a value, which is
        // harmless.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
            libc::mallopt(libc::M_TOP_PAD, GROWTH);
        }
    }
}
