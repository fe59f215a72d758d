//! Implements `cargo xtask wheel` and `cargo xtask dist`, which build the two binary packages.
//!
//! Both packages contain the same binary. The module `link` makes the binary run on older Linux
//! systems. The modules `elf` and `manylinux` check which libraries the binary requires.

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

use crate::failure::{failure, file_error};
use crate::platform::Platform;
use crate::{Options, compiler, libtorch, paths, progress, run};
use elf::Dynamic;
use metadata::Metadata;

/// C++ source with symbols that older systems lack. The portable binary defines these symbols
/// itself.
const PORTABLE_SOURCE: &str = "core/xtask/src/package/portable.cc";

/// Options for building a package.
#[derive(Args)]
pub struct PackageOptions {
    /// Output folder of the package [default: `dist` in cargo's target folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Link against the glibc of this machine instead of glibc 2.28; the package then only runs on
    /// systems with this glibc or a later one
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

    /// Unix permission bits of the file.
    fn mode(&self) -> u32 {
        if self.executable { 0o755 } else { 0o644 }
    }
}

/// A packaged binary with its metadata and licences.
struct Release {
    binary: Vec<u8>,
    /// Oldest glibc minor version that the binary supports: the NN of `manylinux_2_NN`.
    minor: u32,
    metadata: Metadata,
    /// Names and contents of the licence files.
    licences: Vec<(String, Vec<u8>)>,
}

/// Builds the wheel.
pub fn wheel(options: &PackageOptions) -> Result<()> {
    let out = options.out()?;
    let release = Release::build(options)?;
    let sources = read_folder(&paths::checkout().join("python/reprpo"), &["py"])?;
    let readme = read(&paths::checkout().join("README.md"))?;
    let file = out.join(wheel::file_name(&release));
    wheel::write(&file, &wheel::entries(&release, sources, &readme)?)?;
    announce(&file, release.minor)
}

/// Builds the tarball.
pub fn dist(options: &PackageOptions) -> Result<()> {
    let out = options.out()?;
    let release = Release::build(options)?;
    let file = out.join(tarball::file_name(&release));
    tarball::write(&file, &tarball::entries(&release)?)?;
    announce(&file, release.minor)
}

fn announce(file: &Path, minor: u32) -> Result<()> {
    let size = fs::metadata(file).map_err(|e| file_error(file, "read", &e))?.len();
    progress::line(&format!(
        "`{}`: {:.1} MB, for glibc 2.{minor} or later",
        file.display(),
        size as f64 / 1e6
    ));
    Ok(())
}

impl PackageOptions {
    /// Creates the output folder and checks that it is writable. Call this first, because the build
    /// takes minutes.
    fn out(&self) -> Result<PathBuf> {
        let folder = self.out.clone().unwrap_or_else(|| paths::target().join("dist"));
        fs::create_dir_all(&folder).map_err(|e| file_error(&folder, "create", &e))?;
        tempfile::tempfile_in(&folder).map_err(|e| file_error(&folder, "write to", &e))?;
        Ok(folder)
    }
}

impl Release {
    fn build(options: &PackageOptions) -> Result<Self> {
        if Platform::here().ok() != Some(Platform::LinuxX86) {
            bail!(
                "cannot build packages on `{} {}`: only Linux on x86-64 is supported",
                std::env::consts::OS,
                std::env::consts::ARCH
            );
        }
        check_flags(std::env::vars_os().map(|(name, value)| {
            (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
        }))?;
        let libtorch = libtorch::set_up(&options.options)?;
        let compiler = compiler::find()?;
        let target = paths::target();
        fs::create_dir_all(&target).map_err(|e| file_error(&target, "create", &e))?;
        // Use a new folder name each time, so that the linker script in the folder has a new path.
        // This forces cargo to relink without recompiling any crate.
        let work = tempfile::Builder::new()
            .prefix("package-")
            .tempdir_in(&target)
            .map_err(|e| file_error(&target, "write to", &e))?;
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
            let hint = "use `--plain-link` to link against the glibc of this machine; the package \
                then needs this glibc or a later one";
            return Err(if options.plain_link {
                anyhow!("cannot build the binary")
            } else {
                failure("cannot build the binary", hint)
            });
        }

        let binary = fs::read(&packed).map_err(|e| file_error(&packed, "read", &e))?;
        let minor = examine(&binary, !options.plain_link)?;
        let metadata = Metadata::read(&libtorch)?;
        let licences =
            licences::gather(&metadata, portable.as_ref().map(|(zig, _)| zig.as_path()))?;
        Ok(Self { binary, minor, metadata, licences })
    }
}

/// Checks the linked binary, and returns the oldest glibc minor version that it supports.
///
/// # Errors
/// Fails if the RUNPATH is wrong, because the installed binary then does not find libtorch. Also
/// fails if a portable binary needs newer libraries than its target platform has.
fn examine(binary: &[u8], portable: bool) -> Result<u32> {
    let dynamic = Dynamic::read(binary).context("cannot read the linked binary")?;
    ensure!(
        dynamic.runpath.as_deref() == Some(link::RUNPATH) && dynamic.rpath.is_none(),
        "the binary must have the RUNPATH `{}` and no RPATH, but its RUNPATH is `{}` and its \
            RPATH is `{}`",
        link::RUNPATH,
        dynamic.runpath.as_deref().unwrap_or_default(),
        dynamic.rpath.as_deref().unwrap_or_default()
    );
    if portable {
        manylinux::check_at_most(&dynamic, zig::GLIBC).map_err(|e| {
            failure(
                format!("{e:#}"),
                format!(
                    "define these symbols in `{PORTABLE_SOURCE}`, build with an older g++, or add \
                    `--plain-link`"
                ),
            )
        })?;
    }
    manylinux::minor(&dynamic)
}

/// Checks that no environment variable sets compiler flags for a specific CPU, such as
/// `-march=native`. A package must run on every x86-64 CPU.
fn check_flags(variables: impl Iterator<Item = (String, String)>) -> Result<()> {
    let is_flags =
        |name: &str| ["RUSTFLAGS", "CFLAGS", "CXXFLAGS"].iter().any(|flags| name.contains(flags));
    let chooses_cpu = |value: &str| {
        ["target-cpu", "target-feature", "-march", "-mcpu", "-mavx"]
            .iter()
            .any(|flag| value.contains(flag))
    };
    for (name, value) in variables {
        if is_flags(&name) && chooses_cpu(&value) {
            let value = value.replace('\u{1f}', " ");
            return Err(failure(
                format!("`{name}` is set to `{value}`, but a package must run on every x86-64 CPU"),
                format!("run this command with `env -u {name}`"),
            ));
        }
    }
    Ok(())
}

fn compile_portable(compiler: &std::ffi::OsStr, folder: &Path) -> Result<PathBuf> {
    let object = folder.join("portable.o");
    let output = Command::new(compiler)
        .args(["-c", "-O2", "-fPIC", "-std=c++17", "-o"])
        .arg(&object)
        .arg(paths::checkout().join(PORTABLE_SOURCE))
        .output();
    let output = output.with_context(|| format!("cannot run `{}`", compiler.display()))?;
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
    fs::read_to_string(file).map_err(|e| file_error(file, "read", &e))
}

/// Reads the files in `folder` that have one of the extensions. Returns their names and contents,
/// sorted by name.
fn read_folder(folder: &Path, extensions: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| file_error(folder, "read", &e))? {
        let path = entry.map_err(|e| file_error(folder, "read", &e))?.path();
        let wanted = path
            .extension()
            .and_then(|end| end.to_str())
            .is_some_and(|end| extensions.contains(&end));
        if wanted && let Some(name) = path.file_name().and_then(|name| name.to_str()) {
            files.push((
                name.to_owned(),
                fs::read(&path).map_err(|e| file_error(&path, "read", &e))?,
            ));
        }
    }
    // The order of `read_dir` differs between machines.
    files.sort();
    Ok(files)
}

/// Writes a file atomically: a failed write leaves no incomplete file.
fn write_whole(file: &Path, bytes: &[u8]) -> Result<()> {
    let partial =
        file.with_file_name(format!("{}.partial", file.file_name().unwrap_or_default().display()));
    fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, file)).map_err(|e| {
        // A failed write can leave a partial file, for example if the disk is full. Remove it.
        let _ = fs::remove_file(&partial);
        file_error(file, "write", &e)
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A small release for tests.
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
    fn flags_that_choose_a_cpu_are_an_error() {
        let check = |name: &str, value: &str| {
            check_flags(
                [
                    ("PATH".to_owned(), "/opt/-march".to_owned()),
                    (name.to_owned(), value.to_owned()),
                ]
                .into_iter(),
            )
        };
        for (name, value) in [
            ("RUSTFLAGS", "-C target-cpu=native"),
            ("CARGO_ENCODED_RUSTFLAGS", "-C\u{1f}target-cpu=native"),
            ("CXXFLAGS_x86_64_unknown_linux_gnu", "-O3 -march=native"),
        ] {
            let error = check(name, value).unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}`")) && !error.contains('\u{1f}'), "{error}");
        }
        assert!(check("RUSTFLAGS", "-D warnings").is_ok() && check("CXXFLAGS", "-O2").is_ok());
    }

    #[test]
    fn a_failed_write_leaves_no_partial_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.whl");
        fs::create_dir(&file).unwrap();
        let error = write_whole(&file, b"bytes").unwrap_err().to_string();
        assert!(error.starts_with("cannot write `") && error.contains("a.whl`"), "{error}");
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            1,
            "the failed write left a partial file"
        );
        fs::remove_dir(&file).unwrap();
        write_whole(&file, b"bytes").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"bytes");
    }

    #[test]
    fn files_of_a_folder_are_sorted_by_name() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.py", "a.py", "c.pyc"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let names: Vec<String> = read_folder(folder.path(), &["py"])
            .unwrap()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["a.py", "b.py"]);
    }
}
