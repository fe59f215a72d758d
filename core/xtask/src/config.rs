//! How cargo learns where libtorch lies: `.cargo/libtorch.toml`, which the checkout's
//! `.cargo/config.toml` includes.
//!
//! Cargo hands `[env]` to the build scripts, and reruns them when the path changes; with that,
//! plain `cargo build` needs no exported variable. It hands the same to `cargo xtask`, so a
//! `LIBTORCH` that we see need not be the user's own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};

use crate::failure::at;

const BEFORE: &str = "LIBTORCH = { value = \"";
const AFTER: &str = "\", relative = false }";

/// The `LIBTORCH` of one checkout.
pub struct Config {
    file: PathBuf,
    placeholder: PathBuf,
}

impl Config {
    pub fn of(checkout: &Path) -> Self {
        let folder = checkout.join(".cargo");
        Self { file: folder.join("libtorch.toml"), placeholder: folder.join("no-libtorch") }
    }

    /// The libtorch that was settled on, if any was.
    pub fn read(&self) -> Option<PathBuf> {
        let text = fs::read_to_string(&self.file).ok()?;
        let value = text.lines().find_map(|line| line.strip_prefix(BEFORE)?.strip_suffix(AFTER))?;
        Some(value.replace("\\\"", "\"").replace("\\\\", "\\").into())
    }

    /// Settles on the libtorch in `root`.
    pub fn write(&self, root: &Path) -> Result<()> {
        // Unchanged it keeps its time, so that nothing is built again.
        if self.read().as_deref() == Some(root) {
            return Ok(());
        }
        let path = root.to_str().ok_or_else(|| {
            anyhow!("cargo cannot be told of `{}`, which is not UTF-8", root.display())
        })?;
        let value = path.replace('\\', "\\\\").replace('"', "\\\"");
        let text = format!("# Written by `cargo xtask setup`.\n[env]\n{BEFORE}{value}{AFTER}\n");
        let partial = self.file.with_extension("partial");
        fs::write(&partial, text).map_err(|e| at(&partial, "write", e))?;
        fs::rename(&partial, &self.file).map_err(|e| at(&self.file, "write", e))
    }

    /// The user's own `LIBTORCH`, told from the one that cargo took from this file.
    pub fn exported(&self, variable: Option<PathBuf>) -> Option<PathBuf> {
        let value = variable.filter(|path| !path.as_os_str().is_empty())?;
        (value != self.placeholder && Some(&value) != self.read().as_ref()).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkout() -> (tempfile::TempDir, Config) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(".cargo")).unwrap();
        let config = Config::of(folder.path());
        (folder, config)
    }

    #[test]
    fn what_is_written_is_read() {
        let (_folder, config) = checkout();
        assert_eq!(config.read(), None);
        for path in ["/a/libtorch", r#"/odd "name"\here"#] {
            config.write(Path::new(path)).unwrap();
            assert_eq!(config.read(), Some(path.into()));
        }
    }

    #[test]
    fn writing_the_same_leaves_the_file_alone() {
        let (_folder, config) = checkout();
        config.write(Path::new("/a")).unwrap();
        let before = fs::metadata(&config.file).unwrap().modified().unwrap();
        config.write(Path::new("/a")).unwrap();
        assert_eq!(fs::metadata(&config.file).unwrap().modified().unwrap(), before);
    }

    #[test]
    fn only_a_value_that_cargo_did_not_set_is_the_users() {
        let (folder, config) = checkout();
        config.write(Path::new("/cache/libtorch")).unwrap();
        assert_eq!(config.exported(None), None);
        assert_eq!(config.exported(Some("".into())), None);
        assert_eq!(config.exported(Some("/cache/libtorch".into())), None);
        assert_eq!(config.exported(Some(folder.path().join(".cargo/no-libtorch"))), None);
        assert_eq!(config.exported(Some("/opt/libtorch".into())), Some("/opt/libtorch".into()));
    }
}
