//! `cargo xtask wheel` and `cargo xtask dist`: the two files that bring reprpo to a machine without
//! Rust.
//!
//! Both hold the same binary. It is linked so that it runs on older systems (`link`), and what it
//! requires of a system is read from the file itself (`elf`, `manylinux`), not assumed.

mod elf;
mod licences;
pub mod link;
mod manylinux;
mod metadata;
mod tarball;
mod wheel;
mod zig;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;

use crate::failure::{at, failure};
use crate::{Options, compiler, libtorch, paths, progress, run};
use elf::Dynamic;
use metadata::Metadata;

/// The source of the symbols that the portable link must not take from a library.
const PORTABLE_SOURCE: &str = "core/xtask/src/package/portable.cc";

/// How a package is made.
#[derive(Args)]
pub struct PackageOptions {
    /// Folder of the finished file [default: `dist` in cargo's target folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Link against the glibc of this machine instead of glibc 2.28; the package then only runs on
    /// systems as new
    #[arg(long)]
    plain_link: bool,
    #[command(flatten)]
    options: Options,
}

/// A file of a package.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// Path in the package, with `/` between folders.
    path: String,
    bytes: Vec<u8>,
    executable: bool,
}

impl Entry {
    fn file(path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), bytes: bytes.into(), executable: false }
    }

    fn program(path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { executable: true, ..Self::file(path, bytes) }
    }

    /// Permissions of the file, as `chmod` takes them.
    fn mode(&self) -> u32 {
        if self.executable { 0o755 } else { 0o644 }
    }
}

/// A release build, ready to be packed.
struct Release {
    binary: Vec<u8>,
    /// The NN of `manylinux_2_NN`.
    minor: u32,
    metadata: Metadata,
    /// Texts of the licences, with the names of their files.
    licences: Vec<(String, Vec<u8>)>,
}

/// Builds the wheel.
pub fn wheel(options: &PackageOptions) -> Result<()> {
    let release = Release::build(options)?;
    let sources = folder_of(&paths::checkout().join("python/reprpo"), &["py"])?;
    let readme = read(&paths::checkout().join("README.md"))?;
    let file = options.out()?.join(wheel::file_name(&release));
    wheel::write(&file, &wheel::entries(&release, sources, &readme)?)?;
    announce(&file, release.minor)
}

/// Builds the tarball.
pub fn dist(options: &PackageOptions) -> Result<()> {
    let release = Release::build(options)?;
    let file = options.out()?.join(tarball::file_name(&release));
    tarball::write(&file, &tarball::entries(&release)?)?;
    announce(&file, release.minor)
}

fn announce(file: &Path, minor: u32) -> Result<()> {
    let size = fs::metadata(file).map_err(|e| at(file, "read", e))?.len();
    progress::line(&format!(
        "`{}`: {:.1} MB, for glibc 2.{minor} or later",
        file.display(),
        size as f64 / 1e6
    ));
    Ok(())
}

impl PackageOptions {
    fn out(&self) -> Result<PathBuf> {
        let folder = self.out.clone().unwrap_or_else(|| paths::target().join("dist"));
        fs::create_dir_all(&folder).map_err(|e| at(&folder, "create", e))?;
        Ok(folder)
    }
}

impl Release {
    fn build(options: &PackageOptions) -> Result<Self> {
        let libtorch = libtorch::set_up(&options.options)?;
        let compiler = compiler::find()?;
        let target = paths::target();
        fs::create_dir_all(&target).map_err(|e| at(&target, "create", e))?;
        // The name of the linker is new each time, so cargo always links again, and only that.
        let work = tempfile::Builder::new()
            .prefix("package-")
            .tempdir_in(&target)
            .map_err(|e| at(&target, "write to", e))?;
        let packed = work.path().join("reprpo");
        let script = work.path().join("cc");

        let portable = match options.plain_link {
            true => None,
            false => {
                Some((zig::set_up(&options.options)?, compile_portable(&compiler, work.path())?))
            }
        };
        let plan = link::Plan {
            packed: &packed,
            compiler: &compiler,
            portable: portable.as_ref().map(|(zig, object)| (zig.as_path(), object.as_path())),
        };
        plan.write_script(&script)?;
        let mut cargo = run::cargo(&libtorch);
        cargo
            .args(["rustc", "--release", "--package", "reprpo", "--bin", "reprpo", "--", "-C"])
            .arg(format!("linker={}", script.display()));
        if run::finish(&mut cargo)?.is_some() {
            let hint = "`--plain-link` links against the glibc of this machine; the package then \
                needs one as new";
            return Err(if options.plain_link {
                anyhow!("the binary could not be built")
            } else {
                failure("the binary could not be built", hint)
            });
        }

        let binary = fs::read(&packed).map_err(|e| at(&packed, "read", e))?;
        let minor = examine(&binary, !options.plain_link)?;
        let metadata = Metadata::read(&libtorch)?;
        let licences =
            licences::gather(&metadata, portable.as_ref().map(|(zig, _)| zig.as_path()))?;
        Ok(Self { binary, minor, metadata, licences })
    }
}

/// The NN of the binary's `manylinux_2_NN`. Refuses a binary that would not run where it is
/// installed.
fn examine(binary: &[u8], portable: bool) -> Result<u32> {
    let dynamic = Dynamic::read(binary).context("cannot read the binary that was linked")?;
    ensure!(
        dynamic.runpath.as_deref() == Some(link::RUNPATH) && dynamic.rpath.is_none(),
        "the binary looks for libraries in {:?} and {:?}, but only `{}` is right",
        dynamic.runpath,
        dynamic.rpath,
        link::RUNPATH
    );
    if portable {
        manylinux::check_at_most(&dynamic, zig::GLIBC).map_err(|e| {
            failure(
                format!("{e:#}"),
                format!(
                    "define these symbols in \
                `{PORTABLE_SOURCE}`, build with an older g++, or add `--plain-link`"
                ),
            )
        })?;
    }
    manylinux::minor(&dynamic)
}

fn compile_portable(compiler: &std::ffi::OsStr, folder: &Path) -> Result<PathBuf> {
    let object = folder.join("portable.o");
    let output = Command::new(compiler)
        .args(["-c", "-O2", "-fPIC", "-std=c++17", "-o"])
        .arg(&object)
        .arg(paths::checkout().join(PORTABLE_SOURCE))
        .output()?;
    if !output.status.success() {
        bail!(
            "`{}` could not compile `{PORTABLE_SOURCE}`: {}",
            compiler.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(object)
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).map_err(|e| at(file, "read", e))
}

/// The files of `folder` that have one of these extensions, by their names.
fn folder_of(folder: &Path, extensions: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| at(folder, "read", e))? {
        let path = entry.map_err(|e| at(folder, "read", e))?.path();
        let wanted = path
            .extension()
            .and_then(|end| end.to_str())
            .is_some_and(|end| extensions.contains(&end));
        if wanted && let Some(name) = path.file_name().and_then(|name| name.to_str()) {
            files.push((name.to_owned(), fs::read(&path).map_err(|e| at(&path, "read", e))?));
        }
    }
    // A folder's own order differs between machines.
    files.sort();
    Ok(files)
}

/// Writes a file whole or not at all.
fn write_whole(file: &Path, bytes: &[u8]) -> Result<()> {
    let partial =
        file.with_file_name(format!("{}.partial", file.file_name().unwrap_or_default().display()));
    fs::write(&partial, bytes).map_err(|e| at(&partial, "write", e))?;
    fs::rename(&partial, file).map_err(|e| at(file, "write", e))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A release that is quick to pack.
    pub(super) fn release() -> Release {
        Release {
            binary: b"\x7fELF and so on".repeat(100),
            minor: 28,
            metadata: Metadata::fixed("0.1.0", "Aligns what a model represents"),
            licences: vec![
                ("LICENSE-MIT".into(), b"MIT\n".to_vec()),
                ("THIRD-PARTY.txt".into(), b"others\n".to_vec()),
            ],
        }
    }

    #[test]
    fn files_of_a_folder_come_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.py", "a.py", "c.pyc"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let names: Vec<String> =
            folder_of(folder.path(), &["py"]).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a.py", "b.py"]);
    }
}
