//! zig, whose C compiler links against the glibc that one names. It compiles nothing of this
//! project.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use reprpo_downloads::{clear, fetch, lock, unpack};

use crate::failure::{at, failure};
use crate::platform::Platform;
use crate::{Options, paths, pins, progress};

/// The oldest glibc on which the portable binary runs, as the N of 2.N: that of torch's own wheels.
pub const GLIBC: u32 = 28;

/// The same for zig.
pub const TARGET: &str = "x86_64-linux-gnu.2.28";

/// Flags of every link.
///
/// libstdc++ of the build machine needs a newer glibc than the binary does. It is not the libstdc++
/// that the binary will run with, so the linker must not look for the symbols that it needs.
pub const FLAGS: [&str; 2] = ["-Wl,--allow-shlib-undefined", "-fno-sanitize=all"];

/// Written last into zig's folder.
const STAMP: &str = ".complete";

/// The variables with which zig runs: what it builds is kept beside it.
pub fn environment(zig: &Path) -> [(&'static str, PathBuf); 2] {
    let cache = zig.with_file_name("cache");
    [("ZIG_GLOBAL_CACHE_DIR", cache.clone()), ("ZIG_LOCAL_CACHE_DIR", cache)]
}

/// Puts zig into the cache unless it is there. Returns the program.
pub fn set_up(options: &Options) -> Result<PathBuf> {
    if Platform::here()? != Platform::LinuxX86 {
        return Err(failure("the portable link is made for Linux on x86-64", "add `--plain-link`"));
    }
    let cache = paths::cache()?;
    let wheel = pins::ZIG;
    let name = wheel.requirement().replace("ziglang==", "zig-");
    let folder = cache.join(&name);
    let mut report = progress::Terminal::default();
    let _lock = lock(&cache, &mut report)?;
    if !folder.join(STAMP).is_file() {
        progress::line(&format!("{name}: setting up in `{}`", folder.display()));
        let partial = cache.join(format!("{name}.partial"));
        clear(&partial)?;
        let files = fetch(&[wheel], &cache.join("downloads"), &mut report)?;
        for file in &files {
            if unpack(
                file,
                &partial,
                |name| Some(name.strip_prefix("ziglang/")?.into()),
                &mut report,
            )? == 0
            {
                bail!("`{}` holds none of the files that were expected", file.display());
            }
        }
        let program = partial.join("zig");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
            .map_err(|e| at(&program, "change", e))?;
        fs::write(partial.join(STAMP), format!("{name}\n"))
            .map_err(|e| at(&partial, "write to", e))?;
        clear(&folder)?;
        fs::rename(&partial, &folder).map_err(|e| at(&folder, "create", e))?;
        if !options.keep_downloads {
            files.iter().try_for_each(|file| clear(file))?;
        }
    }
    Ok(folder.join("zig"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_names_the_same_glibc() {
        assert!(TARGET.ends_with(&format!(".2.{GLIBC}")));
    }
}
