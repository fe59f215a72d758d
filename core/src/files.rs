//! Writes files atomically, and reads files up to a maximum size.

use std::fs::File;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Context, Error, Result, quoted};

/// Reads a JSON file that this program wrote. Returns `None` if there is no such file.
///
/// # Errors
/// Fails if the file cannot be read. If it does not have the expected format, the message is the
/// file and `complaint`.
pub fn read_record<T: DeserializeOwned>(path: &Path, complaint: &str) -> Result<Option<T>> {
    if !path.is_file() {
        return Ok(None);
    }
    let text =
        std::fs::read_to_string(path).within(|| format!("cannot read `{}`", path.display()))?;
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|e| Error::new(format!("`{}` {complaint}", path.display())).because(e))
}

/// Maximum size of a JSON file in bytes. The weight index of Llama 3.1 405B is about 40 times
/// smaller.
const MOST_JSON: u64 = 1 << 22;

/// Formats bytes as lowercase hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Writes `bytes` to a temporary file in the folder of `path`, and renames it to `path`.
///
/// # Errors
/// Fails if the folder is missing or not writable, or if the disk is full.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    write_beside(path, |temporary| std::fs::write(temporary, bytes))
}

/// Creates a temporary file in the folder of `path`, calls `write` to fill or replace it, and
/// renames it to `path`.
///
/// # Errors
/// Fails if the folder is missing or not writable, if the disk is full, or if `write` fails.
pub(crate) fn write_beside<E: std::error::Error + Send + Sync + 'static>(
    path: &Path,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<()> {
    replace(path, true, write)
}

/// Writes a file as [`write_beside`] does, but does not wait until the disk has stored it. After a
/// power failure, the file may be incomplete, so its reader must check its content.
///
/// # Errors
/// Fails in the same cases as [`write_beside`].
pub(crate) fn write_unsynced<E: std::error::Error + Send + Sync + 'static>(
    path: &Path,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<()> {
    replace(path, false, write)
}

fn replace<E: std::error::Error + Send + Sync + 'static>(
    path: &Path,
    sync: bool,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<()> {
    let within = || format!("cannot write `{}`", path.display());
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = tempfile::NamedTempFile::new_in(dir).within(within)?.into_temp_path();
    write(&temporary).map_err(|e| Error::new(within()).because(e))?;
    let file = File::options().write(true).open(&temporary).within(within)?;
    // Only the owner can read a temporary file. Give the final file the usual permissions.
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644)).within(within)?;
    if sync {
        file.sync_all().within(within)?;
    }
    temporary.persist(path).map_err(|e| e.error).within(within)
}

/// Reads a JSON file from a model folder, such as config.json or the weight index.
///
/// # Errors
/// Fails if the file cannot be read, is larger than 4 MiB, or is not valid JSON.
pub fn read_json(path: &Path) -> Result<Value> {
    let bytes = read_bounded(path, MOST_JSON)?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::new(format!("`{}` is not valid JSON", path.display())).because(e))
}

/// Reads a regular file of at most `most` bytes.
///
/// # Errors
/// Fails if the file cannot be read, is not a regular file, has more than `most` bytes, or is a Git
/// LFS pointer.
pub fn read_bounded(path: &Path, most: u64) -> Result<Vec<u8>> {
    let within = || format!("cannot read `{}`", path.display());
    // Check the file type before opening the file, because opening a named pipe would block until
    // there is a writer.
    let about = std::fs::metadata(path).within(within)?;
    if !about.is_file() {
        return Err(Error::new(format!("`{}` is not a file", path.display())));
    }
    if about.len() > most {
        return Err(Error::new(format!(
            "`{}` is too large ({} bytes)",
            path.display(),
            about.len()
        ))
        .hint(format!("valid: up to {most} bytes")));
    }
    let bytes = std::fs::read(path).within(within)?;
    if is_lfs_pointer(&bytes) {
        return Err(lfs_pointer(path));
    }
    Ok(bytes)
}

/// True if `bytes` are a Git LFS pointer, the placeholder for a large file that was not fetched.
pub fn is_lfs_pointer(bytes: &[u8]) -> bool {
    let first = &bytes[..bytes.len().min(LONGEST_POINTER)];
    first.starts_with(b"version https://") && first.windows(OID.len()).any(|part| part == OID)
}

/// Creates the error for a file that is only a Git LFS pointer.
pub fn lfs_pointer(path: &Path) -> Error {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Error::new(format!("`{}` is a Git LFS pointer, not the file itself", path.display()))
        .hint(format!("fetch the file itself: `git -C {} lfs pull`", quoted(folder)))
}

/// Maximum size of a Git LFS pointer, in bytes.
const LONGEST_POINTER: usize = 1024;
const OID: &[u8] = b"\noid sha256:";
