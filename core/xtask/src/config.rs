//! Reads and writes `.cargo/libtorch.toml`, which contains the path of libtorch. The checkout's
//! `.cargo/config.toml` includes this file.
//!
//! The file sets the environment variable `LIBTORCH` for build scripts, so a plain `cargo build`
//! works without an exported variable. Cargo reruns the build scripts when the path changes. Cargo
//! also sets the variable when it runs `cargo xtask`, so this program cannot assume that the user
//! exported it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};

use crate::failure::at;

const BEFORE: &str = "LIBTORCH = { value = \"";
const AFTER: &str = "\", relative = false }";

/// The libtorch configuration of a checkout.
pub struct Config {
    file: PathBuf,
    placeholder: PathBuf,
}

impl Config {
    pub fn of(checkout: &Path) -> Self {
        let folder = checkout.join(".cargo");
        Self { file: folder.join("libtorch.toml"), placeholder: folder.join("no-libtorch") }
    }

    /// Returns the recorded path of libtorch, if there is one.
    pub fn read(&self) -> Option<PathBuf> {
        let text = fs::read_to_string(&self.file).ok()?;
        let value = text.lines().find_map(|line| line.strip_prefix(BEFORE)?.strip_suffix(AFTER))?;
        Some(value.replace("\\\"", "\"").replace("\\\\", "\\").into())
    }

    /// Records `root` as the path of libtorch.
    pub fn write(&self, root: &Path) -> Result<()> {
        // Do not touch the file if the path is unchanged: cargo would rebuild everything.
        if self.read().as_deref() == Some(root) {
            return Ok(());
        }
        let path = root.to_str().ok_or_else(|| {
            anyhow!("cannot use libtorch in `{}`: the path is not UTF-8", root.display())
        })?;
        let value = path.replace('\\', "\\\\").replace('"', "\\\"");
        let text = format!("# Written by `cargo xtask setup`.\n[env]\n{BEFORE}{value}{AFTER}\n");
        let partial = self.file.with_extension("partial");
        fs::write(&partial, text).map_err(|e| at(&partial, "write", e))?;
        fs::rename(&partial, &self.file).map_err(|e| at(&self.file, "write", e))
    }

    /// Returns the value of `LIBTORCH` if the user exported it, and `None` if cargo set it from
    /// this file.
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
    fn a_written_path_is_read_again() {
        let (_folder, config) = checkout();
        assert_eq!(config.read(), None);
        for path in ["/a/libtorch", r#"/odd "name"\here"#] {
            config.write(Path::new(path)).unwrap();
            assert_eq!(config.read(), Some(path.into()));
        }
    }

    #[test]
    fn writing_the_same_path_does_not_change_the_file() {
        let (_folder, config) = checkout();
        config.write(Path::new("/a")).unwrap();
        let before = fs::metadata(&config.file).unwrap().modified().unwrap();
        config.write(Path::new("/a")).unwrap();
        assert_eq!(fs::metadata(&config.file).unwrap().modified().unwrap(), before);
    }

    #[test]
    fn only_a_value_that_cargo_did_not_set_counts_as_exported() {
        let (folder, config) = checkout();
        config.write(Path::new("/cache/libtorch")).unwrap();
        assert_eq!(config.exported(None), None);
        assert_eq!(config.exported(Some("".into())), None);
        assert_eq!(config.exported(Some("/cache/libtorch".into())), None);
        assert_eq!(config.exported(Some(folder.path().join(".cargo/no-libtorch"))), None);
        assert_eq!(config.exported(Some("/opt/libtorch".into())), Some("/opt/libtorch".into()));
    }
}
