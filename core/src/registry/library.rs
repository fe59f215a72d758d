//! A plugin's library that was loaded.

use std::path::PathBuf;

use super::entry::Entry;
use super::recipe::RecipeText;

/// A plugin's library in this process. It stays to the end: what it registered lives in its memory.
#[derive(Clone, Debug)]
pub struct PluginLibrary {
    /// The file, without links and dots.
    pub path: PathBuf,
    /// The crate's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Digest of the file, in hexadecimal.
    pub sha256: String,
    /// What it registers.
    pub entries: Vec<Entry>,
    /// The recipes it brings.
    pub recipes: Vec<&'static RecipeText>,
}
