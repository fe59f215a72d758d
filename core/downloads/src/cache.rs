//! The lock of the cache, and removal of files that an interrupted download has left.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::Path;

use crate::{Failure, Report, Result};

/// Keeps other processes from changing the cache until it is dropped. The system also releases it
/// when the process ends.
pub struct Lock {
    _file: File,
}

/// Locks the cache, and waits if another process holds the lock.
///
/// # Errors
/// Fails if the lock file cannot be created, or if the file system has no locks.
pub fn lock(cache: &Path, report: &mut dyn Report) -> Result<Lock> {
    let path = cache.join(".lock");
    let file = File::create(&path).map_err(|e| Failure::at(&path, "create", &e))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            report
                .line(&format!("waiting for another process that writes to `{}`", cache.display()));
            file.lock().map_err(|e| Failure::at(&path, "lock", &e))?;
        }
        Err(TryLockError::Error(e)) => return Err(Failure::at(&path, "lock", &e)),
    }
    Ok(Lock { _file: file })
}

/// Removes the file or folder at `path`, if there is one.
///
/// # Errors
/// Fails if it cannot be removed.
pub fn clear(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Failure::at(path, "remove", &e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::Kept;

    #[test]
    fn a_lock_is_free_again_when_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let mut report = Kept::default();
        drop(lock(folder.path(), &mut report).unwrap());
        let held = lock(folder.path(), &mut report).unwrap();
        let other = File::create(folder.path().join(".lock")).unwrap();
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        drop(held);
        assert!(other.try_lock().is_ok() && report.lines.is_empty());
    }
}
