//! Downloads the built-in models.

use std::path::PathBuf;

use anyhow::Result;
use reprpo_downloads::{MODELS, Model};

use crate::{Options, paths, progress};

/// The model that the demo trains and the tests use.
pub fn default() -> &'static Model {
    &MODELS[0]
}

/// Names of the models.
pub fn names() -> Vec<&'static str> {
    MODELS.iter().map(|model| model.name).collect()
}

/// Returns the model called `name`, which must be one of [`names`].
pub fn named(name: &str) -> &'static Model {
    Model::named(name).expect("the command line only accepts these names")
}

/// Downloads a model into the cache, unless it is already there. Returns the path of the `.gguf`
/// file.
pub fn set_up(model: &Model, options: &Options) -> Result<PathBuf> {
    Ok(model.fetch(&paths::cache()?, options.keep_downloads, &mut progress::Terminal::default())?)
}
