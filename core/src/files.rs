//! Files that appear whole or not at all.

use std::io::Write;
use std::path::Path;

use crate::error::{Context, Error, Result};

/// Writes `bytes` to a temporary file beside `path`, and renames it.
///
/// # Errors
/// Where the folder is missing, not writable, or full.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let within = || format!("cannot write `{}`", path.display());
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir).within(within)?;
    file.write_all(bytes).within(within)?;
    file.as_file().sync_all().within(within)?;
    // A temporary file is for its owner alone; what it becomes is like any other file of the run.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).within(within)?;
    }
    file.persist(path).map_err(|e| Error::new(within()).because(e.error))?;
    Ok(())
}
