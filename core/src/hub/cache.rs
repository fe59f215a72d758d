//! Folders for downloaded files.

use std::env;
use std::path::PathBuf;

/// The folder for downloaded files: `$REPRPO_CACHE`, else `$XDG_CACHE_HOME/reprpo`, else
/// `~/.cache/reprpo`.
pub fn cache_dir() -> PathBuf {
    folder("REPRPO_CACHE").unwrap_or_else(|| user_cache().join("reprpo"))
}

fn folder(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// The user's cache folder: `$XDG_CACHE_HOME`, else `~/.cache`.
pub(super) fn user_cache() -> PathBuf {
    folder("XDG_CACHE_HOME").unwrap_or_else(|| env::home_dir().unwrap_or_default().join(".cache"))
}
