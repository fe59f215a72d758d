//! Places of a model that a run reads.

mod hs;
mod side_in;

#[cfg(test)]
mod tests;

use reprpo_plugin::prelude::*;

/// From three tenths of the depth on, without the last two places.
fn default_layers() -> Layers {
    Layers("range(.3,-2)".to_owned())
}
