//! The build script of every package in this workspace whose binaries or tests link libtorch.
//!
//! Every package needs this script, because Cargo applies a `rustc-link-arg` only to the package
//! whose build script prints it. The script reads `LIBTORCH`. `cargo xtask setup` sets this
//! variable in Cargo's configuration, but an exported `LIBTORCH` takes precedence.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=LIBTORCH_LIB");
    let lib = std::env::var_os("LIBTORCH_LIB")
        .or_else(|| std::env::var_os("LIBTORCH"))
        .map(|p| PathBuf::from(p).join("lib"));
    // If libtorch is missing, the build script of `core` reports the error.
    if let Some(lib) = lib.and_then(|p| p.canonicalize().ok()) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    }
}
