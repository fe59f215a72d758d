//! The build script of every package here whose binaries or tests link libtorch.
//!
//! Cargo only applies a `rustc-link-arg` to the package that prints it, so each of these packages
//! must print the folder of libtorch. They all use this file. `LIBTORCH` is the folder that
//! `cargo xtask setup` wrote for cargo, unless the variable is exported.

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
