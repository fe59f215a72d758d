//! Checks on the files in a run's folder: whether another process has locked the run, whether
//! training is complete, and which files are temporary.

use std::fs::File;
use std::path::Path;

use crate::error::{Error, Result};

/// Locks the log of the run in `folder`. Closing the returned file releases the lock. Returns
/// `None` if the log cannot be opened.
///
/// # Errors
/// Fails if another process holds the lock.
pub fn lock(folder: &Path) -> Result<Option<File>> {
    let Ok(log) = File::options().append(true).open(folder.join("log.txt")) else {
        return Ok(None);
    };
    lock_file(&log, folder)?;
    Ok(Some(log))
}

/// Locks an open log, as [`lock`] does.
///
/// # Errors
/// Fails if another process holds the lock.
pub fn lock_file(log: &File, folder: &Path) -> Result<()> {
    match log.try_lock() {
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(Error::new(format!("another process is writing to `{}`", folder.display()))
                .hint("wait for it to finish, or choose a different `--out`"))
        }
        // Some file systems do not support locks.
        Err(std::fs::TryLockError::Error(_)) | Ok(()) => Ok(()),
    }
}

/// True if the run in `folder` has finished training. The configuration of the adapter is the last
/// file that training writes.
pub fn trained(folder: &Path) -> bool {
    folder.join("adapter").join("adapter_config.json").is_file()
}

/// True if `name` is the name of a temporary file. Such files are left behind if the process is
/// killed during a write.
pub fn is_temporary(name: &str) -> bool {
    name.starts_with(".tmp")
}
