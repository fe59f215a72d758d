//! Installs zig, which can link against any version of glibc. It is only used as a linker.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use reprpo_downloads::{clear, fetch, lock, unpack};

use crate::failure::at;
use crate::{Options, paths, pins, progress};

/// Minor version of the oldest glibc that the portable binary supports. torch's wheels also require
/// glibc 2.28.
pub const GLIBC: u32 = 28;

/// zig target triple with the glibc version.
pub const TARGET: &str = "x86_64-linux-gnu.2.28";

/// Flags for linking with zig.
///
/// `--allow-shlib-undefined` makes the linker ignore undefined symbols in shared libraries. The
/// libstdc++ of the build machine may need a newer glibc than the target platform has. The binary
/// does not use this libstdc++, but the one on the user's machine.
pub const FLAGS: [&str; 2] = ["-Wl,--allow-shlib-undefined", "-fno-sanitize=all"];

/// Name of the file that marks the zig folder as complete. It is written last.
const STAMP: &str = ".complete";

/// Returns the environment variables that put zig's caches in a folder next to the zig executable.
pub fn environment(zig: &Path) -> [(&'static str, PathBuf); 2] {
    let cache = zig.with_file_name("cache");
    [("ZIG_GLOBAL_CACHE_DIR", cache.clone()), ("ZIG_LOCAL_CACHE_DIR", cache)]
}

/// Installs zig in the cache, unless it is already there. Returns the path of the zig executable.
pub fn set_up(options: &Options) -> Result<PathBuf> {
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
                bail!("`{}` contains none of the expected files", file.display());
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
    fn the_target_has_the_same_glibc() {
        assert!(TARGET.ends_with(&format!(".2.{GLIBC}")));
    }
}
