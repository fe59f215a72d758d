//! The motion of hidden states, from `eval/states.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::files::read_record;

/// The motion of the pooled states at one site, averaged over pairs. All lengths are multiples
/// of ‖d‖, where d = h_r(y⁺) − h_r(y⁻) is the preference vector of the pair.
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
        read_record(&folder.join("eval").join("states.json"), "is damaged")
    }
}
