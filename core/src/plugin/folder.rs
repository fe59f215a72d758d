//! The user's plugin folder: what lies in it is there in every command.

use std::path::PathBuf;

/// `REPRPO_PLUGIN_DIR`, or `reprpo/plugins` where the user's programs keep their data; `None`
/// without a home.
pub fn folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let data =
        || variable("XDG_DATA_HOME").or_else(|| Some(variable("HOME")?.join(".local/share")));
    variable("REPRPO_PLUGIN_DIR").or_else(|| Some(data()?.join("reprpo/plugins")))
}

/// The libraries in the [`folder`], by name. A folder that is not there holds none.
pub fn installed() -> Vec<PathBuf> {
    let Some(Ok(entries)) = folder().map(std::fs::read_dir) else { return Vec::new() };
    let library =
        |path: &PathBuf| path.extension().is_some_and(|e| e == std::env::consts::DLL_EXTENSION);
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(library).collect();
    files.sort();
    files
}
