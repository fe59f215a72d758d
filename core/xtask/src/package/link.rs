//! Implements `cargo xtask link`, which rustc calls instead of `cc` in a package build.
//!
//! The command links two binaries. The ordinary binary is at the path that cargo expects. It uses
//! the libtorch of this machine, so `target/release/reprpo` stays usable. The packaged binary has a
//! RUNPATH that finds libtorch on the user's machine. The RUNPATH is set at link time, because a
//! later change would rearrange the ELF file.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::zig;
use crate::failure::file_error;

/// RUNPATH of the packaged binary: the path from `reprpo/bin` to `torch/lib` in `site-packages`.
pub const RUNPATH: &str = "$ORIGIN/../../torch/lib";

/// The arguments of `cargo xtask link`.
#[derive(Args)]
pub struct Link {
    /// Path of the packaged binary
    #[arg(long)]
    packed: PathBuf,
    /// Path of zig, which links the packaged binary against an older glibc; `cc` is used by default
    #[arg(long, requires = "portable_object")]
    zig: Option<PathBuf>,
    /// Path of the object file of portable.cc
    #[arg(long)]
    portable_object: Option<PathBuf>,
    /// C++ compiler that provides libstdc++, libgcc and libgomp
    #[arg(long, default_value = "c++")]
    compiler: OsString,
    /// The arguments from rustc
    #[arg(last = true)]
    args: Vec<OsString>,
}

/// Settings for linking the packaged binary.
pub struct Plan<'a> {
    pub packed: &'a Path,
    pub compiler: &'a OsStr,
    /// Paths of zig and of the object file compiled from portable.cc. `None` to link with `cc`.
    pub portable: Option<(&'a Path, &'a Path)>,
}

impl Plan<'_> {
    /// Writes a shell script that runs `cargo xtask link`. rustc calls this script as its linker.
    pub fn write_script(&self, script: &Path) -> Result<()> {
        let this = std::env::current_exe().context("cannot find the path of this program")?;
        let mut words: Vec<OsString> = vec![
            this.into(),
            "link".into(),
            "--packed".into(),
            self.packed.into(),
            "--compiler".into(),
            self.compiler.into(),
        ];
        if let Some((zig, object)) = self.portable {
            words.extend(["--zig".into(), zig.into(), "--portable-object".into(), object.into()]);
        }
        let words: Vec<String> = words
            .iter()
            .map(|word| {
                Ok(quote(
                    word.to_str().with_context(|| format!("`{}` is not UTF-8", word.display()))?,
                ))
            })
            .collect::<Result<_>>()?;
        fs::write(script, format!("#!/bin/sh\nexec {} -- \"$@\"\n", words.join(" ")))
            .map_err(|e| file_error(script, "write", &e))?;
        fs::set_permissions(script, fs::Permissions::from_mode(0o755))
            .map_err(|e| file_error(script, "write", &e))
    }
}

/// Quotes a word for the shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Links the ordinary and the packaged binary.
pub fn run(link: &Link) -> Result<ExitCode> {
    if link.args.iter().any(|arg| arg.as_encoded_bytes().starts_with(b"@")) {
        bail!("`cargo xtask link` does not support response files, but rustc passed one (`@FILE`)");
    }
    if !Command::new("cc").args(&link.args).status().context("cannot run `cc`")?.success() {
        return Ok(ExitCode::FAILURE);
    }
    let (mut command, libraries) = match (&link.zig, &link.portable_object) {
        (Some(zig), Some(object)) => {
            let mut command = Command::new(zig);
            command
                .args(["cc", "-target", zig::TARGET])
                .arg(object)
                .args(zig::FLAGS)
                .envs(zig::environment(zig));
            (command, Some(Libraries::of(&link.compiler)?))
        }
        _ => (Command::new("cc"), None),
    };
    command.args(packed_arguments(&link.args, &link.packed, libraries.as_ref()));
    let status = command
        .status()
        .with_context(|| format!("cannot run `{}`", command.get_program().display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Maps linker flags such as `-lstdc++` to the paths of the C++ compiler's libraries.
///
/// For `-lstdc++` and `-lgcc_s`, zig would use its own libc++ and its own unwinder. Exceptions
/// could then not pass between libtorch and the binary. To prevent this, zig gets the paths of the
/// compiler's libraries instead of the flags. zig also gets the path of libgomp, because zig does
/// not include libgomp.
struct Libraries(Vec<(&'static str, Vec<PathBuf>)>);

impl Libraries {
    /// Each flag with the library files that replace it. `libgcc.a` is needed for
    /// `__builtin_cpu_supports`.
    const FILES: [(&'static str, &'static [&'static str]); 3] = [
        ("-lstdc++", &["libstdc++.so"]),
        ("-lgcc_s", &["libgcc_s.so.1", "libgcc.a"]),
        ("-lgomp", &["libgomp.so"]),
    ];

    fn of(compiler: &OsStr) -> Result<Self> {
        let find = |name: &&str| {
            let output = Command::new(compiler).arg(format!("-print-file-name={name}")).output()?;
            let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
            // If the compiler does not find the library, it prints the name unchanged.
            if !path.is_absolute() {
                bail!(
                    "`{}` does not provide `{name}`, which is required to link a portable binary",
                    compiler.display()
                );
            }
            Ok(path)
        };
        let paths = Self::FILES
            .iter()
            .map(|(flag, names)| Ok((*flag, names.iter().map(find).collect::<Result<_>>()?)));
        paths.collect::<Result<_>>().map(Self)
    }

    fn paths(&self, flag: &str) -> Option<&[PathBuf]> {
        self.0.iter().find(|(name, _)| *name == flag).map(|(_, paths)| paths.as_slice())
    }
}

/// Converts rustc's linker arguments to arguments for the packaged binary. The result is for zig if
/// `libraries` is set, and for `cc` otherwise.
fn packed_arguments(
    args: &[OsString],
    packed: &Path,
    libraries: Option<&Libraries>,
) -> Vec<OsString> {
    let mut out: Vec<OsString> = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let text = arg.to_str().unwrap_or_default();
        if text == "-o" {
            args.next();
            out.extend(["-o".into(), packed.into()]);
        } else if text.starts_with("-Wl,-rpath,") || text.starts_with("-Wl,-rpath=") {
            // Drop this path, which only exists on the build machine. The new RUNPATH is added
            // below.
        } else if let Some(libraries) = libraries {
            // Drop flags that choose a linker: zig always uses its own.
            let chooses_linker =
                text == "-m64" || text.starts_with("-fuse-ld=") || text.starts_with("-B/");
            match libraries.paths(text) {
                Some(paths) => out.extend(paths.iter().map(Into::into)),
                None if chooses_linker => {}
                None => out.push(arg.clone()),
            }
        } else {
            out.push(arg.clone());
        }
    }
    out.push(format!("-Wl,--enable-new-dtags,-rpath,{RUNPATH}").into());
    out.push("-Wl,--strip-all".into());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM_RUSTC: [&str; 12] = [
        "-m64",
        "main.o",
        "liba.rlib",
        "-Wl,-Bdynamic",
        "-lstdc++",
        "-ltorch_cpu",
        "-lgcc_s",
        "-fuse-ld=lld",
        "-Wl,-rpath,/machine/libtorch/lib",
        "-Wl,-z,relro,-z,now",
        "-o",
        "target/release/deps/reprpo",
    ];

    fn arguments(libraries: Option<&Libraries>) -> Vec<String> {
        let args = FROM_RUSTC.map(OsString::from);
        packed_arguments(&args, Path::new("packed/reprpo"), libraries)
            .into_iter()
            .map(|arg| arg.into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_plain_link_changes_the_output_path_and_the_path_of_libtorch() {
        let kept = [
            "-m64",
            "main.o",
            "liba.rlib",
            "-Wl,-Bdynamic",
            "-lstdc++",
            "-ltorch_cpu",
            "-lgcc_s",
            "-fuse-ld=lld",
            "-Wl,-z,relro,-z,now",
        ];
        let added = [
            "-o",
            "packed/reprpo",
            "-Wl,--enable-new-dtags,-rpath,$ORIGIN/../../torch/lib",
            "-Wl,--strip-all",
        ];
        assert_eq!(arguments(None), [&kept[..], &added].concat());
    }

    #[test]
    fn a_portable_link_replaces_the_compilers_libraries_by_their_paths() {
        let libraries = Libraries(vec![
            ("-lstdc++", vec!["/gcc/libstdc++.so".into()]),
            ("-lgcc_s", vec!["/gcc/libgcc_s.so.1".into(), "/gcc/libgcc.a".into()]),
        ]);
        let kept = [
            "main.o",
            "liba.rlib",
            "-Wl,-Bdynamic",
            "/gcc/libstdc++.so",
            "-ltorch_cpu",
            "/gcc/libgcc_s.so.1",
            "/gcc/libgcc.a",
            "-Wl,-z,relro,-z,now",
        ];
        let added = [
            "-o",
            "packed/reprpo",
            "-Wl,--enable-new-dtags,-rpath,$ORIGIN/../../torch/lib",
            "-Wl,--strip-all",
        ];
        assert_eq!(arguments(Some(&libraries)), [&kept[..], &added].concat());
    }

    #[test]
    fn words_of_the_script_are_quoted() {
        assert_eq!(quote("/a b/it's"), r"'/a b/it'\''s'");
    }
}
