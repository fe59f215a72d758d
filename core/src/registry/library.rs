//! The description of a loaded plugin library.

use std::path::PathBuf;

use super::entry::Entry;
use super::recipe::RecipeText;

/// A plugin library that is loaded into this process. The library is never unloaded, because its
/// entries and recipes are in its memory.
#[derive(Clone, Debug)]
pub struct PluginLibrary {
    /// Canonical path of the file.
    pub path: PathBuf,
    /// Name of the crate.
    pub name: String,
    /// Version of the crate.
    pub version: String,
    /// SHA-256 digest of the file, in hexadecimal.
    pub sha256: String,
    /// The plugins that the library registers.
    pub entries: Vec<Entry>,
    /// The recipes that the library registers.
    pub recipes: Vec<&'static RecipeText>,
}
