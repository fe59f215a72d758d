//! Where things lie: the checkout, the cache and its lock.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::failure::{at, failure};
use crate::progress;

/// The root of the checkout.
pub fn checkout() -> PathBuf {
    // Cargo says it at run time; what was compiled in is wrong after the checkout has moved.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.ancestors().nth(2).expect("xtask lies two folders deep").to_owned()
}

/// The folder of cargo's builds.
pub fn target() -> PathBuf {
    checkout().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// The folder that holds libtorch and the models of every checkout of this user.
pub fn cache() -> Result<PathBuf> {
    let folder = cache_from(|name| std::env::var_os(name))
        .ok_or_else(|| failure("there is no place for the cache, as `HOME` is not set", "export `REPRPO_CACHE` with a folder that you may write to"))?;
    fs::create_dir_all(&folder).map_err(|e| at(&folder, "create", e))?;
    std::path::absolute(&folder).map_err(|e| at(&folder, "find", e))
}

fn cache_from(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("REPRPO_CACHE").or_else(|| Some(folder("XDG_CACHE_HOME")?.join("reprpo"))).or_else(|| Some(folder("HOME")?.join(".cache/reprpo")))
}

/// Holds off other set-ups in this cache until it is dropped; the system drops it with the process.
pub struct Lock {
    _file: File,
}

/// Waits for the right to change the cache.
pub fn lock(cache: &Path) -> Result<Lock> {
    let path = cache.join(".lock");
    let file = File::create(&path).map_err(|e| at(&path, "create", e))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            progress::line("another set-up is at work in this cache, waiting for it");
            file.lock().map_err(|e| at(&path, "lock", e))?;
        }
        Err(TryLockError::Error(e)) => return Err(at(&path, "lock", e)),
    }
    Ok(Lock { _file: file })
}

/// Removes what an interrupted run may have left at `path`.
pub fn clear(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(at(path, "remove", e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache_with(set: &[(&str, &str)]) -> Option<PathBuf> {
        cache_from(|name| set.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn the_cache_is_the_first_folder_that_is_named() {
        assert_eq!(cache_with(&[("HOME", "/h")]), Some("/h/.cache/reprpo".into()));
        assert_eq!(cache_with(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Some("/x/reprpo".into()));
        assert_eq!(cache_with(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("REPRPO_CACHE", "/r")]), Some("/r".into()));
        assert_eq!(cache_with(&[("HOME", "/h"), ("REPRPO_CACHE", "")]), Some("/h/.cache/reprpo".into()));
        assert_eq!(cache_with(&[]), None);
    }

    #[test]
    fn a_lock_is_free_again_when_dropped() {
        let folder = tempfile::tempdir().unwrap();
        drop(lock(folder.path()).unwrap());
        let held = lock(folder.path()).unwrap();
        let other = File::create(folder.path().join(".lock")).unwrap();
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        drop(held);
        assert!(other.try_lock().is_ok());
    }
}
