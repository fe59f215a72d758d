//! The marks in a run's folder: its lock, its end, and files that were being written.

use std::fs::File;
use std::path::Path;

use crate::error::{Error, Result};

/// Locks the log of the run in `folder` for this process, until the file is closed; `None` if the
/// log cannot be opened.
///
/// # Errors
/// Fails if another process has locked it.
pub fn lock(folder: &Path) -> Result<Option<File>> {
    let Ok(log) = File::options().append(true).open(folder.join("log.txt")) else {
        return Ok(None);
    };
    lock_file(&log, folder)?;
    Ok(Some(log))
}

/// Locks an open log, as [`lock`] does.
pub fn lock_file(log: &File, folder: &Path) -> Result<()> {
    match log.try_lock() {
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(Error::new(format!("another process is writing into `{}`", folder.display()))
                .hint("wait for it, or give another `--out`"))
        }
        // Some file systems have no locks.
        Err(std::fs::TryLockError::Error(_)) | Ok(()) => Ok(()),
    }
}

/// True if the training of the run in `folder` is over: the configuration of its adapter is written
/// last.
pub fn trained(folder: &Path) -> bool {
    folder.join("adapter").join("adapter_config.json").is_file()
}

/// True for the name of a temporary file. One that is left over was being written when its process
/// was killed.
pub fn is_temporary(name: &str) -> bool {
    name.starts_with(".tmp")
}
