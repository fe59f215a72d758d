//! The build script of every package here whose binaries or tests link libtorch.
//!
//! Cargo applies a `rustc-link-arg` to the package that prints it alone, so each of them has to say
//! where libtorch lies; they all say it with this one file. `LIBTORCH` is what `cargo xtask setup`
//! wrote for cargo, unless it is exported.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=LIBTORCH_LIB");
    let lib = std::env::var_os("LIBTORCH_LIB")
        .or_else(|| std::env::var_os("LIBTORCH"))
        .map(|p| PathBuf::from(p).join("lib"));
    // Where it is missing, the build script of `core` says so and what to do.
    if let Some(lib) = lib.and_then(|p| p.canonicalize().ok()) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    }
}
