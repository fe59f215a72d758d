//! The tokenizer of a model's files.

use std::path::Path;

use super::Tokenizer;
use crate::error::Result;
use crate::weights::ModelFiles;

impl ModelFiles {
    /// The model's tokenizer, with its chat template.
    ///
    /// # Errors
    /// Fails if it is missing, or of a kind that is not supported.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let read = self
            .metadata()
            .map_or_else(|| Tokenizer::from_folder(self.path()), Tokenizer::from_gguf);
        read.map_err(|e| {
            e.within(format!("cannot read the tokenizer of `{}`", self.path().display()))
        })
    }

    /// The tokenizer of what [`locate`](crate::weights::locate) found, for callers that need
    /// nothing else: a folder then needs no weights.
    ///
    /// # Errors
    /// Fails as [`tokenizer`](Self::tokenizer) does, and as [`open`](Self::open) does if the path
    /// is not a folder with a tokenizer.
    pub fn tokenizer_of(path: &Path) -> Result<Tokenizer> {
        if path.join("tokenizer.json").is_file() {
            return Tokenizer::from_folder(path).map_err(|e| {
                e.within(format!("cannot read the tokenizer of `{}`", path.display()))
            });
        }
        Self::open(path)?.tokenizer()
    }
}
