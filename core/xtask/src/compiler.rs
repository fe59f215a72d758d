//! The C++ compiler. Every build needs it for tch's C++ code. The setup of a CPU-only libtorch
//! needs it to link a small library.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::failure::failure;

/// Finds a working C++ compiler, in the same way as cargo's build scripts.
pub fn find() -> Result<OsString> {
    let name =
        std::env::var_os("CXX").filter(|name| !name.is_empty()).unwrap_or_else(|| "c++".into());
    match Command::new(&name).arg("--version").output() {
        Ok(output) if output.status.success() => Ok(name),
        _ => Err(failure(
            format!("no C++ compiler was found: `{}` cannot be run", name.display()),
            "install one (`apt-get install g++`, `dnf install gcc-c++`, `xcode-select \
                --install`), or set the environment variable `CXX` to its name",
        )),
    }
}

/// Creates an empty `libtorch.so` for torch-sys to link. The published `libtorch.so` depends on
/// CUDA. This replacement only depends on `libtorch_cpu.so` and `libc10.so`.
pub fn link_libtorch(compiler: &OsString, lib: &Path) -> Result<()> {
    let output = Command::new(compiler)
        .current_dir(lib)
        .args([
            "-shared",
            "-o",
            "libtorch.so",
            "-Wl,-soname,libtorch.so",
            "-Wl,--no-as-needed",
            "-L.",
            "-ltorch_cpu",
            "-lc10",
        ])
        .args(["-Wl,-rpath,$ORIGIN", "-Wl,--allow-shlib-undefined"])
        .output()?;
    if !output.status.success() {
        bail!(
            "`{}` could not link `libtorch.so`: {}",
            compiler.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
