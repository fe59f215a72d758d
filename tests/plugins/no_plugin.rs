//! A library that is not a plugin.

#[unsafe(no_mangle)]
pub extern "C" fn answer() -> i32 {
    42
}
