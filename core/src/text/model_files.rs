//! The tokenizer of a model's files.

use std::path::Path;

use super::Tokenizer;
use crate::error::Result;
use crate::weights::ModelFiles;

impl ModelFiles {
    /// The model's tokenizer, with its chat template.
    ///
    /// # Errors
    /// Where it is missing, or of a sort that is not read.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let read = self.metadata().map_or_else(|| Tokenizer::from_folder(self.path()), Tokenizer::from_gguf);
        read.map_err(|e| e.within(format!("cannot read the tokenizer of `{}`", self.path().display())))
    }

    /// The tokenizer of what [`locate`](crate::weights::locate) found, for who needs nothing else: a folder then needs no weights.
    ///
    /// # Errors
    /// As [`tokenizer`](Self::tokenizer), and as [`open`](Self::open) for what is no folder with a tokenizer.
    pub fn tokenizer_of(path: &Path) -> Result<Tokenizer> {
        if path.join("tokenizer.json").is_file() {
            return Tokenizer::from_folder(path).map_err(|e| e.within(format!("cannot read the tokenizer of `{}`", path.display())));
        }
        Self::open(path)?.tokenizer()
    }
}
