//! The C++ compiler: tch's own C++ needs one at every build, and a trimmed libtorch one small
//! library from it.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::failure::failure;

/// A C++ compiler that answers. It is the one that cargo's build scripts take too.
pub fn find() -> Result<OsString> {
    let name =
        std::env::var_os("CXX").filter(|name| !name.is_empty()).unwrap_or_else(|| "c++".into());
    match Command::new(&name).arg("--version").output() {
        Ok(output) if output.status.success() => Ok(name),
        _ => Err(failure(
            format!("there is no C++ compiler: `{}` does not run", name.display()),
            "install one (`apt-get install g++`, `dnf install gcc-c++`, `xcode-select \
                --install`), or export `CXX` with its name",
        )),
    }
}

/// Writes the `libtorch.so` that torch-sys links. The published one pulls CUDA in; this one is
/// empty and pulls `libtorch_cpu.so` in.
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
