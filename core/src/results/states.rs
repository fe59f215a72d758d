//! The motion of hidden states, from `eval/states.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};

/// The motion of the pooled states at one site, averaged over pairs. A length is relative to the
/// length of the preference vector d = h_r(y⁺) − h_r(y⁻) of the pair.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerMotion {
    /// Name of the site, e.g. `layers.10`.
    pub site: String,
    /// Number of the layer.
    pub layer: usize,
    /// Motion of the chosen state along d.
    pub chosen_along: f64,
    /// Length of the motion of the chosen state across d.
    pub chosen_across: f64,
    /// Motion of the rejected state along d.
    pub rejected_along: f64,
    /// Length of the motion of the rejected state across d.
    pub rejected_across: f64,
}

/// The content of `eval/states.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatesRecord {
    /// The split whose pairs were used.
    pub split: String,
    /// Number of pairs.
    pub pairs: usize,
    /// The sites, in the order of the forward pass.
    pub sites: Vec<LayerMotion>,
}

impl StatesRecord {
    /// Reads the file of the run in `folder`. Returns `None` if there is no such file.
    ///
    /// # Errors
    /// Fails if the file cannot be read or does not have the expected format.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join("eval").join("states.json");
        if !path.is_file() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path)
            .within(|| format!("cannot read `{}`", path.display()))?;
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|e| Error::new(format!("`{}` is damaged", path.display())).because(e))
    }
}
