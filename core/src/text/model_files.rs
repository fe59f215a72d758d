//! Methods of [`ModelFiles`] that read the tokenizer.

use std::path::Path;

use super::Tokenizer;
use crate::error::Result;
use crate::weights::ModelFiles;

impl ModelFiles {
    /// Reads the model's tokenizer and its chat template.
    ///
    /// # Errors
    /// Fails if the tokenizer is missing, not valid, or of a type that is not supported.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let read = self
            .metadata()
            .map_or_else(|| Tokenizer::from_folder(self.path()), Tokenizer::from_gguf);
        read.map_err(|e| {
            e.within(format!("cannot read the tokenizer of `{}`", self.path().display()))
        })
    }

    /// Reads the tokenizer without opening the weights. `path` is a path returned by
    /// [`locate`](crate::weights::locate). It may be a folder without weights.
    ///
    /// # Errors
    /// Fails in the same cases as [`tokenizer`](Self::tokenizer). If `path` is not a folder with a
    /// tokenizer.json, this method also fails in the same cases as [`open`](Self::open).
    pub fn tokenizer_of(path: &Path) -> Result<Tokenizer> {
        if path.join("tokenizer.json").is_file() {
            return Tokenizer::from_folder(path).map_err(|e| {
                e.within(format!("cannot read the tokenizer of `{}`", path.display()))
            });
        }
        Self::open(path)?.tokenizer()
    }
}
