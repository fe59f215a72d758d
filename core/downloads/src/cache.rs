//! Locks the cache, and removes files that an interrupted download left behind.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::Path;

use crate::{Failure, Report, Result};

/// A lock that keeps other processes from changing the cache. Dropping it releases the lock, and so
/// does the end of the process. The lock has no effect on file systems that do not support locks,
/// as on some clusters.
pub struct Lock {
    _file: File,
}

/// Locks the cache, and waits if another process holds the lock.
///
/// # Errors
/// Fails if the lock file cannot be created.
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
        Err(TryLockError::Error(_)) => {
            report.line(&format!(
                "the file system of `{}` does not support locks: do not run this command twice at \
                the same time",
                cache.display()
            ));
        }
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
    use std::time::Duration;

    use super::*;
    use crate::report::tests::Recorder;

    #[test]
    fn a_dropped_lock_can_be_taken_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut report = Recorder::default();
        drop(lock(folder.path(), &mut report).unwrap());
        let held = lock(folder.path(), &mut report).unwrap();
        let other = File::create(folder.path().join(".lock")).unwrap();
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        drop(held);
        // A process that another test is just starting may briefly hold a copy of the lock.
        let is_free = (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            other.try_lock().is_ok()
        });
        assert!(is_free);
    }
}
