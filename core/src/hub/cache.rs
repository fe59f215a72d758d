//! Folders for downloaded files.

use std::env;
use std::path::PathBuf;

/// Returns the folder for downloaded files. The order of precedence is `$REPRPO_CACHE`,
/// `$XDG_CACHE_HOME/reprpo`, `~/.cache/reprpo`.
pub fn cache_dir() -> PathBuf {
    folder("REPRPO_CACHE").unwrap_or_else(|| user_cache().join("reprpo"))
}

fn folder(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// Returns the user's cache folder: `$XDG_CACHE_HOME`, or else `~/.cache`.
pub(super) fn user_cache() -> PathBuf {
    folder("XDG_CACHE_HOME").unwrap_or_else(|| env::home_dir().unwrap_or_default().join(".cache"))
}
