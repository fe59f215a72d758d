//! Checks libtorch's version and builds the C++ shim.
//!
//! No binary links libtorch's CUDA library. It is loaded at run time (`src/ffi/cuda.rs`), so that
//! one binary works on machines with and without CUDA.

#[path = "libtorch_version.rs"]
mod libtorch_version;
#[path = "nccl_headers.rs"]
mod nccl_headers;

use std::path::{Path, PathBuf};

use libtorch_version::{LIBTORCH_VERSION, version_header};

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=libtorch_version.rs");
    println!("cargo:rerun-if-changed=nccl_headers.rs");
    println!("cargo:rerun-if-changed=csrc");
    let Some(lib) = std::env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else {
        panic!("torch-sys did not report where libtorch is; run `cargo xtask setup`");
    };
    match std::env::var_os("LIBTORCH").map(PathBuf::from) {
        Some(root) => check_version(&root),
        // torch-sys has already checked the version if `LIBTORCH_USE_PYTORCH` is set or if it
        // downloaded libtorch itself.
        None => println!("cargo:warning=`LIBTORCH` is not set, using {}", lib.display()),
    }
    println!("cargo:rustc-link-search=native={}", lib.display());
    let include = std::env::var_os("LIBTORCH_INCLUDE")
        .or_else(|| std::env::var_os("LIBTORCH"))
        .map_or_else(|| lib.join(".."), PathBuf::from)
        .join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .pic(true)
        .warnings(false)
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file("csrc/shim.cc")
        .file("csrc/node.cc")
        .file("csrc/product.cc")
        .file("csrc/world.cc")
        .compile("reprpo_shim");
    gloo(&include, &lib);
    nccl(&include, &lib);
    // Optimise this file in debug builds too, because it replaces an optimised libtorch function.
    // `-ffp-contract=fast` allows fused multiply-add instructions.
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .pic(true)
        .opt_level(3)
        .flag_if_supported("-ffp-contract=fast")
        .file("csrc/row_product.cc")
        .compile("reprpo_row_product");
    // Slow without optimisation. Here, fused multiply-add instructions would round differently from
    // libtorch's operations, which the kernels replace.
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .pic(true)
        .warnings(false)
        .opt_level(3)
        .flag_if_supported("-ffp-contract=off")
        .flag_if_supported("-Wno-psabi")
        .include(&include)
        .file("csrc/fused.cc")
        .file("csrc/attention.cc")
        .compile("reprpo_fused");
    println!("cargo:rustc-env=REPRPO_LIBTORCH_VERSION={LIBTORCH_VERSION}");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.canonicalize().unwrap_or(lib).display());
}

/// Builds the library of gloo's process group. Without gloo's headers, the library is an empty
/// file.
fn gloo(include: &Path, lib: &Path) {
    println!("cargo:rerun-if-env-changed=GLOO_INCLUDE");
    let places = [std::env::var_os("GLOO_INCLUDE").map(PathBuf::from), Some("/usr/include".into())];
    let found = places.into_iter().flatten().find(|place| place.join("gloo/context.h").is_file());
    let built = group("gloo", found.as_slice(), include, lib);
    assert!(built, "the library of gloo cannot be built; see the errors above");
}

/// Builds the library of NCCL's process group. If headers are missing or do not fit, or if the
/// library cannot be compiled, the library is an empty file. `REPRPO_NCCL_MISSING` has the reason.
fn nccl(include: &Path, lib: &Path) {
    let missing = match nccl_headers::find(include) {
        Ok(mut folders) => {
            folders.insert(0, "csrc/cuda".into());
            match group("nccl", &folders, include, lib) {
                true => String::new(),
                false => "its library cannot be compiled".to_owned(),
            }
        }
        Err(why) => {
            group("nccl", &[], include, lib);
            why
        }
    };
    if !missing.is_empty() && std::env::var_os("NCCL_INCLUDE").is_some() {
        println!("cargo:warning=reprpo is built without NCCL: {missing}");
    }
    println!("cargo:rustc-env=REPRPO_NCCL_MISSING={missing}");
}

/// Builds the library of a process group, which the crate embeds. Without folders of headers, the
/// library is an empty file. Returns false, and leaves an empty file, if the compiler fails.
///
/// The program opens the library after libtorch, whose other symbols need not be known here.
fn group(name: &str, headers: &[PathBuf], include: &Path, lib: &Path) -> bool {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets `OUT_DIR`"));
    let library = out.join(format!("libreprpo_{name}.so"));
    println!("cargo:rustc-env=REPRPO_{}={}", name.to_uppercase(), library.display());
    std::fs::write(&library, []).expect("the output folder is writable");
    if headers.is_empty() {
        return true;
    }
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .pic(true)
        .warnings(false)
        .include(include)
        .include(include.join("torch/csrc/api/include"))
        .includes(headers);
    let mut command = build.get_compiler().to_command();
    command.args(["-shared", "-fvisibility=hidden"]).arg(format!("csrc/{name}.cc"));
    command.arg("-o").arg(&library).arg("-L").arg(lib).args(["-ltorch_cpu", "-lc10"]);
    let built = command.status().expect("the C++ compiler starts").success();
    if !built {
        std::fs::write(&library, []).expect("the output folder is writable");
    }
    built
}

fn check_version(root: &Path) {
    if std::env::var_os("LIBTORCH_BYPASS_VERSION_CHECK").is_some() {
        return;
    }
    println!("cargo:rerun-if-changed={}", version_header(root).display());
    match libtorch_version::libtorch_version(root) {
        Some(version) if version == LIBTORCH_VERSION => {}
        Some(version) => {
            panic!(
                "`{}` contains libtorch {version}, but reprpo needs {LIBTORCH_VERSION}; unset \
                    `LIBTORCH` and run `cargo xtask setup`",
                root.display()
            )
        }
        None => panic!(
            "there is no libtorch in `{}`; run `cargo xtask setup`, or set `LIBTORCH` to a \
                libtorch {LIBTORCH_VERSION}",
            root.display()
        ),
    }
}
