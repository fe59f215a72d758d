//! Installs zig, which can link against any version of glibc. It is only used as a linker.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use reprpo_downloads::{clear, fetch, lock, unpack};

use crate::failure::at;
use crate::{Options, paths, pins, progress};

/// The N of glibc 2.N, the oldest version on which the portable binary runs. torch's wheels need
/// the same version.
pub const GLIBC: u32 = 28;

/// zig's name for the platform with this glibc.
pub const TARGET: &str = "x86_64-linux-gnu.2.28";

/// Flags of every link.
///
/// The libstdc++ of the build machine can need a newer glibc than the binary. The binary will run
/// with another libstdc++, so the linker must not check the symbols that the first one needs.
pub const FLAGS: [&str; 2] = ["-Wl,--allow-shlib-undefined", "-fno-sanitize=all"];

/// Name of a file that is written last into zig's folder. It marks the folder as complete.
const STAMP: &str = ".complete";

/// The environment variables for zig, which set its own caches to a folder next to the program.
pub fn environment(zig: &Path) -> [(&'static str, PathBuf); 2] {
    let cache = zig.with_file_name("cache");
    [("ZIG_GLOBAL_CACHE_DIR", cache.clone()), ("ZIG_LOCAL_CACHE_DIR", cache)]
}

/// Installs zig in the cache, unless it is there already. Returns the path of the program.
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
