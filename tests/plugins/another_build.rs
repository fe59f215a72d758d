//! A library that declares itself a plugin of another build of reprpo. It is compiled without any
//! crate.

#[repr(C)]
pub struct Decl {
    magic: [u8; 8],
    size: u32,
    api: u32,
    layout: u64,
    text: [&'static std::ffi::c_char; 3],
    register: extern "C" fn(*const u8),
}

extern "C" fn register(_: *const u8) {
    panic!("a plugin of another build was called");
}

const fn first(text: &'static std::ffi::CStr) -> &'static std::ffi::c_char {
// SAFETY: the text is a constant, so the pointer is always valid.
    unsafe { &*text.as_ptr() }
}

#[unsafe(no_mangle)]
pub static REPRPO_PLUGIN: Decl = Decl {
    magic: *b"reprpo\x01\x00",
    size: size_of::<Decl>() as u32,
    api: 2,
    layout: 7,
    text: [
        first(c"rustc=1.80.0 \
            (051478957371);target=x86_64-unknown-linux-gnu;panic=unwind;core=0.0.1;sources=00;\
            tch=0.22.0;libtorch=2.9.0"),
        first(c"oldtwist"),
        first(c"0.0.1"),
    ],
    register,
};
