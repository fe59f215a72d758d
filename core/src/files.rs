//! Files that appear whole or not at all, and files that are read whole where they are not too
//! large.

use std::fs::File;
use std::path::Path;

use serde_json::Value;

use crate::error::{Context, Error, Result, quoted};

/// Of a JSON file. The index of Llama 3.1 405B has a fortieth of it.
const MOST_JSON: u64 = 1 << 22;

/// As a digest is written: two lowercase hexadecimal digits a byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Writes `bytes` to a temporary file beside `path`, and renames it.
///
/// # Errors
/// Where the folder is missing, not writable, or full.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    write_beside(path, |temporary| std::fs::write(temporary, bytes))
}

/// Makes a temporary file beside `path`, lets `write` fill it or put another in its place, and
/// renames it.
///
/// # Errors
/// Where the folder is missing, not writable, or full, and what `write` says.
pub(crate) fn write_beside<E: std::error::Error + Send + Sync + 'static>(
    path: &Path,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<()> {
    let within = || format!("cannot write `{}`", path.display());
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = tempfile::NamedTempFile::new_in(dir).within(within)?.into_temp_path();
    write(&temporary).map_err(|e| Error::new(within()).because(e))?;
    let file = File::options().write(true).open(&temporary).within(within)?;
    // A temporary file is for its owner alone; what it becomes is like any other file of the run.
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644)).within(within)?;
    file.sync_all().within(within)?;
    temporary.persist(path).map_err(|e| e.error).within(within)
}

/// What a JSON file says that a model comes with: its configuration, an index, a special token or
/// two.
///
/// # Errors
/// Where it cannot be read, is larger than any of its kind, or is no JSON.
pub fn read_json(path: &Path) -> Result<Value> {
    let bytes = read_bounded(path, MOST_JSON)?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::new(format!("`{}` is no valid JSON", path.display())).because(e))
}

/// The bytes of a plain file, of which there may be `most`.
///
/// # Errors
/// Where it cannot be read, is no plain file, or is larger.
pub fn read_bounded(path: &Path, most: u64) -> Result<Vec<u8>> {
    let within = || format!("cannot read `{}`", path.display());
    // Asked before it is opened: opening a named pipe would wait for somebody to write into it.
    let about = std::fs::metadata(path).within(within)?;
    if !about.is_file() {
        return Err(Error::new(format!("`{}` is not a file", path.display())));
    }
    if about.len() > most {
        return Err(Error::new(format!(
            "`{}` has {} bytes, more than any file of its kind",
            path.display(),
            about.len()
        ))
        .hint(format!("valid: up to {most}")));
    }
    let bytes = std::fs::read(path).within(within)?;
    if is_lfs_pointer(&bytes) {
        return Err(lfs_pointer(path));
    }
    Ok(bytes)
}

/// True if these are the lines that Git LFS leaves in place of a large file before it is fetched.
pub fn is_lfs_pointer(bytes: &[u8]) -> bool {
    let first = &bytes[..bytes.len().min(LONGEST_POINTER)];
    first.starts_with(b"version https://") && first.windows(OID.len()).any(|part| part == OID)
}

/// The error for a file that is a Git LFS pointer.
pub fn lfs_pointer(path: &Path) -> Error {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Error::new(format!("`{}` is a Git LFS pointer, not the file itself", path.display()))
        .hint(format!("fetch the file itself: `git -C {} lfs pull`", quoted(folder)))
}

/// A Git LFS pointer has fewer bytes than this.
const LONGEST_POINTER: usize = 1024;
const OID: &[u8] = b"\noid sha256:";
