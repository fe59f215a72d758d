//! The user's plugin folder. Every command loads the libraries in it.

use std::path::PathBuf;

/// Path of the plugin folder: `$REPRPO_PLUGIN_DIR`, else `reprpo/plugins` in the user's data folder
/// (`$XDG_DATA_HOME` or `~/.local/share`). `None` if these variables and `HOME` are all unset.
pub fn folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let data =
        || variable("XDG_DATA_HOME").or_else(|| Some(variable("HOME")?.join(".local/share")));
    variable("REPRPO_PLUGIN_DIR").or_else(|| Some(data()?.join("reprpo/plugins")))
}

/// Lists the libraries in the plugin [`folder`], sorted by name. The list is empty if the folder
/// does not exist.
pub fn installed() -> Vec<PathBuf> {
    let Some(Ok(entries)) = folder().map(std::fs::read_dir) else { return Vec::new() };
    let library =
        |path: &PathBuf| path.extension().is_some_and(|e| e == std::env::consts::DLL_EXTENSION);
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(library).collect();
    files.sort();
    files
}
