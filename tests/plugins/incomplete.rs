//! A library that needs a function which no library defines.

unsafe extern "C" {
    fn reprpo_function_that_nobody_has();
}

#[unsafe(no_mangle)]
pub extern "C" fn call() {
    // SAFETY: this function is never called, because the library cannot be loaded.
    unsafe { reprpo_function_that_nobody_has() }
}
